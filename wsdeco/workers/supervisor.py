"""Worker processes: started, replaced when they die, and ended together.

uvicorn has a supervisor too, which this is not: it waits for its workers without a bound, starts one that dies at once
again and again, and leaves them behind when it is killed itself.

Each worker holds the end of a pipe. What it reads there is that it is to end, also when its parent is no more; it
writes that it serves, why it cannot, and how long its end may take.
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, Final, Protocol

from wsdeco.reasons import ServerError
from wsdeco.server import foreground
from wsdeco.server.foreground import (
    SECOND_SIGNAL,
    TERMINAL_SIGNALS,
    briefly,
    ending_signals_call,
    handle_signal,
    say,
    waiting_for,
)
from wsdeco.server.orphans import WORKER_NAME, leave_to_link

__all__ = ["Link", "Supervised", "Supervisor"]

logger = logging.getLogger("wsdeco")

_TICK: Final = 0.5
"""Seconds between two looks at what announces nothing."""

_STABLE: Final = 10.0
"""Seconds of service after which the death of a worker does not count as another failure in a row."""

_LONGEST_DELAY: Final = 30.0
"""Seconds between two starts of a worker at most."""

_MARGIN: Final = 2.0
"""Seconds that a worker gets beyond the bound of its own end before it is killed."""

_END: Final = "end"


class Supervised(Protocol):
    """What runs beside the workers, and is looked after with them."""

    def look(self) -> None:
        """Start it again where it has died."""


class Link:
    """A worker's end of the pipe to its parent.

    Attributes:
        number: Which of the workers it is, from 1 on; one that takes the place of another has its number.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.number = number
        self._connection = connection

    def watch(self, on_end: Callable[[], None]) -> None:
        """Call `on_end`, in a thread, as soon as the worker is to end or the parent has died."""
        threading.Thread(target=self._watch, args=(on_end,), name="wsdeco-link", daemon=True).start()
        leave_to_link()

    def _watch(self, on_end: Callable[[], None]) -> None:
        # Nothing but the wish to end comes here, or the end of the parent.
        with suppress(EOFError, OSError):
            self._connection.recv()
        on_end()

    @staticmethod
    def take_signals() -> None:
        """Let the parent answer what a terminal sends to the whole process group, from now on."""
        for number in TERMINAL_SIGNALS:
            # Programs that the worker starts do not inherit a handler, as they would what is ignored.
            handle_signal(number, lambda _number, _frame: None)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINAL_SIGNALS)

    def ready(self) -> None:
        """Tell that the worker serves."""
        self._send("ready", "")

    def failed(self, why: str) -> None:
        """Tell why the worker cannot serve."""
        self._send("failed", why)

    def ending(self, seconds: float) -> None:
        """Tell that the worker ends, and how long that may take."""
        self._send("ending", seconds)

    def _send(self, kind: str, value: object) -> None:
        # A parent that has died reads no more.
        with suppress(OSError):
            self._connection.send((kind, value))


class _Worker:
    """One process.

    Attributes:
        process: The process.
        connection: The parent's end of the pipe.
        ready_at: When it began to serve.
        limit: Seconds that its end may take, once it has said so.
    """

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...], number: int) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.ready_at: float | None = None
        self.limit: float | None = None
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(
            target=target, args=(Link(theirs, number), *arguments), name=f"{WORKER_NAME} {number}", daemon=False
        )
        try:
            self.process.start()
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()

    def end(self) -> None:
        """Ask it to end."""
        with suppress(OSError):
            self.connection.send(_END)
        # It may be importing and not read yet, or have closed its end.
        if self.ready_at is None or self.connection.closed:
            self.process.terminate()

    def close(self) -> int:
        """Forget the process, which has ended; return its exit status."""
        self.process.join()
        status = self.process.exitcode or 0
        self.process.close()
        self.connection.close()
        return status


