"""Rooms: who is a member when, what members get and in which order, on every server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Literal, cast

import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import binary, lists, one_of, sampled_from, text
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from tests.support import raw
from tests.support.recording import Journal, refusal, take_errors
from tests.support.stacks import DIRECT, MEMORY, WAIT, Peer, Server, Stack, skip_unless_it_ends, soon, until
from tests.support.wire import Logged, websocket_scope
from wsdeco import (
    Address,
    App,
    BackplaneCounters,
    BackplaneError,
    Close,
    ConnectionClosed,
    DisconnectReason,
    Room,
    RouteError,
    Sink,
    WebSocketUpgrade,
    handle_socket,
    handle_upgrade,
    websocket_route,
)
from wsdeco.backplanes.interface import CONTROL, BackplaneState
from wsdeco.channels.base import Channel
from wsdeco.channels.data import HeaderItems
from wsdeco.channels.sink import channel_of
from wsdeco.config import DEFAULT_CONFIG
from wsdeco.rooms.rooms import Rooms
from wsdeco.testing import HandshakeRefused, ManualClock, connect


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

    async def joined_besides(self, server: Server, connections: AsyncExitStack, number: int) -> list[Peer]:
        """Return peers that are members of the room besides those who are."""
        expected = len(self.room) + number
        peers = [await connections.enter_async_context(server.connect("/chat")) for _ in range(number)]
        await until(lambda: len(self.room) == expected)
        return peers

    async def joined(self, server: Server, connections: AsyncExitStack, number: int) -> list[Peer]:
        """Return peers that are members of the room."""
        assert len(self.room) == 0
        return await self.joined_besides(server, connections, number)


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


async def test_broadcasts_and_own_messages_of_one_turn_arrive_in_the_order_of_the_calls(stack: Stack) -> None:
    app = App()
    first, second = app.room("first"), app.room("second")

    @app.handler("/chat")
    class Member:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sink = sink
            first.join(sink)
            second.join(sink)

        async def on_message(self, text: str) -> str:
            first.broadcast_nowait("1")
            self.sink.send_nowait("own 2")
            second.broadcast_nowait("3")
            first.broadcast_nowait("4", exclude=self.sink)
            second.broadcast_nowait("5")
            await self.sink.send("own 6")
            first.broadcast_nowait("7")
            return "own 8"

    async with stack.serve(app) as server, AsyncExitStack() as connections:
        peers = [await connections.enter_async_context(server.connect("/chat")) for _ in range(3)]
        await until(lambda: len(second) == 3)
        await peers[1].send("go")
        assert await take(peers[1], 7) == ["1", "own 2", "3", "5", "own 6", "7", "own 8"]
        for peer in (peers[0], peers[2]):
            assert await take(peer, 5) == ["1", "3", "4", "5", "7"]


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
    skip_unless_it_ends(stack)
    # granian does not tell when the peer has answered the close frame.
    chat = Chat(close_timeout=0.2)
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


def test_the_path_of_a_route_is_no_name_of_a_room() -> None:
    app = App()
    app.room("/chat")

    @app.handler("/chat")
    class Chat:
        async def on_message(self, text: str) -> None: ...

    with pytest.raises(RouteError) as caught:
        app.room("/chat")
    assert str(caught.value) == (
        "the connections of the route '/chat' are in no room of this name: write ws.broadcast('/chat', data), or give "
        "the room another name"
    )


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
    with pytest.raises(TypeError, match=r"path of a route comes first, not 5: write broadcast\('/ws', data\)"):
        await app.broadcast(number, "x")


# Members that read too slowly.


@pytest.mark.parametrize("policy", ["close", "drop"])
async def test_a_slow_member_meets_its_own_bound_and_nobody_else_does(
    stack: Stack, policy: Literal["close", "drop"]
) -> None:
    chat = Chat(max_outbox=1000, slow_consumer=policy)
    async with stack.serve(chat.app) as server, AsyncExitStack() as connections:
        await chat.joined(server, connections, 1)
        (sink,) = chat.sinks
        # One turn of the loop, in which nobody reads anything.
        chat.room.broadcast_nowait(b"x" * 600)
        chat.room.broadcast_nowait(b"x" * 600)
        assert (sink.dropped, len(chat.room)) == ((1, 1) if policy == "drop" else (0, 0))
        if policy == "close":
            assert sink.reason == Close(1013, "slow consumer", by="server")


@pytest.mark.parametrize("policy", ["close", "drop"])
async def test_a_message_beyond_the_bound_of_a_member_reaches_the_others(
    stack: Stack, policy: Literal["close", "drop"]
) -> None:
    app = App()
    room = app.room("lobby")

    class Member:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            room.join(sink)

    app.add("/small", Member, max_outbox=1000, slow_consumer=policy)
    app.add("/large", Member)
    async with stack.serve(app) as server, server.connect("/small") as small, server.connect("/large") as large:
        await until(lambda: len(room) == 2)
        assert await room.broadcast("x" * 1001) == 1
        assert await large.receive() == "x" * 1001
        if policy == "drop":
            assert await room.broadcast("y") == 2
            assert await small.receive() == "y"
        else:
            assert len(room) == 1
            with pytest.raises(ConnectionClosed):
                await small.receive()


@pytest.mark.parametrize("policy", ["close", "drop"])
async def test_one_of_many_that_never_reads_delays_nobody(policy: Literal["close", "drop"]) -> None:
    members, chunk = 50, bytes(16 * 1024)
    chat = Chat(max_outbox=256 * 1024, slow_consumer=policy, close_timeout=0.1)
    async with DIRECT.serve(chat.app) as server, AsyncExitStack() as connections:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        connections.callback(writer.close)
        writer.write(raw.handshake("/chat"))
        await until(lambda: len(chat.room) == 1)
        slow = chat.sinks[0]
        peers = await chat.joined_besides(server, connections, members)
        sent = 0
        async with asyncio.timeout(WAIT):
            while not (slow.closed or slow.dropped >= 3):
                taken = await chat.room.broadcast(chunk)
                assert taken >= members
                sent += 1
                for peer in peers:
                    assert await peer.receive() == chunk
                assert unsent(slow) <= 256 * 1024 + len(chunk)
        assert sent > 16
        assert slow.dropped == (0 if policy == "close" else 3)
        if policy == "close":
            assert slow.reason == Close(1013, "slow consumer", by="server")
            assert len(chat.room) == members
            # It reads no close frame either, so it is aborted.
            await until(lambda: not chat.left.ended())
        assert reader is not None


def unsent(sink: Sink) -> int:
    connection: Any = getattr(channel_of(sink), "_connection")  # noqa: B009 - of the direct channel
    return int(connection.unsent)


# What goes wrong.


async def test_a_name_is_text() -> None:
    app = App()
    wrong: Any = 5
    with pytest.raises(TypeError, match=r"the name of a room must be a str, not int 5: write room\('lobby'\)"):
        app.room(wrong)
    with pytest.raises(ValueError, match="must not be empty"):
        app.room("")
    room = app.room("café\0 {x}")
    assert room.name == "café\0 {x}"
    assert repr(app.room("a")) == "<Room 'a' with 0 members>"


@pytest.mark.parametrize("name", ["x" * 1025, "\u20ac" * 342, "\udc80" * 342, "x\r\n" * 100_000])
def test_a_name_that_a_peer_has_made_long_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"may have 1024 bytes of UTF-8; one of \d+ characters that begins") as caught:
        App().room(name)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["x" * 1024, "\u20ac" * 341, "\udc80" * 341])
def test_a_name_of_one_kibibyte_is_taken(name: str) -> None:
    assert App().room(name).name == name


async def test_a_peer_that_joins_too_many_rooms_is_closed_and_leaves_all_of_them(stack: Stack) -> None:
    app, left = App(), Journal()

    @app.handler("/ws", max_rooms=3)
    class Greedy:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sink = sink

        async def on_message(self, text: str) -> str:
            app.room(text).join(self.sink)
            return text

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            left.add(reason)

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for name in ("1", "2", "3", "3", "4"):
            await peer.send(name)
        assert await take(peer, 4) == ["1", "2", "3", "3"]
        with pytest.raises(ConnectionClosed) as closed:
            await peer.receive()
        assert closed.value.reason == Close(1008, "more than max_rooms=3 rooms", by="server")
        assert await left.next() == Close(1008, "more than max_rooms=3 rooms", by="server")
        assert [len(app.room(name)) for name in "1234"] == [0, 0, 0, 0]


async def test_a_room_that_was_left_makes_room_for_another() -> None:
    rooms = Rooms()
    channel = ListChannel(max_rooms=2)
    sink = Sink(channel)
    for number in range(5):
        Room(str(number), rooms).join(sink)
        Room(str(number - 1), rooms).leave(sink)
    Room("another", rooms).join(sink)
    with pytest.raises(ConnectionClosed):
        Room("one more", rooms).join(sink)
    assert channel.reason == Close(1008, "more than max_rooms=2 rooms", by="server")
    unlimited = Sink(ListChannel(max_rooms=None))
    for number in range(2000):
        Room(str(number), rooms).join(unlimited)


async def test_rooms_of_one_name_are_one_room() -> None:
    app = App()
    assert app.room("a") == app.room("a") != app.room("b")
    assert len({app.room("a"), app.room("a"), app.room("b"), App().room("a")}) == 3
    assert app.room("a") != "a"


async def test_what_is_no_sink_is_refused() -> None:
    chat = Chat()
    wrong: Any = chat
    for method, call in (("join", chat.room.join), ("leave", chat.room.leave)):
        with pytest.raises(TypeError, match=rf"room\.{method}\(\) takes the sink of a connection.*not Chat"):
            call(wrong)
    with pytest.raises(TypeError, match=r"exclude must be a sink or several, not Chat: write exclude=sink"):
        await chat.room.broadcast("x", exclude=wrong)
    wrong = [chat]
    with pytest.raises(TypeError, match=r"exclude must hold sinks, not Chat"):
        chat.room.broadcast_nowait("x", exclude=wrong)
    assert chat not in chat.room


async def test_data_is_checked_as_in_send() -> None:
    chat = Chat()
    async with MEMORY.serve(chat.app) as server, AsyncExitStack() as connections:
        (peer,) = await chat.joined(server, connections, 1)
        wrong: Any = {"a": 1}
        with pytest.raises(TypeError, match=r"a broadcast must be str or bytes, not dict.*json\.dumps"):
            await chat.room.broadcast(wrong)
        with pytest.raises(TypeError, match="a broadcast must be str or bytes, not dict"):
            chat.app.broadcast_nowait("/chat", wrong)
        with pytest.raises(ValueError, match="UTF-8 has no form for it"):
            await chat.room.broadcast("\ud800")
        buffer: Any = bytearray(b"x")
        assert await chat.room.broadcast(buffer) == 1
        buffer[:] = b"y"
        assert await peer.receive() == b"x"


# Threads and event loops.


def in_thread(call: Callable[[], Any]) -> Awaitable[Any]:
    return soon(asyncio.to_thread(call))


async def test_any_thread_may_broadcast(stack: Stack) -> None:
    chat = Chat()
    async with stack.serve(chat.app) as server, AsyncExitStack() as connections:
        peers = await chat.joined(server, connections, 2)
        await in_thread(lambda: chat.room.broadcast_nowait("sync"))
        await in_thread(lambda: chat.app.broadcast_nowait("/chat", "route", exclude=chat.sinks[0]))
        assert await in_thread(lambda: asyncio.run(chat.room.broadcast("async"))) == 2
        assert await take(peers[1], 3) == ["sync", "route", "async"]
        assert await take(peers[0], 2) == ["sync", "async"]


async def test_threads_at_once_keep_the_order_of_each_and_one_for_all() -> None:
    chat = Chat()
    async with DIRECT.serve(chat.app) as server, AsyncExitStack() as connections:
        peers = await chat.joined(server, connections, 3)

        def publish(name: str) -> None:
            for number in range(100):
                chat.room.broadcast_nowait(f"{name}{number}")

        async def publish_here() -> None:
            for number in range(100):
                await chat.room.broadcast(f"own{number}")
                await asyncio.sleep(0)

        await asyncio.gather(*(in_thread(partial(publish, name)) for name in "ab"), publish_here())
        seen = [list(map(str, await take(peer, 300))) for peer in peers]
        assert seen[0] == seen[1] == seen[2]
        for name in ("a", "b", "own"):
            assert [text for text in seen[0] if text.rstrip("0123456789") == name] == [f"{name}{n}" for n in range(100)]


async def test_joining_and_leaving_belong_into_the_loop_of_the_connection() -> None:
    chat = Chat()
    async with MEMORY.serve(chat.app) as server, AsyncExitStack() as connections:
        await chat.joined(server, connections, 1)
        (sink,) = chat.sinks
        for method in ("join", "leave"):
            call: Callable[[Sink], None] = getattr(chat.room, method)
            with pytest.raises(RuntimeError, match=rf"call_soon_threadsafe\(room\.{method}, sink\)"):
                await in_thread(partial(call, sink))
        await in_thread(lambda: chat.app.room("other").leave(sink))
        assert sink in chat.room
        assert sink not in chat.app.room("other")


async def test_members_live_in_one_loop_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    chat, logged = Chat(), Logged(caplog)

    async def member_elsewhere() -> str:
        async with connect(chat.app, "/chat") as client:
            return str(await client.receive())

    def join_elsewhere() -> str:
        with pytest.raises(HandshakeRefused):
            asyncio.run(member_elsewhere())
        return str(logged.exceptions()[0])

    async with MEMORY.serve(chat.app) as server, AsyncExitStack() as connections:
        (peer,) = await chat.joined(server, connections, 1)
        assert "belongs to another event loop than the members of rooms" in await in_thread(join_elsewhere)
        logged.records[0].exc_info = None
        caplog.clear()

        @chat.app.handler("/plain")
        class Plain:
            async def on_connect(self, addr: Address, sink: Sink) -> None:
                await sink.send(str(await chat.app.broadcast("/chat", "from elsewhere")))

        async def plain_elsewhere() -> str | bytes:
            async with connect(chat.app, "/plain") as client:
                return await client.receive()

        assert await in_thread(lambda: asyncio.run(plain_elsewhere())) == "1"
        assert await peer.receive() == "from elsewhere"
        assert "gets no broadcast to route:/plain" in logged.lines()[0]


def test_another_loop_takes_over_when_the_first_has_none_left() -> None:
    chat = Chat()

    async def one_connection() -> None:
        async with connect(chat.app, "/chat") as client:
            assert await chat.room.broadcast("x") == 1
            await client.expect("x")
            await client.close()

    for _ in range(3):
        asyncio.run(one_connection())
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(one_connection())
        second.run(one_connection())
        first.run(one_connection())


class ListChannel(Channel):
    """A channel whose peer is a list.

    Attributes:
        got: What was sent.
        room_for: How many messages it still takes.
        at_end: Called when it ends.
    """

    def __init__(self, **limits: Any) -> None:
        super().__init__(HTTPConnection(websocket_scope()), DEFAULT_CONFIG.replace(**limits))
        self.accepted = True
        self.got: list[str | bytes] = []
        self.room_for = 1_000_000
        self.at_end: Callable[[], None] = lambda: None

    async def connect(self) -> bool:
        return True

    async def read(self) -> None: ...
    async def accept(self, subprotocol: str | None = None, headers: HeaderItems = ()) -> None: ...
    async def refuse(self, status: int, body: str, headers: Mapping[str, str] | None = None) -> None: ...
    async def send(self, data: str | bytes) -> None: ...
    async def flushed(self) -> None: ...
    def abort(self) -> None: ...
    def release(self) -> None: ...

    def send_nowait(self, data: str | bytes) -> bool:
        if self.room_for == 0:
            self.close(1013, "slow", Close(1013, "slow", by="server"))
        if self.closed:
            return False
        self.room_for -= 1
        self.got.append(data)
        return True

    def close(self, code: int, text: str, reason: DisconnectReason) -> None:
        if self.end(reason):
            self.at_end()


def list_channel(room: Room) -> ListChannel:
    """Return the channel of a new member."""
    channel = ListChannel()
    room.join(Sink(channel))
    return channel


class FakeBackplane:
    """Writes down what it is asked, and publishes to nobody.

    Attributes:
        calls: What it was asked, but for what processes tell each other.
        said: What this process tells others.
        published: What `publish_nowait` returns.
        error: What it raises instead.
    """

    def __init__(self) -> None:
        self.counters = BackplaneCounters()
        self.state: BackplaneState = "connected"
        self.calls: list[str] = []
        self.said: list[dict[str, Any]] = []
        self.published = True
        self.error: Exception | None = None
        self.deliver: Callable[[str, str | bytes], None] = lambda key, data: None

    def start(self, deliver: Callable[[str, str | bytes], None]) -> None:
        assert asyncio.get_running_loop() is not None
        self.deliver = deliver
        self.calls.append("start")

    def subscribe(self, key: str) -> None:
        if key == CONTROL:
            return
        self.calls.append(f"subscribe {key}")

    def unsubscribe(self, key: str) -> None:
        self.calls.append(f"unsubscribe {key}")

    def publish_nowait(self, key: str, data: str | bytes) -> bool:
        if key == CONTROL:
            self.said.append(json.loads(data))
            return self.published
        if self.error is not None:
            raise self.error
        self.calls.append(f"publish {key} {data!r}")
        return self.published

    async def drained(self) -> None:
        self.calls.append("drained")

    async def close(self) -> None:
        self.calls.append("close")

    def take(self) -> list[str]:
        taken, self.calls = self.calls, []
        return taken


async def test_a_backplane_that_fails_keeps_no_connection_from_its_end(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(FakeBackplane):
        def unsubscribe(self, key: str) -> None:
            raise OSError("no broker")

    rooms = Rooms(Failing())
    member = list_channel(Room("lobby", rooms))
    Room("other", rooms).join(Sink(member))
    assert member.end(Close(1000))
    assert member.rooms == ()
    texts = [text for _, text in take_errors(caplog)]
    assert [text.splitlines()[0] for text in texts] == [
        f"the backplane failed to unsubscribe from the room 'room:{name}'" for name in ("lobby", "other")
    ]


async def test_a_member_that_leaves_while_a_broadcast_goes_out_harms_nobody() -> None:
    room = Room("lobby", Rooms())
    first, slow, other, last = (list_channel(room) for _ in range(4))
    slow.room_for = 1
    # Nothing of wsdeco's makes one member leave because another one ends, but the code of an app may.
    slow.at_end = lambda: other.close(1000, "", Close(1000))
    assert await room.broadcast("1") == 4
    assert await room.broadcast("2") == 2
    assert [channel.got for channel in (first, slow, other, last)] == [["1", "2"], ["1"], ["1"], ["1", "2"]]
    assert len(room) == 2


async def test_joining_and_leaving_at_once_leaves_nobody_behind() -> None:
    rooms = Rooms()
    room = Room("lobby", rooms)
    steady = list_channel(room)
    done = asyncio.Event()

    async def come_and_go() -> None:
        sink = Sink(channel := ListChannel())
        for _ in range(200):
            room.join(sink)
            await asyncio.sleep(0)
            room.leave(sink)
            got = len(channel.got)
            await asyncio.sleep(0)
            assert len(channel.got) == got
        room.join(sink)
        channel.close(1000, "", Close(1000))

    async def talk() -> int:
        sent = 0
        while not done.is_set():
            assert await room.broadcast(str(sent)) >= 1
            sent += 1
            await asyncio.sleep(0)
        return sent

    talking = asyncio.create_task(talk())
    await asyncio.gather(*(come_and_go() for _ in range(10)))
    done.set()
    assert steady.got == [str(number) for number in range(await talking)]
    assert list(map(channel_of, room)) == [steady]
    steady.close(1000, "", Close(1000))
    assert rooms.find("room:lobby") is None


@pytest.mark.parametrize("number_of_rooms", [8, 9, 50])
async def test_a_connection_may_be_in_many_rooms(number_of_rooms: int) -> None:
    rooms = Rooms()
    channel = ListChannel()
    sink = Sink(channel)
    names = [f"room {number}" for number in range(number_of_rooms)]
    for name in names:
        Room(name, rooms).join(sink)
        Room(name, rooms).join(sink)
    Room("room 3", rooms).leave(sink)
    Room("room 3", rooms).leave(sink)
    for name in names:
        await Room(name, rooms).broadcast(name)
    assert channel.got == [name for name in names if name != "room 3"]
    channel.close(1000, "", Close(1000))
    assert [name for name in names if rooms.find(f"room:{name}") is not None] == []


async def test_a_burst_coalesces_and_then_gives_the_loop_two_turns() -> None:
    room = Room("lobby", Rooms())
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    await asyncio.sleep(0)
    list_channel(room)
    for _ in range(15):
        await room.broadcast(b"x" * 4096)
    assert turns == 0
    await room.broadcast(b"x" * 4096)
    assert turns == 2
    for _ in range(15):
        await room.broadcast(b"x" * 4096)
    assert turns == 2
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for _ in range(99):
        list_channel(room)
    turns = 0
    for _ in range(162):
        await room.broadcast("x")
    assert turns == 0
    await room.broadcast("x")
    assert turns == 2
    counting.cancel()


def test_members_of_a_closed_loop_are_forgotten() -> None:
    backplane = FakeBackplane()
    room = Room("lobby", Rooms(backplane))
    route = Rooms().of_route("/ws")

    async def abandon() -> ListChannel:
        left = list_channel(room)
        route.add(left)
        return left

    left = asyncio.run(abandon())
    room.broadcast_nowait("nobody")
    assert asyncio.run(room.broadcast("nobody")) == 0
    assert len(room) == 0
    assert left.got == []
    assert backplane.take() == [
        *("start", "subscribe room:lobby", "start", "publish room:lobby 'nobody'", "close"),
        *("start", "unsubscribe room:lobby", "publish room:lobby 'nobody'", "drained"),
    ]
    # The end of one that was forgotten is no end of those that came after it.
    again = asyncio.run(abandon())
    left.end(Close(1000))
    assert list(map(channel_of, room)) == [again]
    assert list(route.channels) == [again]


def test_nobody_is_reached_before_anybody_serves() -> None:
    app = App()
    app.room("lobby").broadcast_nowait("x")
    assert asyncio.run(app.room("lobby").broadcast("x")) == 0
    assert len(app.room("lobby")) == 0


class GoneLoop:
    """Stands for a loop that another thread closes just when it has been asked whether it is closed."""

    asked = 0

    def is_closed(self) -> bool:
        self.asked += 1
        return self.asked > 1

    def is_running(self) -> bool:
        return True

    def call_soon_threadsafe(self, *args: Any, **options: Any) -> asyncio.Handle:
        raise RuntimeError("Event loop is closed")


@pytest.mark.parametrize("awaited", [True, False])
async def test_a_loop_that_closes_meanwhile_reaches_nobody(awaited: bool) -> None:
    rooms = Rooms(backplane := FakeBackplane())
    rooms.settle(cast("asyncio.AbstractEventLoop", GoneLoop()))
    room = Room("lobby", rooms)
    if awaited:
        assert await room.broadcast("x") == 0
    else:
        room.broadcast_nowait("x")
        assert backplane.take() == ["start", "start", "publish room:lobby 'x'"]


async def member_elsewhere(room: Room) -> tuple[asyncio.AbstractEventLoop, ListChannel]:
    """Return a loop that stands still in no thread, and a member of the room that lives there."""
    loop = asyncio.new_event_loop()

    async def member() -> ListChannel:
        return list_channel(room)

    return loop, await asyncio.to_thread(loop.run_until_complete, member())


async def test_a_loop_that_closes_with_a_broadcast_handed_over_holds_nobody_up() -> None:
    room = Room("lobby", Rooms())
    loop, channel = await member_elsewhere(room)
    handed_over = asyncio.create_task(room.broadcast("x"))
    await asyncio.sleep(0.01)
    assert not handed_over.done()
    loop.close()
    assert await soon(handed_over) == 0
    assert channel.got == []


async def test_a_broadcast_that_was_handed_over_can_be_cancelled() -> None:
    room = Room("lobby", Rooms())
    loop, channel = await member_elsewhere(room)
    handed_over = asyncio.create_task(room.broadcast("x"))
    await asyncio.sleep(0)
    handed_over.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handed_over
    await asyncio.to_thread(loop.run_until_complete, asyncio.sleep(0.001))
    assert channel.got in ([], ["x"])
    loop.close()


# The backplane.


async def test_the_backplane_carries_what_has_local_members() -> None:
    rooms = Rooms(backplane := FakeBackplane())
    room = Room("lobby", rooms)
    rooms.start()
    rooms.start()
    first, second = list_channel(room), list_channel(room)
    route = rooms.of_route("/ws")
    second.route_room = route
    second.mark_accepted(None)
    assert backplane.take() == ["start", "subscribe room:lobby", "subscribe route:/ws"]
    assert await room.broadcast("x") == 2
    room.broadcast_nowait(b"y")
    assert backplane.take() == ["publish room:lobby 'x'", "drained", "publish room:lobby b'y'"]
    backplane.deliver("room:lobby", "from afar")
    backplane.deliver("route:/ws", b"to the route")
    backplane.deliver("room:unknown", "x")
    assert second.got == ["x", b"y", "from afar", b"to the route"]
    first.close(1000, "", Close(1000))
    assert backplane.take() == []
    await rooms.close()
    backplane.deliver("room:lobby", "late")
    assert backplane.take() == ["close"]
    assert second.got[-1] == "late"
    second.close(1000, "", Close(1000))
    assert backplane.take() == ["unsubscribe room:lobby", "unsubscribe route:/ws"]
    await rooms.close()
    assert await room.broadcast("z") == 0
    assert backplane.take() == ["close", "start", "publish room:lobby 'z'", "drained"]


@pytest.mark.parametrize("errors", ["count", "raise"])
async def test_what_could_not_be_published_has_reached_local_members(errors: Literal["count", "raise"]) -> None:
    room = Room("lobby", Rooms(backplane := FakeBackplane(), errors))
    member = list_channel(room)
    backplane.published = False
    with (
        contextlib.nullcontext()
        if errors == "count"
        else pytest.raises(BackplaneError, match="reached 1 members in this process and no other process")
    ):
        await room.broadcast("a")
    assert member.got == ["a"]


async def test_what_the_broker_does_not_take_reaches_nobody(caplog: pytest.LogCaptureFixture) -> None:
    room, logged = Room("lobby", Rooms(backplane := FakeBackplane())), Logged(caplog)
    member = list_channel(room)
    backplane.error = ValueError("too much")
    for broadcast in (room.broadcast, room.broadcast_nowait):
        with pytest.raises(ValueError, match="too much"):
            await cast("Awaitable[object]", broadcast("a"))
    await in_thread(lambda: room.broadcast_nowait("a"))
    await until(lambda: logged.lines() == ["ERROR a broadcast to room:lobby from another thread failed"])
    assert member.got == []
    backplane.error = None
    assert await room.broadcast("b") == 1


async def test_the_backplane_lives_as_long_as_the_lifespan() -> None:
    backplane = FakeBackplane()
    app = App(backplane=backplane)
    assert app.backplane is backplane
    chat_left = Journal()

    @app.lifespan
    async def around(_: Starlette) -> AsyncIterator[None]:
        backplane.calls.append("up")
        yield
        app.room("lobby").broadcast_nowait("bye")
        backplane.calls.append("down")

    @app.handler("/ws")
    class Member:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            app.room("lobby").join(sink)

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            chat_left.add(backplane.calls[-1])

    async with MEMORY.serve(app) as server:
        async with server.connect("/ws"):
            await until(lambda: len(app.room("lobby")) == 1)
            await server.stop()
        assert await chat_left.next() == "unsubscribe route:/ws"
    assert backplane.take() == [
        *("start", "up", "subscribe room:lobby", "subscribe route:/ws"),
        *("unsubscribe room:lobby", "unsubscribe route:/ws", "publish room:lobby 'bye'", "down", "close"),
    ]
    await app.shut_down()
    assert backplane.take() == ["close"]


# Against a model.


class RoomsMachine(RuleBasedStateMachine):
    """Joins, leaves, ends and broadcasts in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.rooms = Rooms()
        self.members: dict[str, list[ListChannel]] = {"a": [], "b": []}
        self.expected: dict[ListChannel, list[str | bytes]] = {}
        self.sinks: dict[ListChannel, Sink] = {}

    channels = Bundle[ListChannel]("channels")
    names = sampled_from("ab")

    def do(self, call: Callable[[], Any]) -> Any:
        async def inside() -> Any:
            result = call()
            return await result if asyncio.iscoroutine(result) else result

        return self.runner.run(inside())

    @rule(target=channels)
    def connect(self) -> ListChannel:
        channel: ListChannel = self.do(ListChannel)
        self.expected[channel] = []
        self.sinks[channel] = Sink(channel)
        return channel

    @rule(channel=channels, name=names)
    def join(self, channel: ListChannel, name: str) -> None:
        call = lambda: Room(name, self.rooms).join(self.sinks[channel])  # noqa: E731 - run in the loop
        if channel.closed:
            with pytest.raises(ConnectionClosed):
                self.do(call)
            return
        self.do(call)
        if channel not in self.members[name]:
            self.members[name].append(channel)

    @rule(channel=channels, name=names)
    def leave(self, channel: ListChannel, name: str) -> None:
        self.do(lambda: Room(name, self.rooms).leave(self.sinks[channel]))
        if channel in self.members[name]:
            self.members[name].remove(channel)

    @rule(channel=channels)
    def end(self, channel: ListChannel) -> None:
        self.do(lambda: channel.close(1000, "", Close(1000)))
        self.gone(channel)

    @rule(channel=channels)
    def fill(self, channel: ListChannel) -> None:
        channel.room_for = 0

    @rule(name=names, data=one_of(text(max_size=3), binary(max_size=3)), excluded=lists(channels, max_size=2))
    def broadcast(self, name: str, data: str | bytes, excluded: list[ListChannel]) -> None:
        exclude = [self.sinks[channel] for channel in excluded]
        taken = self.do(lambda: Room(name, self.rooms).broadcast(data, exclude))
        reached = [channel for channel in self.members[name] if channel not in excluded]
        for channel in reached:
            if channel.room_for == 0 and channel.closed:
                self.gone(channel)
            else:
                self.expected[channel].append(data)
        assert taken == len([channel for channel in reached if not channel.closed])

    def gone(self, channel: ListChannel) -> None:
        for members in self.members.values():
            if channel in members:
                members.remove(channel)

    @invariant()
    def everybody_got_what_the_model_says(self) -> None:
        assert all(channel.got == expected for channel, expected in self.expected.items())
        for name, members in self.members.items():
            room = Room(name, self.rooms)
            assert [channel_of(sink) for sink in room] == members
            assert len(room) == len(members)
            assert (self.rooms.find(f"room:{name}") is None) is (not members)

    def teardown(self) -> None:
        self.runner.close()


RoomsMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30)
test_rooms_are_what_a_model_says = RoomsMachine.TestCase
