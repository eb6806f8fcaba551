"""One way to serve an app and to be its client, on every server the library is tested with."""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import httpx
import hypercorn.asyncio
import hypercorn.config
import pytest
import uvicorn
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server as GranianServer
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websockets_connect
from websockets.exceptions import ConnectionClosed as PeerConnectionClosed
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from wsdeco import Close, ConnectionClosed, DisconnectReason, Unknown, testing
from wsdeco.testing import HandshakeRefused

WAIT: Final = 30.0
"""Seconds of real time after which a test that waits in vain fails."""

BACKLOG: Final = 512
"""Connections that may wait to be accepted."""

T = TypeVar("T")


async def soon(awaitable: Awaitable[T]) -> T:
    """Await what has to come soon."""
    async with asyncio.timeout(WAIT):
        return await awaitable


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 - the event is what is missing
            await asyncio.sleep(0.001)


class Peer(Protocol):
    """The client's end of one connection."""

    @property
    def subprotocol(self) -> str | None: ...
    @property
    def headers(self) -> list[tuple[str, str]]: ...
    async def send(self, data: str | bytes) -> None: ...
    async def receive(self) -> str | bytes: ...
    async def close(self, code: int = 1000, reason: str = "") -> None: ...
    async def drop(self) -> None: ...


class Server(Protocol):
    """A server that runs.

    Attributes:
        port: Its TCP port; 0 in memory.
    """

    port: int

    def connect(
        self, path: str, *, headers: Mapping[str, str] | None = None, subprotocols: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Peer]: ...

    def http(self) -> httpx.AsyncClient:
        """Return a client for plain HTTP requests."""
        ...

    async def stop(self) -> None:
        """Shut down as an operator's signal does."""


@dataclass(frozen=True)
class Stack:
    """A server, and where what it does differs from the others.

    Attributes:
        name: Its name.
        serve: Runs an app in the loop of the test.
        shows_close: Tells the app the code of the peer's close frame; otherwise it is a lost transport.
        shows_close_text: Tells the app the text of the peer's close frame.
        accept_headers: Sends the app's header fields with the 101.
        tells_early_loss: Tells the app of a client that leaves before the upgrade.
        aborts: Lets the app drop a peer that does not read.
        ends_with_connections: It ends while connections are open.
        shuts_down_1012: Its own shutdown reaches clients as 1012, and hooks as `Close(1012, by="server")`.
    """

    name: str
    serve: Callable[[ASGIApp], AbstractAsyncContextManager[Server]]
    shows_close: bool = True
    shows_close_text: bool = True
    accept_headers: bool = True
    tells_early_loss: bool = True
    aborts: bool = True
    ends_with_connections: bool = True
    shuts_down_1012: bool = True
    on_network: bool = True

    def peer_closed(self, code: int, text: str = "") -> DisconnectReason:
        """Return the reason that a hook gets for this close frame of the peer."""
        if not self.shows_close:
            return Unknown()
        return Close(code, text if self.shows_close_text else "", by="client")


def skip_unless_it_ends(stack: Stack) -> None:
    """Skip a test of the end of a server where that waits for its connections."""
    if not stack.ends_with_connections:
        pytest.skip(f"on this Python {stack.name} waits for its connections to end by themselves")


