"""Rooms as the handle on people: closing and counting their members, in this process and in all others."""

import asyncio
import json
import math
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.recording import Journal
from tests.support.stacks import MEMORY, Peer, Server, Stack, soon, until
from tests.unit.rooms.test_rooms import FakeBackplane, ListChannel, in_thread, list_channel
from wsdeco import Address, App, BackplaneError, Close, ConnectionClosed, DisconnectReason, Room, RoomCount, Sink
from wsdeco.backplanes.interface import CONTROL
from wsdeco.rooms.rooms import Rooms
from wsdeco.testing import ManualClock, MemoryBroker

KICKED = Close(4001, "kicked", by="server")


class Users:
    """An app whose connections join the room of their user in `on_connect`."""

    def __init__(self, **options: Any) -> None:
        self.app = App(**options)
        self.left = Journal()
        users = self

        @self.app.handler("/user/{user}", disconnect_grace=0)
        class User:
            async def on_connect(self, addr: Address, sink: Sink) -> None:
                users.app.room(f"user:{sink.path_params['user']}").join(sink)
                if "slow" in sink.query_params:
                    await asyncio.Event().wait()

            async def on_disconnect(self, reason: DisconnectReason) -> None:
                users.left.add(reason)

    def room(self, user: int) -> Room:
        return self.app.room(f"user:{user}")

    async def connected(self, server: Server, connections: AsyncExitStack, user: int, number: int) -> list[Peer]:
        """Return peers of a user."""
        peers = [await connections.enter_async_context(server.connect(f"/user/{user}")) for _ in range(number)]
        await until(lambda: len(self.room(user)) == number)
        return peers


async def reason_of(peer: Peer) -> DisconnectReason:
    with pytest.raises(ConnectionClosed) as closed:
        await peer.receive()
    return closed.value.reason


async def test_to_close_the_room_of_a_user_is_to_kick_the_user(stack: Stack) -> None:
    users = Users()
    async with stack.serve(users.app) as server, AsyncExitStack() as connections:
        kicked = await users.connected(server, connections, 7, 3)
        (stays,) = await users.connected(server, connections, 8, 1)
        assert await users.room(7).count() == 3
        await users.room(7).broadcast("bye")
        assert await users.room(7).close(4001, "kicked") == 3
        for peer in kicked:
            assert await peer.receive() == "bye"
            assert await reason_of(peer) == KICKED
        assert await users.left.take(3) == [KICKED] * 3
        assert await users.room(7).count() == 0
        assert await users.room(7).close() == 0
        await users.room(8).broadcast("still here")
        assert await stays.receive() == "still here"
        await users.connected(server, connections, 7, 1)


async def test_who_is_kicked_before_the_upgrade_gets_the_code(stack: Stack) -> None:
    users = Users()

    async def knock(server: Server) -> DisconnectReason:
        async with server.connect("/user/7?slow") as peer:
            return await reason_of(peer)

    async with stack.serve(users.app) as server:
        knocking = asyncio.create_task(knock(server))
        await until(lambda: len(users.room(7)) == 1)
        assert await users.room(7).close(4001, "kicked") == 1
        assert await soon(knocking) == KICKED


async def test_any_event_loop_may_close_and_count() -> None:
    users = Users()
    async with MEMORY.serve(users.app) as server, AsyncExitStack() as connections:
        (peer,) = await users.connected(server, connections, 7, 1)
        assert await in_thread(lambda: asyncio.run(users.room(7).count())) == 1
        assert await in_thread(lambda: asyncio.run(users.room(7).close(4001, "kicked"))) == 1
        assert await reason_of(peer) == KICKED


async def test_what_cannot_be_sent_is_refused_and_closes_nobody() -> None:
    room = Room("lobby", Rooms(backplane := FakeBackplane()))
    member = list_channel(room)
    wrong: Any = "4001"
    cases: list[tuple[type[Exception], tuple[Any, ...]]] = [
        (TypeError, (wrong,)),
        (ValueError, (1005,)),
        (ValueError, (1000, "\udc80")),
    ]
    for error, arguments in cases:
        with pytest.raises(error):
            await room.close(*arguments)
    assert member.reason is None
    assert [said["do"] for said in backplane.said] == ["here"]


