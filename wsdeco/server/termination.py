"""SIGTERM in a program that does not look for it: servers beside its main thread end before it does."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from wsdeco.reasons import ServerError
from wsdeco.server.serving import Server
from wsdeco.server.signals import handle_signal

__all__ = ["ended_by_signals"]

logger: Final = logging.getLogger("wsdeco")

_NUMBERS: Final[list[int]] = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

_servers: Final[set[Server]] = set()


@contextmanager
def ended_by_signals(server: Server) -> Generator[None]:
    """End `server` in the block before a SIGTERM or SIGHUP ends the process, unless the program has its own handler.

    Signals can be handled in the main thread alone: nothing is done for a server that another one starts.
    """
    _servers.add(server)
    if threading.current_thread() is threading.main_thread():
        for number in _NUMBERS:
            if signal.getsignal(number) is signal.SIG_DFL:
                handle_signal(number, _on_signal)
    try:
        yield
    finally:
        _servers.discard(server)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    # A second one ends the process at once. The main thread goes on meanwhile: clients may live in it, and a lock that
    # the server needs.
    signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_all, args=(number,), name="wsdeco-termination", daemon=True).start()


def _end_all(number: int) -> None:
    for server in list(_servers):
        try:
            server.end()
        except ServerError as exc:
            logger.warning("%s", exc)
    os.kill(os.getpid(), number)
