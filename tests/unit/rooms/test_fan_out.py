"""The loop that writes a broadcast to many connections gives each the bytes that a call for each would."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis.strategies import SearchStrategy, integers, just, lists, one_of, sampled_from, sets, tuples
from starlette.middleware import Middleware
from uvicorn.server import ServerState

from tests.support.client_frames import PING, client_frame, text
from tests.support.in_memory import REQUEST, Session, request, settle
from tests.support.middleware import SeesMessages
from wsdeco import App, Compression, ConnectionClosed, Room, Sink
from wsdeco.channels.base import Channel
from wsdeco.channels.observer import Observer
from wsdeco.channels.sink import channel_of
from wsdeco.rooms.members import Members
from wsdeco.rooms.rooms import Rooms
from wsdeco.routing.application import context_of
from wsdeco.transport import shared
from wsdeco.wire.contract import ROOMY_OUTBOX
from wsdeco.wire.outgoing import Encoded

ROOMS: Final = ("a", "b")
COMPRESSED: Final = request("sec-websocket-extensions: permessage-deflate")
KINDS: Final[tuple[tuple[str, bytes, dict[str, Any]], ...]] = (
    ("plain", REQUEST, {}),
    ("plain", REQUEST, {}),
    ("edge", REQUEST, {"max_outbox": ROOMY_OUTBOX}),
    ("drop", REQUEST, {"max_outbox": 1000, "slow_consumer": "drop"}),
    ("close", REQUEST, {"max_outbox": 1000}),
    ("packed", COMPRESSED, {"compression": True}),
    ("long packed", COMPRESSED, {"compression": Compression(threshold=100)}),
    ("observed", REQUEST, {}),
    ("asgi", REQUEST, {}),
    ("early", REQUEST, {}),
)
SIZES: Final = (0, 30, 400, 5_000, 40_000, 70_000)


class Sizes(Observer):
    """Writes down what was sent."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def message_sent(self, channel: Channel, size: int) -> None:
        self.seen.append(size)


class World:
    """Connections of each kind, and rooms that they can join."""

    def __init__(self) -> None:
        self.rooms = Rooms()
        self.sizes = Sizes()
        self.gate = asyncio.Event()
        self.sessions: list[Session] = []
        self.sinks: list[Sink] = []
        self.log: list[object] = []
        self.unsent: list[list[int]] = []

    async def open(self) -> None:
        # A server has one app.
        servers = {name: (App(), ServerState()) for name in ("", "observed")}
        servers["asgi"] = App(middleware=[Middleware(SeesMessages)]), ServerState()
        context_of(servers["observed"][0]).observe(self.sizes)
        for number, (name, head, limits) in enumerate(KINDS):
            app, state = servers.get(name, servers[""])
            self._add(app, f"/{number}", limits, waits=name == "early")
            session = Session(app, state=state)
            await session.feed(head.replace(b"/chat?x=1", b"/%d" % number))
            self.sessions.append(session)
        assert len(self.sinks) == len(self.sessions)

    def _add(self, app: App, path: str, limits: dict[str, Any], *, waits: bool) -> None:
        world = self

        @app.handler(path, **limits)
        class Member:
            async def on_connect(self, addr: object, sink: Sink) -> None:
                world.sinks.append(sink)
                if waits:
                    await world.gate.wait()

            async def on_message(self, text: str) -> str:
                return text

    async def do(self, what: str, member: int, room: str, size: int, others: Collection[int]) -> None:
        """Do one thing, and note what comes of it."""
        sink, protocol, transport = self.sinks[member], self.sessions[member].protocol, self.sessions[member].transport
        can_fill = not protocol.write_paused and not transport.lost
        doings: dict[str, Callable[[], object]] = {
            "broadcast": lambda: self.broadcast(member, room, size, others),
            "join": lambda: Room(room, self.rooms).join(sink),
            "leave": lambda: Room(room, self.rooms).leave(sink),
            "send": lambda: sink.send_nowait("s" * (size % 900)),
            "ping": lambda: transport.feed(client_frame(PING, b"?")),
            "message": lambda: transport.feed(text("m" * min(size, 900))),
            "close": lambda: channel_of(sink).close_by_server(4000, "bye"),
            "fail": lambda: setattr(transport, "closing", True),
            "lose": transport.lose,
            "accept": self.gate.set,
            "fill": lambda: transport.fill() if can_fill else None,
            "empty": lambda: transport.empty() if protocol.write_paused and not transport.lost else None,
            "turn": lambda: None,
        }
        try:
            self.log.append(doings[what]())
        except ConnectionClosed as closed:
            self.log.append(closed.reason)
        if what == "turn":
            await asyncio.sleep(0)
        self.unsent.append([0 if each.transport.lost else each.protocol.unsent for each in self.sessions])

    def broadcast(self, kind: int, room: str, size: int, others: Collection[int]) -> int:
        data = "xyz"[kind % 3] * size if kind % 2 else b"b" * size
        return self.rooms.deliver(f"room:{room}", data, {channel_of(self.sinks[other]) for other in others})

    async def outcome(self) -> list[object]:
        """Let everybody read what waits, end, and return what each connection has got."""
        self.gate.set()
        await settle()
        for session in self.sessions:
            if session.protocol.write_paused and not session.transport.lost:
                session.transport.empty()
        await settle()
        found: list[object] = [session.transport.sent for session in self.sessions]
        channels = [channel_of(sink) for sink in self.sinks]
        found += [(channel.dropped, channel.reason, len(channel.rooms)) for channel in channels]
        found += [self.log, self.sizes.seen, self.unsent]
        for session in self.sessions:
            session.transport.lose()
        await settle()
        for task in [task for session in self.sessions for task in session.state.tasks]:
            task.cancel()
        await settle()
        return found


