"""Says that a process has no file descriptor left, so that no more clients get in.

Neither event loop says it well: asyncio reports each of up to 64 failures in a row with a traceback, accepts again
after a second, and keeps clients waiting until then; uvloop accepts them, closes them at once and says nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable
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

    def take_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle what the event loop reports: asyncio's want of a descriptor in the same line, all else as ever."""
        exc = context.get("exception")
        if context["message"] == _ASYNCIO_SAYS and isinstance(exc, OSError):
            self.missed(exc)
        else:
            loop.default_exception_handler(context)


def _limit() -> str:
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return ""
    return f" (RLIMIT_NOFILE of this process is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]})"
