"""Worker processes: started, replaced when they die or are to run new code, and ended together.

uvicorn has a supervisor too, which this is not: it waits for its workers without a bound, starts one that dies at once
again and again, and leaves them behind when it is killed itself.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Final, Protocol

from wsdeco.reasons import ServerError
from wsdeco.server import foreground
from wsdeco.server.foreground import (
    SECOND_SIGNAL,
    TERMINAL_SIGNALS,
    briefly,
    ending_signals_call,
    say,
    waiting_for,
)
from wsdeco.workers.link import END, FOLLOW, RETIRE, WARNED
from wsdeco.workers.process import Slot, Task, Worker

__all__ = ["MARGIN", "START", "Supervised", "Supervisor"]

logger: Final = logging.getLogger("wsdeco")

_TICK: Final = 0.5
"""Seconds between two looks at what announces nothing."""

MARGIN: Final = 2.0
"""Seconds that a worker gets beyond the bound of its own end before it is killed."""

START: Final = 60.0
"""Seconds in which a worker that is to replace another one has to serve."""

_HANGUP: Final = getattr(signal, "SIGHUP", None)


class Supervised(Protocol):
    """What runs beside the workers, and is looked after with them."""

    def look(self) -> None:
        """Start it again if it has died."""


class Supervisor:
    """Keeps worker processes alive until a signal; the signal SIGHUP replaces them one by one.

    Args:
        count: How many.
        task: What they are for.
        time_to_end: Seconds that the end of a worker may take, unless it says something else.
        beside: What runs beside them.
        on_death: Called with the number of a worker that is no more, before another one takes it.
        worker_timeout: Seconds in which the event loop of each has to show that it runs; `None` for no limit.
        patience: Seconds that a worker which has been replaced gets at most; `None` for what it says itself.

    Attributes:
        task: What those are for that are started from now on.
    """

    def __init__(
        self,
        count: int,
        task: Task,
        *,
        time_to_end: float,
        beside: Sequence[Supervised] = (),
        on_death: Callable[[int], None] = lambda _number: None,
        worker_timeout: float | None = None,
        patience: float | None = None,
    ) -> None:
        self.task = task
        self._time_to_end = time_to_end
        self._beside = beside
        self._on_death = on_death
        self._worker_timeout = worker_timeout
        self._patience = patience
        self._slots = [Slot() for _ in range(count)]
        # One more than workers, for the one that is being replaced.
        self._numbers = list(range(1, count + 2))
        self._turns: deque[Slot] = deque()
        self._signals: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._restarts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._wake: Callable[[], None] = lambda: None
        self._serves_one = False
        self._serving = False
        self._ending = False
        self._reported: set[str] = set()
        self._status = 0

    def restart(self, why: str) -> None:
        """Replace all workers, one by one; from any thread.

        Args:
            why: What is said of it.
        """
        self._restarts.put(why)
        self._wake()

    def run(self, on_ready: Callable[[], None], on_end: Callable[[], None]) -> int:
        """Serve until a signal, or until the workers cannot start; return the exit status.

        Args:
            on_ready: Called when all serve for the first time.
            on_end: Called when they begin to end.

        Raises:
            ServerError: The system has no room for them.
        """
        with self._listening_to_signals() as wake:
            try:
                while self._signals.empty() and self._status == 0:
                    self._start_missing()
                    self._replace()
                    self._wait(wake)
                    self._look(on_ready)
                self._ending = True
                on_end()
                self._end(wake)
            finally:
                self._kill_all()
        return self._status

    @contextmanager
    def _listening_to_signals(self) -> Generator[Connection]:
        wake, waker = multiprocessing.Pipe(duplex=False)
        has_terminal = _has_terminal()

        def wake_up() -> None:
            with suppress(OSError):
                waker.send_bytes(b"wake")

        def on_signal(number: int, _frame: FrameType | None) -> None:
            # SIGHUP asks for a restart, unless it says that the terminal of the program was closed.
            if number == _HANGUP and not self._ending and (not has_terminal or _has_terminal()):
                self._restarts.put("SIGHUP")
            else:
                self._signals.put(time.monotonic())
            wake_up()

        with wake, waker, ending_signals_call(on_signal):
            self._wake = wake_up
            try:
                yield wake
            finally:
                self._wake = lambda: None

    # While they serve.

    @property
    def _workers(self) -> list[Worker]:
        return [worker for slot in self._slots for worker in slot]

    def _start(self, slot: Slot) -> Worker:
        with _without_interrupts():
            worker = Worker(self.task, min(self._numbers), self._slots.index(slot))
        self._numbers.remove(worker.number)
        return worker

    def _start_missing(self) -> None:
        now = time.monotonic()
        # The first one goes ahead: if it cannot start, one says so and not all.
        slots = self._slots if self._serves_one else self._slots[:1]
        for slot in slots:
            if slot.worker is None and slot.next is None and slot.start_at <= now:
                try:
                    slot.worker = self._start(slot)
                except OSError as exc:
                    self._note_failed_start(slot, exc)

    def _note_failed_start(self, slot: Slot, exc: OSError) -> None:
        if self._serving:
            briefly(logger.warning, "a worker process cannot be started now: %s", exc)
            slot.note_death(None, time.monotonic())
            return
        failure = f"worker processes cannot be started: {exc}"
        if not self._workers:
            raise ServerError(failure) from exc
        # The workers so far serve already, and end like all others.
        say(failure)
        self._status = 1

    def _replace(self) -> None:
        """Begin with the next replacement, if none is in progress."""
        with suppress(queue.Empty):
            while why := self._restarts.get_nowait():
                say(f"{why}: the worker processes are replaced one by one")
                # The fault that they reported may be mended by now.
                self._reported.clear()
                self._turns = deque(self._slots)
        if not self._serving or not self._turns or any(slot.next or slot.previous for slot in self._slots):
            return
        slot = self._turns.popleft()
        try:
            slot.next = self._start(slot)
        except OSError as exc:
            self._give_up(f"cannot be started now: {exc}")

    def _give_up(self, why: str) -> None:
        self._turns.clear()
        say(f"a new worker process {why}; the old ones go on")

    def _wait(self, wake: Connection) -> None:
        connections = [worker.connection for worker in self._workers if not worker.connection.closed]
        sentinels = [worker.process.sentinel for worker in self._workers]
        if wake in wait([wake, *connections, *sentinels], _TICK):
            wake.recv_bytes()

    def _look(self, on_ready: Callable[[], None]) -> None:
        for each in self._beside:
            each.look()
        for slot in self._slots:
            for worker in tuple(slot):
                if self._has_ended(slot, worker):
                    self._note_end(slot, worker)
            self._look_after(slot)
        ready = [slot.worker is not None and slot.worker.ready_at is not None for slot in self._slots]
        if not self._serving and all(ready):
            self._serving = True
            on_ready()

    def _look_after(self, slot: Slot) -> None:
        worker, new, old = slot.worker, slot.next, slot.previous
        now = time.monotonic()
        if new is not None and new.ready_at is not None:
            slot.worker, slot.next, slot.previous = new, None, worker
            slot.failures = 0
            if worker is not None:
                worker.end(RETIRE)
        elif new is not None and now - new.started_at > START:
            new.process.kill()
        if old is not None and now - (old.ending_at or now) > self._limit(old):
            say(f"the worker process {old.process.pid}, which has been replaced, has not ended: it is killed")
            old.process.kill()
        timeout = self._worker_timeout
        worker = slot.worker
        if timeout is not None and worker is not None and worker.ready_at is not None and worker.check(timeout):
            briefly(logger.error, "worker process %d hangs for %g s and is replaced", worker.process.pid, timeout)

    def _note_end(self, slot: Slot, worker: Worker) -> None:
        role = "next" if worker is slot.next else "previous" if worker is slot.previous else "worker"
        slot.forget(worker)
        pid, status = worker.process.pid, self._close(worker)
        if role == "next":
            self._give_up(f"could not start ({_describe(status)})")
        elif role == "worker":
            self._note_death(slot, worker, pid, status)
        elif not self._turns and not any(tuple(each) != (each.worker,) for each in self._slots):
            say("the worker processes have been replaced")

    def _close(self, worker: Worker) -> int:
        status = worker.close()
        self._on_death(worker.number)
        self._numbers.append(worker.number)
        return status

    def _note_death(self, slot: Slot, worker: Worker, pid: int | None, status: int) -> None:
        now = time.monotonic()
        delay = slot.note_death(None if worker.ready_at is None else now - worker.ready_at, now)
        if worker.ready_at is None and status >= 0 and not self._serving:
            # What fails from the start would fail for ever; what ends by itself without having served has failed too.
            self._status = status or 1
        else:
            what = "has ended" if worker.ready_at is not None else "could not start"
            then = f": another one starts {f'in {delay:g} s' if delay else 'now'}" if self._signals.empty() else ""
            briefly(logger.warning, "worker process %d %s (%s)%s", pid, what, _describe(status), then)

    def _has_ended(self, slot: Slot, worker: Worker) -> bool:
        # Asked before that is read, or the last words of a worker that dies meanwhile would be missed.
        has_ended = not worker.process.is_alive()
        self._read(slot, worker)
        return has_ended

    def _read(self, slot: Slot, worker: Worker) -> None:
        with suppress(EOFError, OSError):
            while not worker.connection.closed and worker.connection.poll():
                kind, value = worker.connection.recv()
                match kind:
                    case "ready":
                        worker.ready_at = time.monotonic()
                        self._serves_one = True
                    case "ending":
                        worker.limit = value
                    case "alive":
                        worker.is_alive()
                    case "warned":
                        for each in self._workers:
                            each.tell(WARNED)
                    case "replace":
                        self._turns.append(slot)
                    case _:
                        self._report(value)
            return
        # The worker has ended, or closed its end.
        worker.connection.close()

    def _report(self, failure: str) -> None:
        # Each attempt would report the same.
        if failure not in self._reported:
            self._reported.add(failure)
            say(failure)

    # The end.

    def _end(self, wake: Connection) -> None:
        begun = time.monotonic()
        # One that serves warns the clients of all, if their rooms are one.
        for place, worker in enumerate(sorted(self._workers, key=lambda each: each.ready_at is None)):
            worker.end(FOLLOW if place else END)
        noticed = False
        while self._workers:
            self._wait(wake)
            for slot in self._slots:
                for worker in tuple(slot):
                    self._gather(slot, worker)
            if not self._workers:
                return
            passed = time.monotonic() - begun
            limit = max(self._limit(worker) for worker in self._workers)
            if passed > limit:
                say(f"the worker processes {self._pids()} have not ended within {limit:g} s: they are killed")
                self._status = 1
                return
            # A program that passes a signal on to the whole process group means the first one.
            if self._signal_after(begun if noticed else begun + foreground.REPEAT):
                say(SECOND_SIGNAL)
                self._status = 1
                return
            if passed > foreground.NOTICE and not noticed:
                noticed = True
                say(waiting_for(limit))

    def _signal_after(self, when: float) -> bool:
        """Forget the signals so far, and return whether one came after `when`."""
        with suppress(queue.Empty):
            while self._signals.get_nowait() <= when:
                pass
            return True
        return False

    def _gather(self, slot: Slot, worker: Worker) -> None:
        if not self._has_ended(slot, worker):
            return
        slot.forget(worker)
        # One that was still starting has been terminated, which is no failure.
        if self._close(worker) != 0 and worker.ready_at is not None:
            self._status = 1

    def _limit(self, worker: Worker) -> float:
        if self._patience is not None and not self._ending:
            return self._patience
        return (self._time_to_end if worker.limit is None else worker.limit) + MARGIN

    def _pids(self) -> str:
        return ", ".join(str(worker.process.pid) for worker in self._workers)

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.close()


def _has_terminal() -> bool:
    """Return whether the process has a terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | getattr(os, "O_NOCTTY", 0)))
    except OSError:
        return False
    return True


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


@contextmanager
def _without_interrupts() -> Generator[None]:
    # They reach the whole process group: a worker that is being started has no handler yet, but what is blocked
    # stays so until it has one.
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker  # noqa: PLC0415 - there is none if signals cannot be blocked

    # Starting the resource tracker would unblock the signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