def one_by_one(members: Members, message: Encoded, excluded: Collection[Channel]) -> int:
    channels = [channel for channel in members.channels if channel not in excluded]
    return sum([channel.send_encoded(message) for channel in channels])


Step = tuple[str, int, str, int, Collection[int]]


def on_edge(what: str, size: int = 0) -> Step:
    return what, 2, "a", size, ()


FULL: Final = [on_edge("broadcast", 70_000)] * 2 + [on_edge("turn"), on_edge("fill")] + [on_edge("broadcast", 400)] * 2
"""A peer that has got all that the edge has room for, and does not read it."""

FAILED: Final = [on_edge("fail"), on_edge("broadcast"), on_edge("turn"), on_edge("broadcast")]
"""A write that fails ends a connection a while before its channel hears of it."""

LARGE: Final = [on_edge("broadcast", 40_000)] * 3
"""More than waits for the end of a turn."""


def steps(*more: str) -> SearchStrategy[list[Step]]:
    some = sampled_from(("join", "leave", "send", "ping", "message", "accept", "fill", "empty", "turn", *more))
    what = one_of(just("broadcast"), some)
    member = integers(0, len(KINDS) - 1)
    others = one_of(just(frozenset[int]()), sets(member, max_size=3))
    return lists(tuples(what, member, sampled_from(ROOMS), sampled_from(SIZES), others), max_size=40)


async def outcome_of(script: list[Step]) -> list[object]:
    world = World()
    await world.open()
    # Nearly all are members from the beginning on.
    for number, sink in enumerate(world.sinks):
        for room in ROOMS[: 1 + number % 2]:
            Room(room, world.rooms).join(sink)
    for step in script:
        await world.do(*step)
    return await world.outcome()


def expected(script: list[Step]) -> list[object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Members, "send", one_by_one)
        return asyncio.run(outcome_of(script))


@settings(max_examples=100, deadline=None)
@given(script=steps("close", "fail", "lose"))
@example(script=FULL)
@example(script=FAILED)
@example(script=LARGE)
def test_each_gets_what_a_call_for_each_would_send(script: list[Step]) -> None:
    assert asyncio.run(outcome_of(script)) == expected(script)


@settings(max_examples=50, deadline=None)
@given(script=steps("close"))
def test_a_flush_of_many_comes_a_turn_later_and_changes_nothing_else(script: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "MANY", 2)
        found = asyncio.run(outcome_of(script))
    *all_else, _ = found
    *all_else_expected, _ = expected(script)
    assert all_else == all_else_expected


async def test_what_is_broadcast_while_a_flush_of_many_waits_goes_out_with_it() -> None:
    server, flushed = shared.Shared(asyncio.get_running_loop()), list[str]()

    class Flushed:
        def __init__(self, name: str) -> None:
            self.name = name

        def flush(self) -> None:
            flushed.append(self.name)

    server.flush_all_later([])
    server.flush_all_later([Flushed("one of few")] * 63)
    server.flush_all_later([Flushed("one of many")] * 64)
    await asyncio.sleep(0)
    assert flushed == ["one of few"] * 63
    server.flush_later(Flushed("late"))
    await asyncio.sleep(0)
    assert flushed[63:] == ["one of many"] * 64 + ["late"]


async def test_connections_of_several_servers_in_one_loop_are_members_of_one_room() -> None:
    world = World()
    await world.open()
    await world.open()
    for sink in world.sinks[0], world.sinks[len(KINDS)]:
        Room("a", world.rooms).join(sink)
    assert world.rooms.deliver("room:a", "x") == 2
    await settle()
    *_, first = [session.transport.sent for session in world.sessions if session.transport.sent]
    assert first == b"\x81\x01x"
    assert sum(session.transport.sent == first for session in world.sessions) == 2
    await world.outcome()
