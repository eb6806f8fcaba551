"""Every time limit of a connection, on a clock that the test advances."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

import pytest
from starlette.datastructures import Headers

from tests.support import raw
from tests.support.in_memory import REQUEST, Session
from tests.support.wire import CountingClock, Logged, Wire, assert_at_rest, slots_taken, websocket_scope
from wsdeco import Address, App, Close, ConnectionClosed, DisconnectReason, Sink, Timeout, Unknown
from wsdeco.channels.asgi import AsgiChannel
from wsdeco.config import ConnectionConfig
from wsdeco.connection.reading import ReadingLifecycle
from wsdeco.testing import ManualClock, connect

HOUR: Final = 3600.0

IDLE_HOUR: Final = Timeout("idle_timeout of 3600 s is over", "idle_timeout")


class World:
    """An app with one route on a clock of its own, and what its hooks saw.

    Attributes:
        seen: When, and what.
        gate: What a hook waits for that is told to wait.
    """

    def __init__(self, **limits: Any) -> None:
        self.clock = ManualClock()
        self.app = App(clock=self.clock)
        self.seen: list[tuple[float, object]] = []
        self.gate = asyncio.Event()
        self.sinks: list[Sink] = []
        self.limits: dict[str, Any] = limits

    def log(self, what: object) -> None:
        self.seen.append((self.clock.time(), what))

    def serve(self, handler: Callable[["World"], object]) -> Wire:
        """Register the handler, and return a server with one connection to it."""
        assert isinstance(handler, type)
        if not self.app.routes:
            self.app.add("/ws", handler, factory=self._factory_of(handler), **self.limits)
        wire = Wire(self.app)
        wire.connect()
        return wire

    def _factory_of(self, handler: Callable[["World"], object]) -> Callable[[Headers], object]:
        return lambda headers: handler(self)

    async def over(self, wire: Wire) -> None:
        """Wait for the end, and look whether anything is left."""
        await self.clock.settle()
        assert wire.task.done(), "the connection goes on"
        wire.task.result()
        assert_at_rest(self.app, self.clock)


class Recorder:
    """Logs what reaches it; a message "wait" keeps `on_message` busy until the gate opens."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.world.sinks.append(sink)

    async def on_message(self, text: str) -> None:
        self.world.log(text)
        if text == "wait":
            await self.world.gate.wait()
            self.world.log("waited")

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        self.world.log(reason)


class Stubborn(Recorder):
    """`on_message` swallows as many cancellations as the message says, and returns."""

    async def on_message(self, text: str) -> None:
        for _ in range(int(text)):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.world.log("swallowed")


class HangsInConnect(Recorder):
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        await super().on_connect(addr, sink)
        try:
            await asyncio.Event().wait()
        finally:
            self.world.log("on_connect left")


class HangsInDisconnect(Recorder):
    async def on_disconnect(self, reason: DisconnectReason) -> None:
        self.world.log(reason)
        try:
            await asyncio.Event().wait()
        finally:
            self.world.log("on_disconnect left")


# idle_timeout and max_connection_duration.


async def test_an_hour_of_silence_ends_the_connection() -> None:
    world = World(idle_timeout=HOUR)
    wire = world.serve(Recorder)
    await world.clock.advance(HOUR - 0.001)
    assert world.seen == []
    await world.clock.advance(0.001)
    assert world.seen == [(HOUR, IDLE_HOUR)]
    assert wire.seen == ["accepted", ("close", 1001, "idle_timeout of 3600 s is over")]
    await world.over(wire)


async def test_every_message_starts_the_hour_again() -> None:
    world = World(idle_timeout=HOUR)
    wire = world.serve(Recorder)
    for _ in range(24):
        await world.clock.advance(HOUR - 1)
        wire.message("x")
        await world.clock.settle()
    assert len(world.seen) == 24
    await world.clock.advance(HOUR - 1)
    assert len(world.seen) == 24
    await world.clock.advance(1)
    assert world.seen[-1] == (24 * (HOUR - 1) + HOUR, IDLE_HOUR)
    await world.over(wire)


