"""The options of the wire hold on wsdeco's own protocol whoever stands between it and the route."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed as PeerConnectionClosed

from tests.support.middleware import Looking
from tests.support.raw import Opcode, upgraded
from tests.support.recording import Journal, Recorder
from tests.support.stacks import DIRECT, soon, uvicorn_serve
from wsdeco import App, Close, Timeout, handle_socket
from wsdeco.config import ConnectionConfig
from wsdeco.protocol import WebSocketProtocol
from wsdeco.testing import ManualClock

pytestmark = pytest.mark.usefixtures("no_errors_logged")


MakeApp = Callable[[Callable[[], Recorder], dict[str, Any]], ASGIApp]


def behind_middleware(make: Callable[[], Recorder], limits: dict[str, Any]) -> ASGIApp:
    app = App(middleware=[Middleware(Looking)])
    app.add("/ws", Recorder, factory=lambda headers: make(), **limits)
    return app


def around_the_app(make: Callable[[], Recorder], limits: dict[str, Any]) -> ASGIApp:
    app = App()
    app.add("/ws", Recorder, factory=lambda headers: make(), **limits)
    return Looking(app)


def by_handle_socket(make: Callable[[], Recorder], limits: dict[str, Any]) -> ASGIApp:
    async def endpoint(websocket: WebSocket) -> None:
        await handle_socket(websocket, make(), ConnectionConfig(**limits))

    return Starlette(routes=[WebSocketRoute("/ws", endpoint)])


def by_handle_socket_after_accept(make: Callable[[], Recorder], limits: dict[str, Any]) -> ASGIApp:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await handle_socket(websocket, make(), ConnectionConfig(**limits))

    return Starlette(routes=[WebSocketRoute("/ws", endpoint)])


BEFORE_ACCEPT = [behind_middleware, around_the_app, by_handle_socket]
WAYS = [*BEFORE_ACCEPT, by_handle_socket_after_accept]

before_accept = pytest.mark.parametrize("way", BEFORE_ACCEPT)
each_way = pytest.mark.parametrize("way", WAYS)


class Echo(Recorder):
    async def on_message(self, message: str | bytes) -> str | bytes:
        return message


@before_accept
@pytest.mark.parametrize("compression", [True, False])
async def test_compression_is_that_of_the_route(way: MakeApp, compression: bool) -> None:
    app = way(lambda: Echo(Journal()), {"compression": compression})
    async with DIRECT.serve(app) as server:
        url = f"ws://127.0.0.1:{server.port}/ws"
        async with connect(url, proxy=None) as peer:
            assert [type(each).__name__ for each in peer.protocol.extensions] == ["PerMessageDeflate"] * compression
            await peer.send("x" * 1000)
            assert await soon(peer.recv()) == "x" * 1000


@each_way
async def test_keepalive_is_that_of_the_route(way: MakeApp) -> None:
    app = way(lambda: Echo(Journal()), {"ping_interval": 0.02, "ping_timeout": None})
    async with DIRECT.serve(app) as server, upgraded(server, "/ws") as peer:
        found = await soon(peer.frame())
        assert found is not None
        assert found.opcode == Opcode.PING


@before_accept
async def test_the_largest_message_is_that_of_the_route_and_what_came_before_is_answered(way: MakeApp) -> None:
    journal = Journal()

    class Slow(Recorder):
        async def on_message(self, message: str | bytes) -> str | bytes:
            await asyncio.sleep(0.05)
            return message

    app = way(lambda: Slow(journal), {"max_message_size": 1000})
    async with DIRECT.serve(app) as server:
        async with connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None, compression=None) as peer:
            await peer.send("x" * 1000)
            # More than the bound arrives nowhere: the length in the header decides.
            await peer.send("x" * 5_000_000)
            assert await soon(peer.recv()) == "x" * 1000
            with pytest.raises(PeerConnectionClosed) as caught:
                await soon(peer.recv())
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
        assert await journal.next() == "connect"
        reason = await journal.next()
        assert (reason.code, reason.by) == (1009, "server")


class OnClock:
    """What a test kit does: the deadlines of each connection are on its clock."""

    def __init__(self, app: ASGIApp, clock: ManualClock) -> None:
        self.app = app
        self.clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "wsdeco.clock": self.clock}, receive, send)


@each_way
async def test_a_ping_is_activity(way: MakeApp) -> None:
    clock = ManualClock()

    class Protocol(WebSocketProtocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options, clock=clock)

    journal = Journal()
    app = way(lambda: Echo(journal), {"idle_timeout": 60, "ping_interval": None})
    serve = uvicorn_serve(Protocol, http="wsdeco.http:HttpProtocol")
    async with serve(OnClock(app, clock)) as server:
        async with connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None, ping_interval=None) as peer:
            assert await journal.next() == "connect"
            for _ in range(3):
                await clock.advance(40)
                await soon(await peer.ping())
            assert journal.ended()
            await clock.advance(60)
            with pytest.raises(PeerConnectionClosed):
                await soon(peer.recv())
        assert await journal.next() == Timeout("idle_timeout of 60 s is over", "idle_timeout")


@each_way
async def test_a_server_that_ends_under_a_busy_hook_is_the_one_that_closes(way: MakeApp) -> None:
    journal = Journal()

    class Busy(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            self.journal.add(message)
            try:
                await asyncio.Event().wait()
            finally:
                self.journal.add("cancelled")

    # Not the 30 s that a hook has whose peer has gone.
    app = way(lambda: Busy(journal), {"close_timeout": 0.2, "disconnect_grace": 30})
    async with DIRECT.serve(app) as server:
        async with connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None) as peer:
            await peer.send("go")
            assert await journal.take(2) == ["connect", "go"]
            await soon(server.stop())
            with pytest.raises(PeerConnectionClosed) as caught:
                await soon(peer.recv())
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
        assert await journal.next() == "cancelled"
        reason = await journal.next()
        assert (reason.code, reason.by) == (1012, "server")


@each_way
async def test_a_client_that_closes_with_a_code_of_servers_is_the_client(way: MakeApp) -> None:
    journal = Journal()
    async with DIRECT.serve(way(lambda: Echo(journal), {})) as server:
        for code in (1002, 1012):
            async with connect(f"ws://127.0.0.1:{server.port}/ws", proxy=None) as peer:
                await peer.close(code, "mine")
            assert await journal.take(2) == ["connect", Close(code, "mine", by="client")]