async def test_a_process_says_that_it_is_here_once_there_is_a_broker() -> None:
    backplane = FakeBackplane()
    backplane.state = "closed"
    rooms = Rooms(backplane)
    rooms.people.begin()
    assert backplane.said == []
    backplane.state = "connected"
    rooms.people.begin()
    assert [said["do"] for said in backplane.said] == ["here"]
    Rooms().people.begin()


async def test_many_are_closed_in_turns_of_the_loop() -> None:
    rooms = Rooms(backplane := FakeBackplane())
    room = Room("lobby", rooms)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    for by_another_process in (False, True):
        members = [list_channel(room) for _ in range(250)]
        counting = asyncio.create_task(count_turns())
        await asyncio.sleep(0)
        turns = 0
        if by_another_process:
            tell(backplane, do="close", room="room:lobby", code=4001, reason="kicked")
            assert len(room) == 150
            await until(lambda: len(room) == 0)
        else:
            assert await room.close(4001, "kicked") == 250
        assert turns >= 2
        assert {member.reason for member in members} == {KICKED}
        counting.cancel()


# Over processes.


def tell(backplane: FakeBackplane, **what: object) -> None:
    """Let another process say something."""
    backplane.deliver(CONTROL, json.dumps(what))


async def test_users_are_kicked_and_counted_in_all_processes() -> None:
    broker = MemoryBroker()
    here, there, idle = (Users(backplane=broker.backplane()) for _ in range(3))
    async with AsyncExitStack() as connections:
        first, second, _ = [
            await connections.enter_async_context(MEMORY.serve(users.app)) for users in (here, there, idle)
        ]
        peers = await here.connected(first, connections, 7, 2)
        peers += await there.connected(second, connections, 7, 3)
        await there.connected(second, connections, 8, 1)
        for users in (here, there, idle):
            counted = await users.room(7).count()
            assert (counted, counted.is_exact, repr(counted)) == (5, True, "5")
        await here.room(7).broadcast("bye")
        assert await here.room(7).close(4001, "kicked") == 2
        for peer in peers:
            assert await peer.receive() == "bye"
            assert await reason_of(peer) == KICKED
        assert await there.left.take(3) == [KICKED] * 3
        assert (await here.room(7).count(), await here.room(8).count()) == (0, 1)


async def test_a_process_that_has_said_goodbye_is_not_waited_for() -> None:
    broker, clock = MemoryBroker(), ManualClock()
    here, there = (Users(backplane=broker.backplane(), clock=clock) for _ in range(2))
    async with MEMORY.serve(here.app):
        async with MEMORY.serve(there.app):
            counting = asyncio.create_task(here.room(7).count())
            await clock.advance(0.25)
            assert await soon(counting) == 0
        await clock.settle()
        counted = await soon(here.room(7).count())
        assert counted.is_exact


