"""Rooms: who is a member when, what members get and in which order, on every server."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from tests.recording import Journal, refusal, take_errors
from tests.stacks import Peer, Server, Stack, soon, until
from wsdeco import (
    Address,
    App,
    ConnectionClosed,
    DisconnectReason,
    RouteError,
    Sink,
    WebSocketUpgrade,
    handle_socket,
    handle_upgrade,
    websocket_route,
)
from wsdeco.channel import channel_of
from wsdeco.testing import ManualClock, connect


class Chat:
    """An app whose connections join the room "lobby" in `on_connect`, and leave and join as their messages say."""

    def __init__(self, **limits: Any) -> None:
        self.clock = ManualClock()
        self.app = App()
        self.room = self.app.room("lobby")
        self.sinks: list[Sink] = []
        self.left = Journal()
        chat = self

        @self.app.handler("/chat", **limits)
        class Member:
            async def on_connect(self, addr: Address, sink: Sink) -> None:
                self.sink = sink
                chat.sinks.append(sink)
                chat.room.join(sink)

            async def on_message(self, text: str) -> str | None:
                match text:
                    case "leave":
                        chat.room.leave(self.sink)
                    case "join":
                        chat.room.join(self.sink)
                    case _:
                        await chat.room.broadcast(text)
                        return None
                return text

            async def on_disconnect(self, reason: DisconnectReason) -> None:
                chat.left.add((reason, self.sink in chat.room))

    async def joined(self, server: Server, connections: AsyncExitStack, number: int) -> list[Peer]:
        """Return peers that are members of the room."""
        peers = [await connections.enter_async_context(server.connect("/chat")) for _ in range(number)]
        await until(lambda: len(self.room) == number)
        return peers


async def take(peer: Peer, number: int) -> list[str | bytes]:
    return [await peer.receive() for _ in range(number)]


# Members.


async def test_every_member_gets_every_message_in_the_order_of_the_calls(stack: Stack) -> None:
    chat = Chat()
    async with stack.serve(chat.app) as server, AsyncExitStack() as connections:
        peers = await chat.joined(server, connections, 3)
        sent: list[str | bytes] = ["a", b"\x00\xff", "", "grüß Gott", "x" * 200, b"y" * 70_000]
        for data in sent:
            assert await chat.room.broadcast(data) == 3
        for peer in peers:
            assert await take(peer, len(sent)) == sent


async def test_messages_of_members_reach_all_in_one_order(stack: Stack) -> None:
    chat = Chat()
    async with stack.serve(chat.app) as server, AsyncExitStack() as connections:
        peers = await chat.joined(server, connections, 3)
        for number in range(10):
            for name, peer in zip("abc", peers, strict=True):
                await peer.send(f"{name}{number}")
        seen = [await take(peer, 30) for peer in peers]
        assert seen[0] == seen[1] == seen[2]
        assert sorted(map(str, seen[0])) == sorted(f"{name}{number}" for name in "abc" for number in range(10))


async def test_who_leaves_gets_nothing_that_is_sent_afterwards(stack: Stack) -> None:
    chat = Chat()
    async with stack.serve(chat.app) as server, AsyncExitStack() as connections:
        leaver, stayer = await chat.joined(server, connections, 2)
        chat.room.broadcast_nowait("before")
        await leaver.send("leave")
        assert await take(leaver, 2) == ["before", "leave"]
        assert await chat.room.broadcast("without it") == 1
        await leaver.send("join")
        assert await leaver.receive() == "join"
        assert await chat.room.broadcast("again") == 2
        assert await leaver.receive() == "again"
        assert await take(stayer, 3) == ["before", "without it", "again"]


async def test_the_excluded_get_nothing(stack: Stack) -> None:
    chat = Chat()
    async with stack.serve(chat.app) as server, AsyncExitStack() as connections:
        peers = await chat.joined(server, connections, 3)
        first, second, _ = chat.sinks
        assert await chat.room.broadcast("not first", exclude=first) == 2
        assert await chat.app.broadcast("/chat", "not two", exclude=[first, second]) == 1
        assert await chat.room.broadcast("nobody", exclude=chat.room) == 0
        chat.room.broadcast_nowait("not second", exclude={second})
        chat.app.broadcast_nowait("/chat", "end", exclude=iter(()))
        assert await take(peers[0], 2) == ["not second", "end"]
        assert await take(peers[1], 2) == ["not first", "end"]
        assert await take(peers[2], 4) == ["not first", "not two", "not second", "end"]


@pytest.mark.parametrize("ending", ["peer closes", "peer drops", "own close"])
async def test_a_connection_leaves_the_moment_it_ends(stack: Stack, ending: str) -> None:
    chat = Chat()
    async with stack.serve(chat.app) as server, server.connect("/chat") as peer:
        await until(lambda: len(chat.room) == 1)
        match ending:
            case "peer closes":
                await peer.close()
            case "peer drops":
                await peer.drop()
            case _:
                await chat.sinks[0].close()
                assert len(chat.room) == 0
                assert await chat.app.broadcast("/chat", "x") == 0
        _, is_member = await chat.left.next()
        assert not is_member
        assert list(chat.room) == []
        assert await chat.app.broadcast("/chat", "x") == 0
        with pytest.raises(ConnectionClosed):
            chat.room.join(chat.sinks[0])
        chat.room.leave(chat.sinks[0])


async def test_a_connection_leaves_when_the_server_stops(stack: Stack) -> None:
    chat = Chat()
    async with stack.serve(chat.app) as server, AsyncExitStack() as connections:
        await chat.joined(server, connections, 2)
        await server.stop()
        assert len(chat.room) == 0
        assert [is_member for _, is_member in await chat.left.take(2)] == [False, False]


async def test_what_is_sent_before_the_upgrade_follows_it(stack: Stack) -> None:
    app, inside, go = App(), asyncio.Event(), asyncio.Event()

    @app.handler("/ws")
    class Early:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            app.room("lobby").join(sink)
            inside.set()
            await go.wait()

    async def connected(server: Server) -> list[str | bytes]:
        async with server.connect("/ws") as peer:
            return await take(peer, 4)

    async with stack.serve(app) as server:
        client = asyncio.create_task(connected(server))
        await soon(inside.wait())
        assert await app.room("lobby").broadcast("1") == 1
        assert await app.room("lobby").broadcast(b"2") == 1
        # Being authenticated, it is in no room but those that on_connect has chosen.
        assert await app.broadcast("/ws", "nobody") == 0
        go.set()
        assert await app.room("lobby").broadcast("3") == 1
        (member,) = app.room("lobby")
        await until(lambda: channel_of(member).accepted)
        assert await app.broadcast("/ws", "4") == 1
        assert await soon(client) == ["1", b"2", "3", "4"]


@pytest.mark.parametrize("how", ["HTTPException", "bad header", "failure", "connect_timeout", "shut_down"])
async def test_a_refused_handshake_leaves_every_room_and_gets_nothing(
    stack: Stack, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    app, inside, go = App(clock=clock), asyncio.Event(), asyncio.Event()
    sinks: list[Sink] = []

    @app.handler("/ws", connect_timeout=5)
    class Refused:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            sinks.append(sink)
            for name in ("one", "two"):
                app.room(name).join(sink)
            inside.set()
            await go.wait()
            match how:
                case "HTTPException":
                    raise HTTPException(401, "no")
                case "bad header":
                    raise HTTPException(401, headers={"no token": "x"})
                case "failure":
                    raise OSError("on purpose")
                case _:
                    pass

    async with stack.serve(app) as server:
        client = asyncio.create_task(refusal(server, "/ws"))
        await soon(inside.wait())
        assert await app.room("one").broadcast("secret") == 1
        stopping = None
        match how:
            case "connect_timeout":
                await clock.advance(5)
            case "shut_down":
                stopping = asyncio.create_task(app.shut_down())
                await until(lambda: sinks[0].reason is not None)
            case _:
                pass
        go.set()
        refused = await soon(client)
        await until(lambda: len(app.room("one")) == 0)
        assert refused.status == {"HTTPException": 401, "connect_timeout": 503, "shut_down": 503}.get(how, 500)
        assert b"secret" not in refused.body
        assert (len(app.room("two")), await app.broadcast("/ws", "x")) == (0, 0)
        assert channel_of(sinks[0]).rooms == ()
        # What is logged holds on to granian's connection.
        assert bool(take_errors(caplog)) is (how in {"bad header", "failure"})
        if stopping is not None:
            await soon(stopping)


async def test_every_way_to_serve_a_connection_can_join(stack: Stack) -> None:
    app = App()
    room = app.room("lobby")

    class Member:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            room.join(sink)
            await sink.send("joined")

    @app.route("/upgrade")
    async def upgrade(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Member)

    async def socket(websocket: WebSocket) -> None:
        await handle_socket(websocket, Member)

    async def accepted(websocket: WebSocket) -> None:
        await websocket.accept()
        await handle_socket(websocket, Member())

    app.app.router.routes += [
        WebSocketRoute("/socket", socket),
        WebSocketRoute("/accepted", accepted),
        websocket_route("/route", Member),
    ]
    paths = ["/upgrade", "/socket", "/accepted", "/route"]
    async with stack.serve(app) as server, AsyncExitStack() as connections:
        peers = [await connections.enter_async_context(server.connect(path)) for path in paths]
        for peer in peers:
            assert await peer.receive() == "joined"
        assert await room.broadcast("all") == 4
        # Of these, only the endpoint of the app has a room of its own.
        assert await app.broadcast("/upgrade", "one") == 1
        for peer in peers:
            assert await peer.receive() == "all"
        assert await peers[0].receive() == "one"
    await until(lambda: len(room) == 0)


# Routes.


async def test_a_route_is_the_room_of_its_connections(stack: Stack) -> None:
    app, journal = App(), Journal()

    class Silent:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.accept()
            journal.add("accepted")

    app.add("/a/{name}", Silent)
    app.add("/b", Silent)
    async with (
        stack.serve(app) as server,
        server.connect("/a/x") as first,
        server.connect("/a/y") as second,
        server.connect("/b") as other,
    ):
        await journal.take(3)
        assert await app.broadcast("/a/{name}", "to a") == 2
        app.broadcast_nowait("/b", "to b")
        assert [await peer.receive() for peer in (first, second, other)] == ["to a", "to a", "to b"]


async def test_a_replaced_handler_has_the_same_room() -> None:
    app = App()

    def defined(greeting: str) -> type:
        class Greeter:
            async def on_connect(self, addr: Address, sink: Sink) -> None:
                await sink.send(greeting)

        return Greeter

    app.add("/ws", defined("old"))
    async with connect(app, "/ws") as old:
        await old.expect("old")
        app.add("/ws", defined("new"))
        async with connect(app, "/ws") as new:
            await new.expect("new")
            assert await app.broadcast("/ws", "both") == 2
            await old.expect("both")
            await new.expect("both")


async def test_an_unknown_path_is_refused_with_what_was_meant() -> None:
    app = App()
    with pytest.raises(RouteError, match=r"no connections are served on a path '/ws'.*there is none"):
        await app.broadcast("/ws", "x")

    class Silent:
        async def on_message(self, text: str) -> None: ...

    app.add("/news", Silent)
    app.add("/rooms/{room}", Silent)

    @app.route("/page")
    async def page() -> Response:
        return PlainTextResponse("")

    @app.route("/both")
    async def both(upgrade: WebSocketUpgrade | None) -> Response:
        return PlainTextResponse("")

    for path, said in (
        ("/new", "did you mean '/news'"),
        ("/rooms/blue", "did you mean '/rooms/{room}'"),
        ("/page", "'/page': Paths as they are registered: there are '/news', '/rooms/{room}', '/both'"),
    ):
        with pytest.raises(RouteError) as caught:
            app.broadcast_nowait(path, "x")
        assert said in str(caught.value)
    assert await app.broadcast("/both", "x") == 0
    number: Any = 5
    with pytest.raises(TypeError, match=r"path of a route first, not 5: write broadcast\('/ws', data\)"):
        await app.broadcast(number, "x")
