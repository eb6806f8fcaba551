"""What the connections of one server share: turns of the loop, the flush at the end of each, and timers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary, ref

from uvicorn.server import ServerState

from wsdeco.clock import Clock
from wsdeco.transport.deadlines import HttpDeadlines
from wsdeco.transport.departures import Departures
from wsdeco.transport.keepalive import Keepalive
from wsdeco.transport.reads import READ_SIZE

__all__ = ["MANY", "MOST_AT_ONCE", "Shared", "shared_of"]

MOST_AT_ONCE: Final = 2000
"""Connections that are flushed in one turn of the loop, which other connections wait for. About 10 ms."""


MANY: Final = 64
"""Connections that one message goes to whose flush, of 0.3 ms and more, is worth a further turn of the loop."""


_TURNS_AT_ONCE: Final = 8
"""Connections with more to do than fits a turn of the loop that go on in the same one. About 10 ms."""


_ENDINGS_AT_ONCE: Final = 64
"""Ends of connections that are told in one turn of the loop; each wakes a task. About 3 ms."""


class Flushed(Protocol):
    """A connection with an outbox."""

    def flush(self) -> None:
        """Write the outbox."""


class Waiting(Protocol):
    """A connection with more to do than fits a turn of the loop."""

    def go_on(self) -> None:
        """Do what has waited for a turn of the loop."""


class Shared:
    """What they share; one per server.

    Attributes:
        loop: The event loop of the server.
        task_free_start: What takes connections without a task to call the app in; `None` until there is one.
        departures: What notices the end of peers that are not read.
        small_buffer: What is read into of connections with small reads.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.task_free_start: Callable[[Any, Any], bool] | None = None
        self._written_to: list[Flushed] = []
        self._waiting: deque[Waiting] = deque()
        self._is_giving = False
        self._endings = 0
        self._ending: deque[Callable[[], None]] = deque()
        self._keepalives: dict[tuple[float, float | None], Keepalive] = {}
        self._http_deadlines: HttpDeadlines | None = None
        self.departures: Departures = Departures(loop)
        self.small_buffer: bytearray = bytearray(READ_SIZE)

    def flush_later(self, connection: Flushed) -> None:
        """Flush `connection` in the next turn of the loop, in one callback with all others."""
        if not self._written_to:
            self.loop.call_soon(self._flush)
        self._written_to.append(connection)

    def flush_all_later(self, connections: list[Flushed]) -> None:
        """Do what `flush_later` does for several connections; a turn later, if they are many.

        Who is ready by then does not wait for the long flush, and what that broadcasts goes out with it. Without this
        turn half of the messages are read just before a flush and broadcast just behind it, and the next flush is
        theirs alone: twice the writes for the same messages.
        """
        if len(connections) < MANY:
            self._queue(connections)
        else:
            self.loop.call_soon(self._queue, connections)

    def _queue(self, connections: list[Flushed]) -> None:
        if connections and not self._written_to:
            self.loop.call_soon(self._flush)
        self._written_to += connections

    def _flush(self) -> None:
        written_to, self._written_to = self._written_to, []
        if len(written_to) > MOST_AT_ONCE:
            self._written_to = written_to[MOST_AT_ONCE:]
            del written_to[MOST_AT_ONCE:]
            self.loop.call_soon(self._flush)
        for connection in written_to:
            connection.flush()

    def wait(self, connection: Waiting) -> None:
        """Let `connection` go on in a later turn of the loop, when those have that came before."""
        self._waiting.append(connection)
        if not self._is_giving:
            self._is_giving = True
            self.loop.call_soon(self._give_shared)

    def _give_shared(self) -> None:
        waiting = self._waiting
        for _ in range(min(len(waiting), _TURNS_AT_ONCE)):
            waiting.popleft().go_on()
        self._is_giving = bool(waiting)
        if waiting:
            self.loop.call_soon(self._give_shared)

    def end(self, tell: Callable[[], None]) -> None:
        """Call `tell`, which ends a connection: at once, or in a later turn of the loop, behind those that came before.

        Otherwise thousands of peers that leave at once would make all others wait.
        """
        if self._endings == _ENDINGS_AT_ONCE or self._ending:
            self._ending.append(tell)
            return
        if not self._endings:
            self.loop.call_soon(self._end_more)
        self._endings += 1
        tell()

    def _end_more(self) -> None:
        ending = self._ending
        self._endings = min(len(ending), _ENDINGS_AT_ONCE)
        if self._endings:
            self.loop.call_soon(self._end_more)
        for _ in range(self._endings):
            ending.popleft()()

    def keepalive(self, clock: Clock, interval: float, timeout: float | None) -> Keepalive:
        """Return what pings every `interval` seconds and judges after `timeout` seconds."""
        keepalive = self._keepalives.get((interval, timeout))
        if keepalive is None:
            keepalive = self._keepalives[interval, timeout] = Keepalive(clock, interval, timeout)
        return keepalive

    def http_deadlines(self, clock: Clock | None) -> HttpDeadlines:
        """Return the deadlines of HTTP connections, on `clock` if they are the first, by default on the loop's."""
        if self._http_deadlines is None:
            self._http_deadlines = HttpDeadlines(self.loop if clock is None else clock)
        return self._http_deadlines


_shared: Final[WeakKeyDictionary[ServerState, Shared]] = WeakKeyDictionary()

_newest: Final[list[tuple[Callable[[], ServerState | None], Callable[[], Shared | None]]]] = [
    (lambda: None, lambda: None)
]
"""Of those above, the one that was asked for last, and its key: most processes have one server."""


def shared_of(server_state: ServerState, loop: asyncio.AbstractEventLoop | None) -> Shared:
    """Return what the connections of `server_state` share; `loop` is the running one, if not given."""
    known, newest = _newest[0]
    shared = newest() if known() is server_state else None
    if shared is None:
        shared = _shared.get(server_state)
        if shared is None:
            shared = _shared[server_state] = Shared(asyncio.get_running_loop() if loop is None else loop)
        _newest[0] = ref(server_state), ref(shared)
    return shared
