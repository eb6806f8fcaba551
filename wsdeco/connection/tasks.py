"""The tasks that belong to one connection: how they are ended with it, and what becomes of their exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from wsdeco.reasons import printable

__all__ = ["Tasks"]

T = TypeVar("T")

_TURNS_TO_BE_AWAITED: Final = 3
"""Turns of the event loop in which whoever awaits a task gets its exception; `asyncio.wait` takes two."""


class Tasks:
    """The tasks of one connection.

    Args:
        failed: Called with the name of a task and its exception, if nobody awaited it.
    """

    __slots__ = ("_failed", "_live")

    def __init__(self, failed: Callable[[str, BaseException], None]) -> None:
        self._failed = failed
        self._live: set[asyncio.Task[Any]] = set()

    def create(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], name: str | None
    ) -> asyncio.Task[T]:
        """Run `work` in a task of `loop`."""
        task = loop.create_task(work, name=name)
        self._live.add(task)
        task.add_done_callback(self._over)
        return task

    def __str__(self) -> str:
        return ", ".join(sorted(printable(task.get_name()) for task in self._live))

    def cancel(self) -> None:
        """Cancel those that run."""
        for task in self._live:
            task.cancel()

    async def end(self) -> None:
        """Cancel those that run, and wait for their end."""
        self.cancel()
        while self._live:
            await asyncio.wait(self._live)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._live.discard(task)
        if not task.cancelled():
            self._judge(task, _TURNS_TO_BE_AWAITED)

    def _judge(self, task: asyncio.Task[Any], turns: int) -> None:
        # asyncio's own mark of an exception that nobody took, by which it logs "was never retrieved". To ask for the
        # exception takes it.
        if not getattr(task, "_log_traceback", False):
            return
        if turns:
            task.get_loop().call_soon(self._judge, task, turns - 1)
            return
        self._failed(printable(task.get_name()), cast("BaseException", task.exception()))
