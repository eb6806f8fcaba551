"""Signal handlers of this process alone: a child that a hook forks does what it would do without a server.

A signal may reach such a child before Python runs there, which drops what has arrived so far: a child that is
terminated at once would live on. So signals wait while a process forks, and the child has the handlers of before when
they are delivered.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, TypeAlias

__all__ = ["ENDING_SIGNALS", "SignalHandler", "handle_signal"]

ENDING_SIGNALS: Final[list[signal.Signals]] = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
]
"""What ends a server: Ctrl-C, `kill`, the end of its terminal, and Ctrl-Break on Windows."""

SignalHandler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None
"""What `signal.signal` takes and returns."""


class _Forking(threading.local):
    mask: set[int | signal.Signals] | None = None
    """The signals that were blocked before; `None` if none of those here is handled."""


_forking: Final = _Forking()


class _Handler:
    def __init__(self, call: Callable[[int, FrameType | None], object]) -> None:
        self._call = call
        self.before: SignalHandler = signal.SIG_DFL

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._call(number, frame)


def handle_signal(number: int, handler: Callable[[int, FrameType | None], object]) -> SignalHandler:
    """Have a signal call `handler` in this process, and do in a child that a hook forks what it did before.

    Args:
        number: One of `ENDING_SIGNALS`.
        handler: Called in the main thread.

    Returns:
        What it did before, for `signal.signal`.
    """
    ours = _Handler(handler)
    found = signal.signal(number, ours)
    ours.before = signal.SIG_DFL if found is None else found
    return ours.before


def _block() -> None:
    is_any_handled = any(isinstance(signal.getsignal(number), _Handler) for number in ENDING_SIGNALS)
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS) if is_any_handled else None


def _unblock() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)
        _forking.mask = None


def _restore() -> None:
    for number in ENDING_SIGNALS:
        before: Any = signal.getsignal(number)
        while isinstance(before, _Handler):
            before = before.before
            signal.signal(number, before)
    _unblock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_restore)
