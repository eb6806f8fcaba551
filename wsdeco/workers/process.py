"""One worker process as its parent sees it, and the place that one takes after the other."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from wsdeco.server.listen import Listeners
from wsdeco.server.orphans import WORKER_NAME
from wsdeco.workers.link import END, PING, STUCK, Link, Order

__all__ = ["LONGEST_DELAY", "Slot", "Task", "Worker"]

_STABLE: Final = 10.0
"""Seconds of service after which the death of a worker does not count as another failure in a row."""

LONGEST_DELAY: Final = 30.0
"""Seconds between two starts of a worker at most."""

_LAST_WORDS: Final = 2.0
"""Seconds in which a worker that hangs can still say where, unless the whole process stands still."""


@dataclass(slots=True)
class Task:
    """What workers are for.

    Attributes:
        target: What each of them calls, with its `Link` and `arguments`; found by its name.
        arguments: What goes with it, pickled.
        listeners: The sockets of all.
    """

    target: Callable[..., None]
    arguments: tuple[Any, ...]
    listeners: Listeners


class Worker:
    """One process.

    Args:
        task: What it is for.
        number: Its number, from 1 on.
        place: Which of the places it has, from 0 on: the one before and the one after it share its sockets.

    Attributes:
        number: Its number, from 1 on.
        process: The process.
        connection: The parent's end of the pipe.
        started_at: When it was started.
        ready_at: When it began to serve.
        ending_at: When it was told to end.
        limit: Seconds that its end may take, once it has said so.
    """

    def __init__(self, task: Task, number: int, place: int) -> None:
        self.number = number
        self.connection: Connection[Any, Any]
        self.connection, theirs = multiprocessing.Pipe()
        self.started_at: float = time.monotonic()
        self.ready_at: float | None = None
        self.ending_at: float | None = None
        self.limit: float | None = None
        self._asked_at: float | None = None
        self._hangs_since: float | None = None
        context = multiprocessing.get_context("spawn")
        self.process: SpawnProcess = context.Process(
            target=task.target,
            args=(Link(theirs, number, task.listeners.of_worker(place)), *task.arguments),
            name=f"{WORKER_NAME} {number}",
            daemon=False,
        )
        try:
            self.process.start()
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()

    def end(self, order: Order = END) -> None:
        """Ask it to end.

        Args:
            order: How: by itself, with another one that warns the clients of all (`FOLLOW`), or since another worker
                has taken its place, to which its clients may go (`RETIRE`).
        """
        self.ending_at = time.monotonic()
        self.tell(order)
        # The worker may still import and not read, or have closed its end.
        if self.ready_at is None or self.connection.closed:
            self.process.terminate()

    def check(self, timeout: float) -> bool:
        """Ask for a sign that its event loop runs, and end it if none has come; return whether that has just begun.

        Args:
            timeout: Seconds that it may take to answer.
        """
        now = time.monotonic()
        if self._hangs_since is not None:
            if now - self._hangs_since > _LAST_WORDS:
                self.process.kill()
        elif self._asked_at is None:
            self._asked_at = now
            self.tell(PING)
        elif now - self._asked_at > timeout:
            self._hangs_since = now
            self.tell(STUCK)
            return True
        return False

    def is_alive(self) -> None:
        """Take in that its event loop runs."""
        self._asked_at = None

    def close(self) -> int:
        """Forget the process, which has ended; return its exit status."""
        self.process.join()
        status = self.process.exitcode or 0
        self.process.close()
        self.connection.close()
        return status

    def tell(self, order: Order) -> None:
        """Say something to it."""
        with suppress(OSError):
            self.connection.send(order)


class Slot:
    """The place of one worker after the other.

    Attributes:
        worker: The process of the moment.
        next: The one that is to take its place, and starts.
        previous: The one whose place it has taken, and ends.
        failures: How many have died in a row, soon after their start.
        start_at: When the next one is to be started, if there is none.
    """

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.next: Worker | None = None
        self.previous: Worker | None = None
        self.failures: int = 0
        self.start_at: float = 0.0

    def __iter__(self) -> Iterator[Worker]:
        """Return all processes of the place."""
        return (each for each in (self.worker, self.next, self.previous) if each is not None)

    def forget(self, worker: Worker) -> None:
        """Free the place of a process that has ended."""
        for name in ("worker", "next", "previous"):
            if getattr(self, name) is worker:
                setattr(self, name, None)

    def note_death(self, served: float | None, now: float) -> float:
        """Take in that the worker has died, `served` seconds after it was ready; return the seconds until the next."""
        self.failures = 1 if served is not None and served >= _STABLE else self.failures + 1
        delay = 0.0 if self.failures == 1 else min(LONGEST_DELAY, 2.0 ** min(self.failures - 2, 10))
        self.start_at = now + delay
        return delay
