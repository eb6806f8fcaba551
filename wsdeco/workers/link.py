"""What a worker process and its parent say to each other, and all that the worker is told."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Final, Literal

from wsdeco.server.foreground import TERMINAL_SIGNALS, end_process, stacks
from wsdeco.server.listen import Listeners
from wsdeco.server.orphans import leave_to_link
from wsdeco.server.serving import Server
from wsdeco.server.signals import handle_signal

__all__ = ["END", "FOLLOW", "PING", "RETIRE", "STUCK", "WARNED", "Link", "Order"]

_WARNING: Final = 4.5
"""Seconds in which another worker has to have warned the clients of all: less than the bound of the drain."""

_ON_THE_WAY: Final = 0.5
"""Seconds in which what that has broadcast arrives."""

Order = Literal["end", "follow", "warned", "retire", "ping", "stuck"]
"""What a parent says."""

END: Final = "end"
FOLLOW: Final = "follow"
WARNED: Final = "warned"
RETIRE: Final = "retire"
PING: Final = "ping"
STUCK: Final = "stuck"


class Link:
    """A worker's end of the pipe to its parent.

    It reads there that it is to end, also when its parent is no more, to make way for another worker, or to show that
    its event loop runs; it writes that it serves, why it cannot, and how long its end may take.

    Attributes:
        number: Which of the workers it is, from 1 on; no other one that lives has it.
        listeners: The sockets of all workers.
        rooms_are_one: What one worker broadcasts reaches the clients of all.
    """

    rooms_are_one: bool = False

    def __init__(self, connection: Connection, number: int, listeners: Listeners) -> None:
        self.number = number
        self.listeners = listeners
        self._connection = connection
        self._asked_to_be_replaced = False

    def obey(self, server: Server, end: Callable[[], None]) -> None:
        """Do what the parent says, in a thread, from now on.

        Args:
            server: The server of this process.
            end: Ends it, from any thread.
        """
        self._follows = False
        self._warned = asyncio.Event()
        threading.Thread(target=self._obey, args=(server, end), name="wsdeco-link", daemon=True).start()
        leave_to_link()

    def _obey(self, server: Server, end: Callable[[], None]) -> None:
        # EOFError and OSError say that the parent is no more.
        with suppress(EOFError, OSError):
            while True:
                order: Order = self._connection.recv()
                match order:
                    case "ping":
                        self._call_in(server, partial(self._send, "alive", None))
                    case "warned":
                        self._call_in(server, self._warned.set)
                    case "stuck":  # pragma: no cover - the process ends at once, and what it has run is lost
                        end_process(f"{stacks()}the event loop of this worker process hangs: it is replaced", 1)
                    case _:
                        server.is_replaced = order == RETIRE
                        self._follows = order == FOLLOW
                        end()
        end()

    @staticmethod
    def _call_in(server: Server, function: Callable[[], object]) -> None:
        loop = server.loop
        # The loop is closed at the end.
        with suppress(RuntimeError):
            if loop is not None:
                loop.call_soon_threadsafe(function)

    async def warn(self, function: Callable[[], Awaitable[object]]) -> None:
        """Call what warns the clients of the app, or wait until another worker has, if that reaches those of all."""
        if not (self._follows and self.rooms_are_one):
            try:
                await function()
            finally:
                self._send("warned", None)
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._warned.wait(), _WARNING)
            await asyncio.sleep(_ON_THE_WAY)

    @staticmethod
    def take_signals() -> None:
        """Let the parent answer what a terminal sends to the whole process group, from now on."""
        for number in TERMINAL_SIGNALS:
            # A handler, since programs that the worker starts inherit SIG_IGN but no handler.
            handle_signal(number, lambda _number, _frame: None)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINAL_SIGNALS)

    def ready(self) -> None:
        """Tell that the worker serves."""
        self._send("ready", None)

    def failed(self, why: str) -> None:
        """Tell why the worker cannot serve."""
        self._send("failed", why)

    def ending(self, seconds: float) -> None:
        """Tell that the worker ends, and how long that may take."""
        self._send("ending", seconds)

    def be_replaced(self) -> None:
        """Ask for another worker in the place of this one; once is enough."""
        if not self._asked_to_be_replaced:
            self._asked_to_be_replaced = True
            self._send("replace", None)

    def _send(self, kind: str, value: object) -> None:
        # The parent may have died.
        with suppress(OSError):
            self._connection.send((kind, value))
