"""What another event loop is asked to do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["run_in"]

T = TypeVar("T")

_LOOK_AGAIN: Final = 0.1
"""Seconds after which what was handed over looks whether the event loop is still there."""


async def run_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], otherwise: T) -> T:
    """Run `work` in another event loop; return what it does, or `otherwise` if that loop ends meanwhile."""
    try:
        handed_over = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:
        # The loop was closed since it was asked.
        work.close()
        return otherwise
    result = asyncio.wrap_future(handed_over)
    try:
        # Nobody is told when a loop is closed, so it has to be asked.
        while not result.done() and not loop.is_closed():
            await asyncio.wait((result,), timeout=_LOOK_AGAIN)
    finally:
        result.cancel()
        if loop.is_closed():
            work.close()
    return otherwise if result.cancelled() else result.result()