class SocketPeer:
    """A client of the `websockets` library."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    @property
    def subprotocol(self) -> str | None:
        return self.connection.subprotocol

    @property
    def headers(self) -> list[tuple[str, str]]:
        assert self.connection.response is not None
        return [(name.lower(), value) for name, value in self.connection.response.headers.raw_items()]

    async def send(self, data: str | bytes) -> None:
        try:
            await self.connection.send(data)
        except PeerConnectionClosed as exc:
            raise ConnectionClosed(peer_reason(exc)) from exc

    async def receive(self) -> str | bytes:
        try:
            async with asyncio.timeout(WAIT):
                return await self.connection.recv()
        except PeerConnectionClosed as exc:
            raise ConnectionClosed(peer_reason(exc)) from exc

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self.connection.close(code, reason)

    async def drop(self) -> None:
        reset(self.connection.transport)
        await self.connection.wait_closed()


def reset(transport: asyncio.BaseTransport) -> None:
    """End a TCP connection with RST."""
    opened: socket.socket = transport.get_extra_info("socket")
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert isinstance(transport, asyncio.WriteTransport)
    transport.abort()


def peer_reason(exc: PeerConnectionClosed) -> DisconnectReason:
    if exc.rcvd is None:
        return Unknown()
    return Close(exc.rcvd.code, exc.rcvd.reason, by="client" if exc.rcvd_then_sent is False else "server")


class SocketServer:
    """A server on loopback."""

    def __init__(self, port: int, stop: Callable[[], Any]) -> None:
        self.port = port
        self._stop = stop

    @asynccontextmanager
    async def connect(
        self, path: str, *, headers: Mapping[str, str] | None = None, subprotocols: Sequence[str] = ()
    ) -> AsyncGenerator[Peer]:
        offered = [Subprotocol(name) for name in subprotocols]
        try:
            connection = await websockets_connect(
                f"ws://127.0.0.1:{self.port}{path}",
                additional_headers=dict(headers or {}),
                subprotocols=offered or None,
                compression=None,
                ping_interval=None,
                proxy=None,
                max_size=None,
                open_timeout=WAIT,
                close_timeout=WAIT,
            )
        except InvalidStatus as exc:
            response = exc.response
            fields = {name.lower(): value for name, value in response.headers.raw_items()}
            raise HandshakeRefused(response.status_code, fields, bytes(response.body)) from None
        async with connection:
            yield SocketPeer(connection)

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=WAIT)

    async def stop(self) -> None:
        await self._stop()


def listening_socket() -> socket.socket:
    opened = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    opened.setblocking(False)
    return opened


class PromptServer(uvicorn.Server):
    """Stops when it is told, where uvicorn looks at a flag every tenth of a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.told.wait()


def uvicorn_serve(ws: Any, **options: Any) -> Callable[[ASGIApp], AbstractAsyncContextManager[Server]]:
    @asynccontextmanager
    async def serve(app: ASGIApp) -> AsyncGenerator[Server]:
        config = uvicorn.Config(app, ws=ws, log_config=None, lifespan="on", **options)
        server = PromptServer(config)
        listener = listening_socket()
        task = asyncio.create_task(server.serve([listener]))

        async def stop() -> None:
            server.told.set()
            await task

        try:
            async with asyncio.timeout(WAIT):
                while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
                    await asyncio.sleep(0.001)
            yield SocketServer(listener.getsockname()[1], stop)
        finally:
            if not task.done():
                await stop()

    return serve


@asynccontextmanager
async def hypercorn_serve(app: ASGIApp) -> AsyncGenerator[Server]:
    config = hypercorn.config.Config()
    listener = listening_socket()
    port = listener.getsockname()[1]
    config.bind = [f"fd://{listener.detach()}"]
    config.backlog = BACKLOG
    # Its time for connections to end by themselves; then their tasks are cancelled.
    config.graceful_timeout = 0.1
    # It is also how long hypercorn holds on to a connection whose client has vanished.
    config.keep_alive_timeout = 1.0
    config.shutdown_timeout = WAIT
    config.errorlog = logging.getLogger("hypercorn.error")
    ignore_cancelled_streams(asyncio.get_running_loop())
    ended = asyncio.Event()
    trigger: Any = ended.wait
    framework: Any = app
    serve: Any = getattr(hypercorn.asyncio, "serve")  # noqa: B009 - its type is only partially known
    task: asyncio.Task[None] = asyncio.create_task(serve(framework, config, shutdown_trigger=trigger))

    async def stop() -> None:
        ended.set()
        await task

    try:
        await wait_listening(port, task)
        yield SocketServer(port, stop)
    finally:
        if not task.done():
            await stop()


def ignore_cancelled_streams(loop: asyncio.AbstractEventLoop) -> None:
    """Hide what Python 3.11 (not 3.12) reports when a server cancels the task of a stream, as hypercorn does."""
    handler = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        ours = isinstance(context.get("exception"), asyncio.CancelledError)
        if ours and context["message"].startswith("Exception in callback StreamReaderProtocol."):
            return
        if handler is None:
            loop.default_exception_handler(context)
        else:
            handler(loop, context)

    loop.set_exception_handler(handle)