class Counting:
    """A process that shares a room with others, which say what the test says."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backplane = FakeBackplane()
        self.room = Room("lobby", Rooms(self.backplane, clock=self.clock))
        self.member: ListChannel = list_channel(self.room)

    async def ask(self) -> tuple["asyncio.Task[RoomCount]", str]:
        """Begin to count; return how the question is called."""
        counting = asyncio.create_task(self.room.count())
        await self.clock.settle()
        asked = self.backplane.said[-1]
        assert (asked["do"], asked["room"]) == ("count", "room:lobby")
        return counting, asked["ask"]

    async def count(self, **answers: int) -> RoomCount:
        """Count, with what others answer, for as long as it takes."""
        counting, ask = await self.ask()
        for process, members in answers.items():
            tell(self.backplane, do="counted", ask=ask, members=members, by=process)
        while not counting.done():
            await self.clock.advance(0.05)
        return counting.result()


async def test_a_process_that_does_not_answer_counts_with_what_it_said_last() -> None:
    process = Counting()
    assert repr(await process.count(a=3, b=4)) == "8"
    await process.clock.advance(2)
    counted = await process.count(a=5)
    assert (counted, counted.is_exact) == (1 + 5 + 4, False)
    assert 2 < counted.age < 4
    assert repr(counted).startswith("<10 members, 3.")
    # One that was killed is forgotten.
    await process.clock.advance(8)
    assert (await process.count(a=5)).age > 8
    assert repr(await process.count(a=5)) == "6"


async def test_a_process_that_was_never_heard_of_a_room_makes_the_age_infinite() -> None:
    process = Counting()
    await process.count()
    tell(process.backplane, do="here", by="new")
    counted = await process.count()
    assert (counted, counted.age) == (1, math.inf)


async def test_a_process_that_ends_while_it_is_asked_is_not_waited_for() -> None:
    process = Counting()
    await process.count(a=3)
    counting, _ = await process.ask()
    tell(process.backplane, do="gone", by="a")
    assert repr(await soon(counting)) == "1"


async def test_without_a_connection_what_was_known_counts() -> None:
    process = Counting()
    process.backplane.published = False
    counted = await process.count()
    assert (counted, counted.age) == (1, math.inf)
    process.backplane.published = True
    await process.count(a=3)
    process.backplane.published = False
    await process.clock.advance(5)
    counted = await process.count()
    assert (counted, counted.is_exact, counted.age >= 5) == (4, False, True)
    process.backplane.published = True
    process.backplane.state = "connecting"
    counting, _ = await process.ask()
    process.backplane.state = "reconnecting"
    assert not (await soon(counting)).is_exact


async def test_a_new_connection_to_the_broker_looks_for_others_again() -> None:
    process = Counting()
    await process.count()
    assert repr(await process.count()) == "1"
    process.backplane.counters.connections = 2
    counting, ask = await process.ask()
    await process.clock.advance(0.2)
    tell(process.backplane, do="counted", ask=ask, members=6, by="a")
    assert not counting.done()
    await process.clock.advance(0.05)
    assert repr(await soon(counting)) == "7"


async def test_others_are_answered() -> None:
    process = Counting()
    tell(process.backplane, do="count", room="room:lobby", ask="x", by="a")
    tell(process.backplane, do="count", room="room:other", ask="y", by="a")
    answers = [(said["ask"], said["members"]) for said in process.backplane.said if said["do"] == "counted"]
    assert answers == [("x", 1), ("y", 0)]


@pytest.mark.parametrize(
    "said",
    [
        "",
        b"\xff",
        "[" * 10_000,
        "[1]",
        '{"do": "dance"}',
        '{"do": "close", "room": "room:lobby", "code": 1005, "reason": ""}',
        '{"do": "close", "room": "room:lobby", "code": true, "reason": ""}',
        '{"do": "close", "room": "room:lobby", "code": 1000, "reason": "\\udc80"}',
        '{"do": "close", "room": "room:lobby", "code": 1000, "reason": 5}',
        '{"do": "close", "room": "route:/ws", "code": 1000, "reason": ""}',
        '{"do": "counted", "ask": "?", "members": -1, "by": "x"}',
        '{"do": "counted", "ask": "?", "members": 1, "by": "x"}',
        " " * 100_000,
    ],
)
async def test_what_nobody_says_is_ignored(said: str | bytes) -> None:
    process = Counting()
    process.backplane.deliver(CONTROL, said)
    assert process.member.reason is None
    assert [said["do"] for said in process.backplane.said] == ["here"]


async def test_what_is_remembered_of_others_is_bounded() -> None:
    process = Counting()
    assert await process.count(**{f"p{number}": 1 for number in range(4100)}) == 1 + 4100
    # Of these 1,024 are known, and what 4,096 have said.
    counted = await process.count(p4099=1)
    assert (int(counted), counted.age < math.inf) == (1 + 1024, True)
    tell(process.backplane, do="here", by="p0")
    counted = await process.count(p4099=1)
    assert (int(counted), counted.age) == (1 + 1023, math.inf)


async def test_what_is_said_in_another_event_loop_is_not_heard() -> None:
    process = Counting()
    await asyncio.to_thread(tell, process.backplane, do="close", room="room:lobby", code=1000, reason="")
    assert process.member.reason is None


@pytest.mark.parametrize("raises", [True, False])
async def test_who_cannot_be_reached_is_not_closed_in_silence(raises: bool) -> None:
    backplane = FakeBackplane()
    room = Room("lobby", Rooms(backplane, "raise" if raises else "count"))
    member = list_channel(room)
    backplane.published = False
    if raises:
        with pytest.raises(BackplaneError, match="the 1 connections of the room 'room:lobby' in this process"):
            await room.close(4001, "kicked")
    else:
        assert await room.close(4001, "kicked") == 1
    assert member.reason == KICKED