async def test_what_the_server_sends_is_not_activity() -> None:
    world = World(idle_timeout=HOUR)
    wire = world.serve(Recorder)
    await world.clock.advance(HOUR - 1)
    await world.sinks[0].send("are you there?")
    await world.clock.advance(1)
    assert world.seen == [(HOUR, IDLE_HOUR)]
    await world.over(wire)


async def test_a_binary_message_that_no_hook_takes_is_activity(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    world = World(idle_timeout=HOUR)
    wire = world.serve(Recorder)
    await world.clock.advance(HOUR - 1)
    wire.message(b"x")
    await world.clock.advance(HOUR - 1)
    assert world.seen == []
    await world.clock.advance(1)
    assert world.seen == [(2 * HOUR - 1, IDLE_HOUR)]
    await world.over(wire)
    assert "INFO Recorder: 1 messages of 192.0.2.1:4321 reached no hook" in logged.lines(logging.INFO)


@pytest.mark.parametrize(
    ("idle", "duration", "ends_at", "limit"),
    [
        (HOUR, 2 * HOUR, HOUR, "idle_timeout"),
        (2 * HOUR, HOUR, HOUR, "max_connection_duration"),
        (HOUR, HOUR, HOUR, "max_connection_duration"),
        (None, HOUR, HOUR, "max_connection_duration"),
        (HOUR, None, HOUR, "idle_timeout"),
    ],
)
async def test_the_shorter_limit_wins(idle: float | None, duration: float | None, ends_at: float, limit: str) -> None:
    world = World(idle_timeout=idle, max_connection_duration=duration)
    wire = world.serve(Recorder)
    await world.clock.advance(10 * HOUR)
    assert world.seen == [(ends_at, Timeout(f"{limit} of 3600 s is over", limit))]  # type: ignore[arg-type]
    await world.over(wire)


async def test_a_busy_client_meets_the_duration_all_the_same() -> None:
    world = World(idle_timeout=60, max_connection_duration=HOUR)
    wire = world.serve(Recorder)
    for _ in range(119):
        await world.clock.advance(30)
        wire.message("x")
        await world.clock.settle()
    assert all(what == "x" for _, what in world.seen)
    await world.clock.advance(30)
    assert world.seen[-1] == (
        HOUR,
        Timeout("max_connection_duration of 3600 s is over", "max_connection_duration"),
    )
    assert wire.seen[-1] == ("close", 1001, "max_connection_duration of 3600 s is over")
    await world.over(wire)


async def test_idle_never_sets_in_while_a_hook_runs_and_counts_from_its_end() -> None:
    world = World(idle_timeout=60)
    wire = world.serve(Recorder)
    await world.clock.advance(10)
    wire.message("wait")
    await world.clock.advance(10 * HOUR)
    assert world.seen == [(10, "wait")]
    world.gate.set()
    await world.clock.advance(59.9)
    assert world.seen == [(10, "wait"), (10 + 10 * HOUR, "waited")]
    await world.clock.advance(0.1)
    assert world.seen[-1] == (70 + 10 * HOUR, Timeout("idle_timeout of 60 s is over", "idle_timeout"))
    await world.over(wire)


async def test_idle_never_sets_in_while_on_connect_runs_behind_the_upgrade() -> None:
    class Slow(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.accept()
            await self.world.gate.wait()

    world = World(idle_timeout=60)
    wire = world.serve(Slow)
    await world.clock.advance(HOUR)
    world.gate.set()
    await world.clock.advance(59.9)
    assert world.seen == []
    await world.clock.advance(0.1)
    assert world.seen == [(HOUR + 60, Timeout("idle_timeout of 60 s is over", "idle_timeout"))]
    await world.over(wire)


async def test_idle_counts_a_frame_that_waits_behind_a_hook_from_its_own_hook() -> None:
    world = World(idle_timeout=60)
    wire = world.serve(Recorder)
    await world.clock.settle()
    wire.message("wait")
    wire.message("next")
    await world.clock.advance(100)
    world.gate.set()
    await world.clock.advance(59.9)
    assert world.seen == [(0, "wait"), (100, "waited"), (100, "next")]
    await world.clock.advance(0.1)
    assert world.seen[-1][0] == 160
    await world.over(wire)


async def test_limits_count_from_the_upgrade() -> None:
    class Slow(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await self.world.gate.wait()

    for limits in ({"idle_timeout": 60}, {"max_connection_duration": 60}):
        world = World(**limits, connect_timeout=1000)
        wire = world.serve(Slow)
        await world.clock.advance(500)
        world.gate.set()
        await world.clock.advance(59.9)
        assert world.seen == []
        await world.clock.advance(0.1)
        assert world.seen[0][0] == 560
        await world.over(wire)


async def test_the_duration_cancels_the_hook_that_runs(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    world = World(max_connection_duration=60)
    wire = world.serve(Recorder)
    wire.message("wait")
    wire.message("never delivered")
    await world.clock.advance(60)
    reason = Timeout("max_connection_duration of 60 s is over", "max_connection_duration")
    assert world.seen == [(0, "wait"), (60, reason)]
    await world.over(wire)
    assert logged.lines() == [
        "WARNING Recorder.on_message for 192.0.2.1:4321 was cancelled: timeout: max_connection_duration of 60 s is over"
    ]
    assert "INFO Recorder: 1 messages of 192.0.2.1:4321 reached no hook" in logged.lines(logging.INFO)


# connect_timeout.


async def test_connect_timeout_refuses_the_handshake_and_cancels_on_connect() -> None:
    world = World(connect_timeout=5)
    wire = world.serve(HangsInConnect)
    await world.clock.advance(4.9)
    assert world.seen == []
    await world.clock.advance(0.1)
    reason = Timeout("connect_timeout of 5 s is over", "connect_timeout")
    assert world.seen == [(5, "on_connect left"), (5, reason)]
    assert wire.seen == [("http", 503)]
    await world.over(wire)


async def test_a_connection_that_is_accepted_at_once_needs_no_timer() -> None:
    class Prompt:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.send("hello")

        async def on_message(self, text: str) -> str:
            return text

    clock = CountingClock()
    app = App(clock=clock)
    app.add("/chat", Prompt, ping_interval=None)
    session = Session(app)
    assert (await session.feed(REQUEST)).endswith(b"\x81\x05hello")
    assert await session.feed(raw.text("echo")) == b"\x81\x04echo"
    assert clock.made == 0
    await session.end()


async def test_connect_timeout_is_off_behind_the_upgrade() -> None:
    class SendsAndHangs(HangsInConnect):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.send("hello")
            await super().on_connect(addr, sink)

    world = World(connect_timeout=5)
    wire = world.serve(SendsAndHangs)
    await world.clock.advance(HOUR)
    assert world.seen == []
    assert world.clock.pending == 0
    wire.lose()
    await world.clock.advance(HOUR)
    assert world.seen == [(HOUR + 30, "on_connect left"), (HOUR + 30, Unknown())]
    await world.over(wire)


# disconnect_grace.


@pytest.mark.parametrize(("grace", "ends_at"), [(0, 0.0), (30, 30.0), (0.5, 0.5), (HOUR, HOUR)])
async def test_disconnect_grace_bounds_a_hook_that_outlives_the_peer(grace: float, ends_at: float) -> None:
    world = World(disconnect_grace=grace)
    wire = world.serve(Recorder)
    wire.message("wait")
    wire.message("waits in the inbox")
    await world.clock.settle()
    wire.close(4001, "bye")
    await world.clock.advance(ends_at - 0.1 if ends_at else 0)
    if ends_at:
        assert world.seen == [(0, "wait")]
        await world.clock.advance(0.1)
    assert world.seen == [(0, "wait"), (ends_at, Close(4001, "bye", by="client"))]
    await world.over(wire)


async def test_disconnect_grace_is_for_the_messages_in_the_inbox_too() -> None:
    world = World(disconnect_grace=30)
    wire = world.serve(Recorder)
    await world.clock.settle()
    for text in ("wait", "a", "wait", "b"):
        wire.message(text)
    wire.close(4001, "bye")
    await world.clock.advance(20)
    world.gate.set()
    await world.clock.settle()
    assert [what for _, what in world.seen] == [
        *("wait", "waited", "a", "wait", "waited", "b"),
        Close(4001, "bye", by="client"),
    ]
    await world.over(wire)


async def test_disconnect_grace_is_one_time_for_all_messages_not_one_for_each() -> None:
    class Sleeps(Recorder):
        async def on_message(self, text: str) -> None:
            self.world.log(text)
            over = asyncio.Event()
            self.world.clock.call_at(self.world.clock.time() + 20, over.set)
            await over.wait()

    world = World(disconnect_grace=30)
    wire = world.serve(Sleeps)
    await world.clock.settle()
    for text in "abc":
        wire.message(text)
    wire.close(4001, "bye")
    await world.clock.advance(30)
    assert world.seen == [(0, "a"), (20, "b"), (30, Close(4001, "bye", by="client"))]
    await world.clock.advance(20)
    await world.over(wire)


async def test_disconnect_grace_none_lets_the_hook_finish() -> None:
    world = World(disconnect_grace=None)
    wire = world.serve(Recorder)
    wire.message("wait")
    wire.message("next")
    await world.clock.settle()
    wire.lose()
    await world.clock.advance(100 * HOUR)
    assert world.seen == [(0, "wait")]
    assert slots_taken(world.app) == 1
    world.gate.set()
    await world.clock.settle()
    assert [what for _, what in world.seen] == ["wait", "waited", "next", Unknown()]
    await world.over(wire)


async def test_disconnect_grace_none_gives_way_to_a_shutdown() -> None:
    world = World(disconnect_grace=None, close_timeout=7)
    wire = world.serve(Recorder)
    wire.message("wait")
    await world.clock.settle()
    wire.lose()
    await world.clock.advance(HOUR)
    stopping = asyncio.create_task(world.app.shut_down())
    await world.clock.advance(7)
    assert world.seen == [(0, "wait"), (HOUR + 7, Unknown())]
    await stopping
    await world.over(wire)


# close_timeout.


async def test_close_timeout_bounds_the_closing_handshake() -> None:
    world = World(close_timeout=7)
    wire = world.serve(Recorder)
    wire.answers = False
    await world.clock.settle()
    await world.sinks[0].close(4002, "enough")
    await world.clock.advance(6.9)
    assert world.seen == [(0, Close(4002, "enough", by="server"))]
    assert not wire.task.done()
    await world.clock.advance(0.1)
    await world.over(wire)
    assert wire.seen == ["accepted", ("close", 4002, "enough")]


async def test_the_peers_answer_ends_the_closing_handshake() -> None:
    world = World(close_timeout=7)
    wire = world.serve(Recorder)
    wire.answers = False
    await world.clock.settle()
    await world.sinks[0].close(4002, "enough")
    await world.clock.advance(3)
    assert slots_taken(world.app) == 1
    wire.close(4002, "enough")
    await world.over(wire)
    assert world.seen == [(0, Close(4002, "enough", by="server"))]


async def test_close_timeout_bounds_a_close_frame_that_cannot_be_written() -> None:
    world = World(close_timeout=7)
    wire = world.serve(Recorder)
    await world.clock.settle()
    wire.writable.clear()
    closing = asyncio.create_task(world.sinks[0].close(4002, "enough"))
    await world.clock.advance(6.9)
    assert not closing.done()
    await world.clock.advance(0.1)
    await closing
    await world.over(wire)
    assert wire.seen == ["accepted"]


async def test_close_timeout_bounds_the_hook_at_shutdown_and_again_on_disconnect() -> None:
    world = World(close_timeout=7, disconnect_grace=100)
    wire = world.serve(HangsInDisconnect)
    wire.message("wait")
    await world.clock.settle()
    stopping = asyncio.create_task(world.app.shut_down())
    await world.clock.advance(6.9)
    assert world.seen == [(0, "wait")]
    assert wire.seen == ["accepted", ("close", 1012, "service restart")]
    await world.clock.advance(0.1)
    reason = Close(1012, "service restart", by="server")
    assert world.seen == [(0, "wait"), (7, reason)]
    await world.clock.advance(7)
    assert world.seen == [(0, "wait"), (7, reason), (14, "on_disconnect left")]
    await stopping
    await world.over(wire)


@pytest.mark.parametrize(("grace", "close", "limit"), [(30, 10, 30), (5, 10, 10), (0, 10, 10)])
async def test_an_on_disconnect_that_hangs_is_cancelled(grace: float, close: float, limit: float) -> None:
    world = World(disconnect_grace=grace, close_timeout=close)
    wire = world.serve(HangsInDisconnect)
    await world.clock.settle()
    wire.close(4001)
    await world.clock.advance(limit - 0.1)
    assert slots_taken(world.app) == 1
    await world.clock.advance(0.1)
    assert world.seen == [(0, Close(4001, by="client")), (limit, "on_disconnect left")]
    await world.over(wire)


async def test_an_on_disconnect_that_hangs_is_cut_short_by_a_shutdown() -> None:
    world = World(disconnect_grace=None, close_timeout=7)
    wire = world.serve(HangsInDisconnect)
    await world.clock.settle()
    wire.close(4001)
    await world.clock.advance(HOUR)
    stopping = asyncio.create_task(world.app.shut_down())
    await world.clock.advance(7)
    assert world.seen == [(0, Close(4001, by="client")), (HOUR + 7, "on_disconnect left")]
    await stopping
    await world.over(wire)


# send_timeout.


class Sends(Recorder):
    async def on_message(self, text: str) -> None:
        try:
            await self.world.sinks[0].send(text)
        except ConnectionClosed as exc:
            self.world.log(exc.reason)
            raise
        self.world.log("sent")


async def test_send_timeout_drops_a_peer_that_does_not_read() -> None:
    world = World(send_timeout=20, disconnect_grace=5)
    wire = world.serve(Sends)
    await world.clock.settle()
    wire.writable.clear()
    wire.message("x")
    await world.clock.advance(19.9)
    assert world.seen == []
    await world.clock.advance(0.1)
    assert world.sinks[0].reason == Close(1013, "slow consumer", by="server")
    slow = Close(1013, "slow consumer", by="server")
    assert world.seen == [(20, slow), (20, slow)], "send has raised, and then the connection is over"
    # This server lets nobody drop the peer, who never answers.
    await world.clock.advance(10)
    await world.over(wire)


async def test_send_timeout_raises_in_the_senders_that_wait() -> None:
    world = World(send_timeout=20, disconnect_grace=0)
    wire = world.serve(Recorder)
    await world.clock.settle()
    wire.writable.clear()
    sink = world.sinks[0]
    first, *others = [asyncio.create_task(sink.send(text)) for text in "abc"]
    await world.clock.advance(20)
    for task in others:
        with pytest.raises(ConnectionClosed):
            await task
    await world.clock.advance(10)
    wire.failure = OSError("dropped")
    wire.writable.set()
    with pytest.raises(ConnectionClosed):
        await first
    await world.over(wire)


async def test_send_timeout_counts_for_each_write_and_not_for_all() -> None:
    world = World(send_timeout=20)
    wire = world.serve(Sends)
    await world.clock.settle()
    for _ in range(5):
        wire.writable.clear()
        wire.message("x")
        await world.clock.advance(19)
        assert world.sinks[0].reason is None
        wire.writable.set()
        await world.clock.settle()
    assert [what for _, what in world.seen] == ["sent"] * 5
    wire.lose()
    await world.over(wire)


async def test_send_timeout_none_waits_for_ever() -> None:
    world = World(send_timeout=None)
    wire = world.serve(Sends)
    await world.clock.settle()
    wire.writable.clear()
    wire.message("x")
    await world.clock.advance(100 * HOUR)
    assert world.seen == []
    wire.writable.set()
    await world.clock.settle()
    assert world.seen == [(100 * HOUR, "sent")]
    wire.lose()
    await world.over(wire)


async def test_send_timeout_holds_while_the_connection_is_closing() -> None:
    world = World(send_timeout=3, close_timeout=100)
    wire = world.serve(Recorder)
    await world.clock.settle()
    wire.writable.clear()
    closing = asyncio.create_task(world.sinks[0].close(4002, "enough"))
    await world.clock.advance(3)
    await closing
    assert wire.seen == ["accepted"]
    wire.lose()
    await world.over(wire)


async def test_an_upgrade_that_cannot_be_written_is_given_up() -> None:
    world = World(send_timeout=20, close_timeout=7, disconnect_grace=5)
    wire = world.serve(Recorder)
    wire.writable.clear()
    await world.clock.advance(20)
    assert world.seen == [(20, Close(1013, "slow consumer", by="server"))]
    await world.clock.advance(7)
    await world.over(wire)


# Hooks that will not be cancelled.


@pytest.mark.parametrize("swallows", [1, 2, 10, 100])
async def test_a_hook_that_swallows_is_cancelled_again_every_second_until_it_gives_in(swallows: int) -> None:
    world = World(disconnect_grace=30)
    wire = world.serve(Stubborn)
    wire.message(str(swallows))
    await world.clock.settle()
    wire.lose()
    await world.clock.advance(30 + swallows)
    assert world.seen == [
        *((30.0 + number, "swallowed") for number in range(swallows)),
        (30.0 + swallows - 1, Unknown()),
    ]
    await world.over(wire)


async def test_no_message_follows_a_cancellation_that_was_swallowed() -> None:
    world = World(disconnect_grace=30)
    wire = world.serve(Stubborn)
    wire.message("1")
    wire.message("1")
    await world.clock.settle()
    wire.lose()
    await world.clock.advance(30)
    assert world.seen == [(30, "swallowed"), (30, Unknown())]
    await world.over(wire)


async def test_a_swallowed_cancellation_leaves_nothing_behind_in_the_task() -> None:
    counts: list[int] = []

    class Swallows(Stubborn):
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            task = asyncio.current_task()
            assert task is not None
            counts.append(task.cancelling())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.Event().wait()
            counts.append(task.cancelling())

    world = World(disconnect_grace=0)
    wire = world.serve(Swallows)
    wire.message("3")
    await world.clock.settle()
    wire.lose()
    await world.clock.advance(2)
    async with asyncio.timeout(10):
        await asyncio.wait((wire.task,))
    await world.over(wire)
    assert counts == [0, 0]


async def test_an_on_disconnect_that_swallows_is_cancelled_again() -> None:
    class Swallows(Recorder):
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            for _ in range(3):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                self.world.log("swallowed")

    world = World(disconnect_grace=5, close_timeout=10)
    wire = world.serve(Swallows)
    await world.clock.settle()
    wire.lose()
    await world.clock.advance(12)
    assert world.seen == [(10, "swallowed"), (11, "swallowed"), (12, "swallowed")]
    await world.over(wire)


async def test_shutdown_gives_up_a_hook_that_never_gives_in(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = Logged(caplog)
    # The bound of the whole shutdown is in real time: whatever the clock says, the process has to end.
    monkeypatch.setattr("wsdeco.connection.limits.CANCEL_AGAIN", 0.005)

    class Immortal(Recorder):
        async def on_message(self, text: str) -> None:
            while not self.world.gate.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await self.world.gate.wait()

    world = World(close_timeout=0.005)
    wire = world.serve(Immortal)
    wire.message("x")
    await world.clock.settle()
    await world.app.shut_down()
    assert logged.lines(logging.ERROR) == [
        "ERROR shutdown goes on without 1 connections: their hooks ignore cancellation"
    ]
    world.gate.set()
    await world.clock.settle()
    await world.clock.advance(10)
    await world.over(wire)


# What it costs.


async def tasks_made_by(serving: Coroutine[Any, Any, None]) -> list[str]:
    """Return the names of the coroutines that became tasks meanwhile, but for those of tests."""
    loop = asyncio.get_running_loop()
    made: list[str] = []

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
        if coroutine.cr_frame.f_globals["__name__"].startswith("wsdeco."):
            made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)

    loop.set_task_factory(make)
    try:
        await serving
    finally:
        loop.set_task_factory(None)
    return made


class EchoesAndStreams:
    def __init__(self, world: World) -> None:
        self.world = world

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.world.sinks.append(sink)
        await sink.send("welcome")

    async def on_message(self, text: str) -> AsyncIterator[str]:
        yield text
        await self.world.sinks[0].send(text)


@pytest.mark.parametrize("ends", ["peer", "own"])
async def test_a_connection_makes_at_most_two_tasks_and_no_timer_for_a_message(ends: str) -> None:
    world = World(idle_timeout=60, max_connection_duration=HOUR)
    clock = CountingClock()
    world.clock = clock
    world.app = App(clock=clock)
    timers: list[int] = []

    async def conversation() -> None:
        wire = world.serve(EchoesAndStreams)
        await clock.settle()
        timers.append(clock.made)
        for number in range(1000):
            wire.message(str(number))
            if number % 7 == 0:
                await clock.settle()
        await clock.settle()
        timers.append(clock.made)
        assert len(wire.seen) == 2002
        if ends == "peer":
            wire.close(1000)
        else:
            await world.sinks[0].close()
        await world.over(wire)

    made = await tasks_made_by(conversation())
    assert made == ["Lifecycle._run_hooks", *(["AsgiChannel._flush"] if ends == "own" else [])]
    assert timers[0] == timers[1], "no timer for a message"
    assert timers[0] <= 4, "connect_timeout, idle_timeout, max_connection_duration, send_timeout"


async def test_timers_do_not_pile_up_over_a_long_life() -> None:
    world = World(idle_timeout=60, max_connection_duration=100 * HOUR)
    wire = world.serve(EchoesAndStreams)
    await world.clock.settle()
    for _ in range(200):
        await world.clock.advance(30)
        wire.message("x")
    assert world.clock.pending <= 3
    wire.lose()
    await world.over(wire)


# All at once.


@pytest.mark.parametrize("hook_runs", [True, False], ids=["in a hook", "idle"])
@pytest.mark.parametrize("end", ["nothing else", "close", "loss", "own close", "rate", "shutdown"])
async def test_limits_that_are_over_together_end_a_connection_once(end: str, *, hook_runs: bool) -> None:
    times = dict.fromkeys(["first_message_timeout", "idle_timeout", "max_connection_duration", "message_timeout"], 60)
    rates = {"message_rate": "2/h", "byte_rate": "1KiB/s", "over_rate": "close"}
    world = World(**times, **rates, max_connections_per_client=1, max_connections=1, disconnect_grace=0)
    wire = world.serve(Recorder)
    await world.clock.settle()
    world.sinks[0].expire_at(time.time() + 60)
    if hook_runs:
        wire.message("wait")
    await world.clock.advance(59)
    others: list[asyncio.Task[None]] = []
    match end:
        case "close":
            wire.close(1000)
        case "loss":
            wire.lose()
        case "own close":
            others.append(asyncio.create_task(world.sinks[0].close()))
        case "rate":
            for _ in range(3):
                wire.message("x")
        case "shutdown":
            others.append(asyncio.create_task(world.app.shut_down()))
        case _:
            pass
    await world.clock.advance(1)
    await world.clock.advance(60)
    for task in others:
        await task
    await world.over(wire)
    assert len([what for _, what in world.seen if not isinstance(what, str)]) == 1
    with pytest.raises(ConnectionClosed):
        world.sinks[0].expire_at(None)


# Real time.


@pytest.mark.parametrize("limit", ["idle_timeout", "max_connection_duration"])
async def test_both_limits_in_milliseconds_of_real_time(limit: str) -> None:
    app = App()
    reasons: list[DisconnectReason] = []

    class Handler:
        async def on_message(self, text: str) -> None:
            if limit == "max_connection_duration":
                await asyncio.Event().wait()

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            reasons.append(reason)

    limits: dict[str, Any] = {"idle_timeout": 30.0, "max_connection_duration": 40.0} | {limit: 0.02}
    app.add("/ws", Handler, **limits)
    began = time.monotonic()
    async with connect(app, "/ws") as client:
        # On a busy machine the time may be over before there was anything to say.
        with contextlib.suppress(ConnectionClosed):
            await client.send("x")
        await client.expect_close(1001, f"{limit} of 0.02 s is over")
        assert 0.019 < time.monotonic() - began < 5
        await client.wait_done()
    assert reasons == [Timeout(f"{limit} of 0.02 s is over", limit)]  # type: ignore[arg-type]
    assert slots_taken(app) == 0


async def test_limits_of_a_socket_that_was_accepted_before_count_from_the_start() -> None:
    world = World()
    wire = Wire(world.app)
    wire.task.cancel()
    reader = Recorder(world)
    config = ConnectionConfig(idle_timeout=60, max_connection_duration=100)
    channel = AsgiChannel(websocket_scope(), wire.receive, wire.send, config, world.clock, accepted=True)
    running = asyncio.create_task(ReadingLifecycle(channel, lambda request: reader, "Recorder").run())
    wire.message("x")
    await world.clock.advance(30)
    wire.message("y")
    await world.clock.advance(70)
    await running
    reason = Timeout("idle_timeout of 60 s is over", "idle_timeout")
    assert world.seen == [(0, "x"), (30, "y"), (90, reason)]
    assert world.clock.pending == 0


class StoppedClock(ManualClock):
    """A clock of a process that is stopped and continued: its timers are late by the time in between.

    Attributes:
        stopped: Seconds for which the process has been stopped.
    """

    stopped = 0.0

    def time(self) -> float:
        return super().time() + self.stopped

    def call_at(self, when: float, callback: Callable[[], object], /) -> Any:
        return super().call_at(when - self.stopped, callback)


@pytest.mark.parametrize("is_lively", [True, False], ids=["lively", "silent"])
async def test_a_stopped_process_judges_its_peers_by_what_they_sent_meanwhile(*, is_lively: bool) -> None:
    world = World(idle_timeout=3)
    world.clock = clock = StoppedClock()
    world.app = App(clock=clock)
    wire = world.serve(Recorder)
    wire.message("before")
    await clock.advance(2.9)
    clock.stopped = 6
    await clock.advance(0.1)
    if is_lively:
        wire.message("meanwhile")
    await clock.advance(0.2)
    assert wire.task.done() is not is_lively
    if is_lively:
        await clock.advance(2.9)
    await world.over(wire)
    reason = Timeout("idle_timeout of 3 s is over", "idle_timeout")
    messages: list[object] = ["before", "meanwhile"] if is_lively else ["before"]
    assert [what for _, what in world.seen] == [*messages, reason]


async def test_of_two_limits_that_a_stopped_process_has_passed_the_first_one_ends_the_connection() -> None:
    world = World(idle_timeout=3)
    world.clock = clock = StoppedClock()
    world.app = App(clock=clock)
    wire = world.serve(Recorder)
    await clock.settle()
    world.sinks[0].expire_at(time.time() + 4)
    await clock.advance(2.9)
    clock.stopped = 6
    await clock.advance(0.3)
    await world.over(wire)
    assert [what for _, what in world.seen] == [Timeout("idle_timeout of 3 s is over", "idle_timeout")]