@asynccontextmanager
async def granian_serve(app: ASGIApp) -> AsyncGenerator[Server]:
    with listening_socket() as probe:
        port = probe.getsockname()[1]
    running: set[object] = set()

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        call = object()
        if scope["type"] == "websocket":
            running.add(call)
        try:
            await app(scope, receive, send)
        finally:
            running.discard(call)

    server: Any = GranianServer(
        counted,
        address="127.0.0.1",
        port=port,
        interface=Interfaces.ASGI,
        backlog=BACKLOG,
        log_enabled=False,
        log_level=LogLevels.critical,
    )
    task = asyncio.create_task(server.serve())

    async def stop() -> None:
        # Once granian shuts down its receive() never returns: what is about to end gets the time for it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                while running:  # noqa: ASYNC110 - a poll of a fifth of a second is simpler than an event
                    await asyncio.sleep(0.001)
        server.stop()
        await task

    try:
        await wait_listening(port, task)
        yield SocketServer(port, stop)
    finally:
        if not task.done():
            await stop()
        close_reserving_socket(port)


def close_reserving_socket(port: int) -> None:
    """Close the socket that granian binds on Linux to reserve its port, and forgets: it does not listen."""
    for entry in Path("/dev/fd").iterdir():
        descriptor = int(entry.name)
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as found:
                ours = found.family is socket.AF_INET and found.getsockname()[1] == port
                if not ours or found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    continue
                try:
                    found.getpeername()
                except OSError:
                    os.close(descriptor)


async def wait_listening(port: int, task: "asyncio.Task[Any]") -> None:
    async with asyncio.timeout(WAIT):
        while not task.done():
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(0.005)


class MemoryServer:
    """No server at all: `wsdeco.testing`, and the lifespan that a server runs around it."""

    port = 0

    def __init__(self, app: ASGIApp) -> None:
        self.stopped = False
        self._app = app
        self._state: dict[str, Any] = {}
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        self._lifespan = asyncio.ensure_future(app(scope, self._events.get, self._answers.put))

    def connect(
        self, path: str, *, headers: Mapping[str, str] | None = None, subprotocols: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Peer]:
        app = self._with_state
        return testing.connect(app, path, headers=headers or {}, subprotocols=subprotocols, timeout=WAIT)

    def http(self) -> httpx.AsyncClient:
        transport: Any = httpx.ASGITransport(app=self._with_state)
        return httpx.AsyncClient(transport=transport, base_url="http://testserver")

    async def start(self) -> None:
        await self._step("lifespan.startup")

    async def stop(self) -> None:
        self.stopped = True
        await self._step("lifespan.shutdown")
        await self._lifespan

    async def _step(self, kind: str) -> None:
        await self._events.put({"type": kind})
        async with asyncio.timeout(WAIT):
            answer = await self._answers.get()
        assert answer["type"] == f"{kind}.complete", answer

    async def _with_state(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "state": dict(self._state)}, receive, send)


@asynccontextmanager
async def memory_serve(app: ASGIApp) -> AsyncGenerator[Server]:
    server = MemoryServer(app)
    await server.start()
    try:
        yield server
    finally:
        if not server.stopped:
            await server.stop()


MEMORY: Final = Stack("memory", memory_serve, on_network=False)
SANSIO: Final = Stack("uvicorn-websockets", uvicorn_serve("websockets-sansio"))
WSPROTO: Final = Stack("uvicorn-wsproto", uvicorn_serve("wsproto"))
HYPERCORN: Final = Stack(
    "hypercorn",
    hypercorn_serve,
    shows_close=False,
    shows_close_text=False,
    aborts=False,
    # asyncio's Server.wait_closed(), which hypercorn awaits before anything else, waits for the connections since 3.12.
    ends_with_connections=sys.version_info < (3, 12),
)
GRANIAN: Final = Stack(
    "granian",
    granian_serve,
    shows_close_text=False,
    accept_headers=False,
    tells_early_loss=False,
    aborts=False,
    shuts_down_1012=False,
)
DIRECT: Final = Stack("direct", uvicorn_serve("wsdeco.protocol:WebSocketProtocol", http="wsdeco.http:HttpProtocol"))
STACKS: Final = (MEMORY, DIRECT, SANSIO, WSPROTO, HYPERCORN, GRANIAN)
