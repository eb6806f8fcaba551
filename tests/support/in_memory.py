"""A transport and a clock in memory, to drive a protocol of uvicorn's without a socket."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from wsdeco.clock import Clock
from wsdeco.protocol import WebSocketProtocol

REQUEST = (
    b"GET /chat?x=1 HTTP/1.1\r\nhost: example.com\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def request(*lines: str) -> bytes:
    """Return a handshake request with further header lines."""
    return REQUEST[:-2] + b"".join(line.encode("latin-1") + b"\r\n" for line in lines) + b"\r\n"


class FakeTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._number = itertools.count()
        self._timers: list[tuple[float, int, FakeTimer]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._timers, (when, next(self._number), timer))
        return timer

    @property
    def pending(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self._timers)

    def advance(self, seconds: float) -> None:
        """Move time on, running every timer at its moment."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now = max(self.now, self._timers[0][0])
            self._run_next()
        self.now = until

    def stall(self, seconds: float) -> None:
        """Move time on as a blocked loop does: what was due meanwhile runs late, at the end."""
        self.now += seconds
        while self._timers and self._timers[0][0] <= self.now:
            self._run_next()

    def _run_next(self) -> None:
        timer = heapq.heappop(self._timers)[2]
        if not timer.cancelled:
            timer.callback()


class FakeTransport(asyncio.Transport):
    """A transport whose peer is the test."""

    def __init__(self, *, tls: bool = False) -> None:
        super().__init__({"sslcontext": True} if tls else {})
        self.tls = tls
        self.written: list[bytes] = []
        self.protocol: asyncio.Protocol | None = None
        self.paused = False
        self.closing = False
        self.aborted = False
        self.lost = False
        self.wrote_eof = False
        self.stuck = False
        self.written_in_vain = 0
        self.waiting: list[bytes] = []

    @property
    def sent(self) -> bytes:
        return b"".join(self.written)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken = self.sent
        self.written.clear()
        return taken

    # What the protocol calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closing or not data:
            self.written_in_vain += 1
            return
        self.written.append(bytes(data))

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast(asyncio.Protocol, protocol)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.stuck:
                asyncio.get_running_loop().call_soon(self.lose)

    def abort(self) -> None:
        self.closing = self.aborted = True
        asyncio.get_running_loop().call_soon(self.lose)

    def can_write_eof(self) -> bool:
        return not self.tls

    def write_eof(self) -> None:
        assert not self.wrote_eof
        self.wrote_eof = True

    def get_write_buffer_size(self) -> int:
        return len(self.sent) if self.stuck else 0

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False
        asyncio.get_running_loop().call_soon(self._deliver)

    # What the peer does.

    def feed(self, data: bytes) -> None:
        self.waiting.append(data)
        self._deliver()

    def _deliver(self) -> None:
        while self.waiting and not self.paused and not self.closing and self.protocol is not None:
            self.protocol.data_received(self.waiting.pop(0))

    def feed_eof(self) -> None:
        assert self.protocol is not None
        if not self.closing and not self.protocol.eof_received():
            self.close()

    def lose(self, exc: Exception | None = None) -> None:
        self.closing = True
        if not self.lost and self.protocol is not None:
            self.lost = True
            self.protocol.connection_lost(exc)

    def fill(self) -> None:
        """Stop reading, as a peer."""
        assert self.protocol is not None
        self.stuck = True
        self.protocol.pause_writing()

    def empty(self) -> None:
        """Read again, as a peer."""
        assert self.protocol is not None
        self.stuck = False
        self.protocol.resume_writing()
        if self.closing:
            self.lose()


async def settle(turns: int = 12) -> None:
    """Let everything run that can run without the test's doing."""
    for _ in range(turns):
        await asyncio.sleep(0)


def make_config(app: Any, **options: Any) -> Config:
    """Return a configuration without pings, compression and default headers."""
    defaults: dict[str, Any] = {
        "ws_ping_interval": None,
        "ws_per_message_deflate": False,
        "log_config": None,
        "proxy_headers": False,
        "server_header": False,
        "date_header": False,
        "lifespan": "off",
        "interface": "asgi3",
    }
    config = Config(app, **(defaults | options))
    config.load()
    return config


class Session:
    """One connection in memory: the protocol, its transport, its clock."""

    def __init__(
        self,
        app: Any,
        *,
        protocol: Any = WebSocketProtocol,
        tls: bool = False,
        state: ServerState | None = None,
        **options: Any,
    ) -> None:
        self.state = ServerState() if state is None else state
        self.clock = FakeClock()
        self.transport = FakeTransport(tls=tls)
        self.config = make_config(app, **options)
        arguments: dict[str, Any] = {
            "config": self.config,
            "server_state": self.state,
            "app_state": {"from": "lifespan"},
        }
        if issubclass(protocol, WebSocketProtocol):
            arguments["clock"] = cast(Clock, self.clock)
        self.protocol = protocol(**arguments)
        self.transport.protocol = self.protocol
        self.protocol.connection_made(self.transport)

    async def feed(self, *pieces: bytes) -> bytes:
        """Feed pieces, one turn apart, and return what was written."""
        for piece in pieces:
            self.transport.feed(piece)
            await settle()
        return self.transport.take()

    async def open(self, head: bytes = REQUEST) -> None:
        """Open the connection with an application that accepts."""
        assert (await self.feed(head)).startswith(b"HTTP/1.1 101 ")

    async def advance(self, seconds: float) -> bytes:
        self.clock.advance(seconds)
        await settle()
        return self.transport.take()

    async def end(self) -> None:
        """Lose the transport and wait for the application."""
        self.transport.lose()
        await settle()
        for task in list(self.state.tasks):
            task.cancel()
        await settle()
        assert self.protocol not in self.state.connections
        assert self.transport.written_in_vain == 0
        assert not self.state.tasks
        assert self.clock.pending == 0
