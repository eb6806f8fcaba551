"""Says that a process has no file descriptor left, so that no more clients get in.

Neither event loop says it well: asyncio reports each of up to 64 failures in a row with a traceback, accepts again
after a second, and keeps clients waiting until then; uvloop accepts them, closes them at once and says nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["Descriptors"]

logger: Final = logging.getLogger("wsdeco")

_PAUSE: Final = 60.0
"""Seconds between two such lines, as the last descriptor may be given back and taken many times a second."""

_OVER: Final = 1.0
"""Seconds with descriptors after which the want of them is over."""

_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""What says that the process has as many as it may, or the system."""

_ASYNCIO_SAYS: Final = "socket.accept() out of system resource"


class Descriptors:
    """Watches those of this process.

    Args:
        time_of: Returns the time in seconds.
    """

    def __init__(self, time_of: Callable[[], float] = time.monotonic) -> None:
        self._time_of = time_of
        self._said_at: float | None = None
        self._last_missed = 0.0
        self._is_want_said = False

    def look(self) -> None:
        """See whether there are some; to be called several times a second."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as exc:
            if exc.errno in _NONE_LEFT:
                self.missed(exc)
            return
        if self._is_want_said and self._time_of() - self._last_missed >= _OVER:
            self._is_want_said = False
            logger.warning("there are file descriptors again: new clients get in")

    def missed(self, exc: OSError) -> None:
        """One could not be had."""
        now = self._last_missed = self._time_of()
        if self._said_at is not None and now - self._said_at < _PAUSE:
            return
        self._said_at = now
        self._is_want_said = True
        logger.error(
            "%s: new clients wait or are turned away until others leave%s; "
            "raise the limit (`ulimit -n`, or LimitNOFILE of systemd), or set max_connections",
            os.strerror(exc.errno or 0),
            _limit(),
        )

    @contextmanager
    def heard_in(self, loop: asyncio.AbstractEventLoop, sockets: Sequence[socket.socket]) -> Generator[None]:
        """Have the want of a descriptor for clients of `sockets` said in the same line, in the loop of a program.

        What else the loop reports goes where it went before. A handler that the program itself sets in the block gets
        all that is reported, with asyncio's want of descriptors, which is then its own to pass over.
        """
        before = loop.get_exception_handler()

        def take(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            exc = _want_in(context)
            number = -1 if exc is None else context["socket"].fileno()
            if exc is not None and number >= 0 and number in [each.fileno() for each in sockets]:
                self.missed(exc)
            elif before is None:
                loop.default_exception_handler(context)
            else:
                before(loop, context)

        loop.set_exception_handler(take)
        try:
            yield
        finally:
            # Another server of the program may have done the same since.
            if loop.get_exception_handler() is take:
                loop.set_exception_handler(before)

    def take_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle what the event loop reports: asyncio's want of a descriptor in the same line, all else as ever."""
        exc = _want_in(context)
        if exc is None:
            loop.default_exception_handler(context)
        else:
            self.missed(exc)


def _want_in(context: dict[str, Any]) -> OSError | None:
    exc = context.get("exception")
    return exc if context["message"] == _ASYNCIO_SAYS and isinstance(exc, OSError) else None


def _limit() -> str:
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return ""
    return f" (RLIMIT_NOFILE of this process is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