class _Slot:
    """The place of one worker after the other.

    Attributes:
        number: Its number, from 1 on.
        worker: The process of the moment.
        failures: How many have died in a row, soon after their start.
        start_at: When the next one is to be started.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: _Worker | None = None
        self.failures = 0
        self.start_at = 0.0

    def note_death(self, served: float | None, now: float) -> float:
        """Take in that the worker has died, `served` seconds after it was ready; return the seconds until the next."""
        self.failures = 1 if served is not None and served >= _STABLE else self.failures + 1
        delay = 0.0 if self.failures == 1 else min(_LONGEST_DELAY, 2.0 ** min(self.failures - 2, 10))
        self.start_at = now + delay
        return delay


class Supervisor:
    """Keeps `count` worker processes alive until a signal.

    Args:
        count: How many.
        target: What each of them calls, with its `Link` and `arguments`; found by its name.
        arguments: What goes with it, pickled.
        time_to_end: Seconds that the end of a worker may take, unless it says something else.
        beside: What runs beside them.
        on_death: Called with the number of a worker that is no more, before another one takes its place.
    """

    def __init__(
        self,
        count: int,
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        *,
        time_to_end: float,
        beside: Sequence[Supervised] = (),
        on_death: Callable[[int], None] = lambda _number: None,
    ) -> None:
        self._target = target
        self._arguments = arguments
        self._time_to_end = time_to_end
        self._beside = beside
        self._on_death = on_death
        self._slots = [_Slot(number) for number in range(1, count + 1)]
        self._signals: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._serves_one = False
        self._serving = False
        self._reported: set[str] = set()
        self._status = 0

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
                    self._wait(wake)
                    self._look(on_ready)
                on_end()
                self._end(wake)
            finally:
                self._kill_all()
        return self._status

    @contextmanager
    def _listening_to_signals(self) -> Generator[Connection]:
        wake, waker = multiprocessing.Pipe(duplex=False)

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self._signals.put(time.monotonic())
            with suppress(OSError):
                waker.send_bytes(b"signal")

        with wake, waker, ending_signals_call(on_signal):
            yield wake

    # While they serve.

    @property
    def _places(self) -> list[_Worker | None]:
        return [slot.worker for slot in self._slots]

    @property
    def _workers(self) -> list[_Worker]:
        return [worker for worker in self._places if worker is not None]

    def _start_missing(self) -> None:
        now = time.monotonic()
        # The first one goes ahead: where it cannot start, one says so and not all.
        slots = self._slots if self._serves_one else self._slots[:1]
        for slot in slots:
            if slot.worker is None and slot.start_at <= now:
                try:
                    with _without_interrupts():
                        slot.worker = _Worker(self._target, self._arguments, slot.number)
                except OSError as exc:
                    self._note_failed_start(slot, exc)

    def _note_failed_start(self, slot: _Slot, exc: OSError) -> None:
        if self._serving:
            briefly(logger.warning, "a worker process cannot be started now: %s", exc)
            slot.note_death(None, time.monotonic())
            return
        failure = f"worker processes cannot be started: {exc}"
        if not self._workers:
            raise ServerError(failure) from exc
        # Those there are serve already, and end like all others.
        say(failure)
        self._status = 1

    def _wait(self, wake: Connection) -> None:
        connections = [worker.connection for worker in self._workers if not worker.connection.closed]
        sentinels = [worker.process.sentinel for worker in self._workers]
        if wake in wait([wake, *connections, *sentinels], _TICK):
            wake.recv_bytes()

    def _look(self, on_ready: Callable[[], None]) -> None:
        for each in self._beside:
            each.look()
        for slot in self._slots:
            self._look_at(slot)
        if not self._serving and all(worker is not None and worker.ready_at is not None for worker in self._places):
            self._serving = True
            on_ready()

    def _look_at(self, slot: _Slot) -> None:
        worker = self._reap(slot)
        if worker is None:
            return
        pid, status = worker.process.pid, worker.close()
        self._on_death(slot.number)
        now = time.monotonic()
        delay = slot.note_death(None if worker.ready_at is None else now - worker.ready_at, now)
        if worker.ready_at is None and status >= 0 and not self._serving:
            # What fails from the start would fail for ever; what ends by itself without having served has failed too.
            self._status = status or 1
        else:
            what = "has ended" if worker.ready_at is not None else "could not start"
            then = f": another one starts {f'in {delay:g} s' if delay else 'now'}" if self._signals.empty() else ""
            briefly(logger.warning, "worker process %d %s (%s)%s", pid, what, _describe(status), then)

    def _reap(self, slot: _Slot) -> _Worker | None:
        """Return the worker of a slot if it has ended, and free the slot; read what it has written in any case."""
        worker = slot.worker
        if worker is None:
            return None
        # Asked before that is read, or the last words of a worker that dies meanwhile would be missed.
        has_ended = not worker.process.is_alive()
        self._read(worker)
        if not has_ended:
            return None
        slot.worker = None
        return worker

    def _read(self, worker: _Worker) -> None:
        with suppress(EOFError, OSError):
            while not worker.connection.closed and worker.connection.poll():
                kind, value = worker.connection.recv()
                match kind:
                    case "ready":
                        worker.ready_at = time.monotonic()
                        self._serves_one = True
                    case "ending":
                        worker.limit = value
                    case _:
                        self._report(value)
            return
        # It has ended, or closed its end.
        worker.connection.close()

    def _report(self, failure: str) -> None:
        # Each attempt would say the same.
        if failure not in self._reported:
            self._reported.add(failure)
            say(failure)

    # The end.

    def _end(self, wake: Connection) -> None:
        begun = time.monotonic()
        for worker in self._workers:
            worker.end()
        noticed = False
        while self._workers:
            self._wait(wake)
            for slot in self._slots:
                self._gather(slot)
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

    def _gather(self, slot: _Slot) -> None:
        worker = self._reap(slot)
        # One that was still starting has been terminated, which is no failure.
        if worker is not None and worker.close() != 0 and worker.ready_at is not None:
            self._status = 1

    def _limit(self, worker: _Worker) -> float:
        return (self._time_to_end if worker.limit is None else worker.limit) + _MARGIN

    def _pids(self) -> str:
        return ", ".join(str(worker.process.pid) for worker in self._workers)

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.close()


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
    from multiprocessing import resource_tracker  # noqa: PLC0415 - there is none where signals cannot be blocked

    # Its start would let the signals in again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
