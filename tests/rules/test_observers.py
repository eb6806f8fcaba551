"""The events of a connection, as observers are told them, on every server."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextvars import ContextVar

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Scope

from tests.support.recording import refusal, take_errors
from tests.support.stacks import Stack, until
from tests.support.wire import Wire, websocket_scope
from wsdeco import App, Close, DisconnectReason, Sink, Timeout
from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data
from wsdeco.channels.observer import Observer
from wsdeco.routing.application import context_of
from wsdeco.testing import ManualClock, connect


class Log(Observer):
    """Writes down every event."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def refused(self, scope: Scope, status: int, cause: str) -> None:
        self.events.append(("refused", scope["path"], status, cause))

    def accepted(self, channel: Channel) -> None:
        self.events.append(("accepted",))

    def messages_received(self, channel: Channel, messages: list[Data]) -> None:
        self.events.extend(("received", message) for message in messages)

    def message_sent(self, channel: Channel, size: int) -> None:
        self.events.append(("sent", size))

    def message_dropped(self, channel: Channel) -> None:
        self.events.append(("dropped",))

    def message_over_rate(self, channel: Channel) -> None:
        self.events.append(("over rate",))

    def message_invalid(self, channel: Channel) -> None:
        self.events.append(("invalid",))

    def hook_started(self, channel: Channel, hook: str) -> None:
        self.events.append(("started", hook))

    def hook_ended(self, channel: Channel, hook: str, exception: BaseException | None) -> None:
        self.events.append(("ended", hook, type(exception).__name__))

    def ended(self, channel: Channel) -> None:
        self.events.append(("over", channel.reason))


def observed(app: App) -> Log:
    log = Log()
    context_of(app).observe(log)
    return log


async def test_a_conversation_is_told_event_by_event(stack: Stack) -> None:
    app = App()
    log = observed(app)

    @app.handler("/ws")
    class Echo:
        async def on_connect(self, addr: object, sink: Sink) -> None:
            await sink.send("hé")
            sink.send_nowait("x")

        async def on_message(self, text: str) -> AsyncIterator[str]:
            yield text
            yield text

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            """Say nothing."""

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        assert [await peer.receive() for _ in range(2)] == ["hé", "x"]
        await until(lambda: ("ended", "on_connect", "NoneType") in log.events)
        await app.broadcast("/ws", "all")
        assert await peer.receive() == "all"
        await peer.send("ping")
        assert [await peer.receive() for _ in range(2)] == ["ping", "ping"]
        await peer.close(4001, "bye")
        await until(lambda: log.events[-1][0] == "over")
    assert log.events == [
        ("started", "on_connect"),
        ("accepted",),
        ("sent", 3),
        ("sent", 1),
        ("ended", "on_connect", "NoneType"),
        ("sent", 3),
        ("received", "ping"),
        ("started", "on_message"),
        ("sent", 4),
        ("sent", 4),
        ("ended", "on_message", "NoneType"),
        ("started", "on_disconnect"),
        ("ended", "on_disconnect", "NoneType"),
        ("over", stack.peer_closed(4001, "bye")),
    ]


async def test_replies_and_failures_of_hooks_are_told(stack: Stack) -> None:
    app = App()
    log = observed(app)

    @app.handler("/ws")
    class Fails:
        async def on_message(self, text: str) -> str:
            if text == "fail":
                raise ValueError(text)
            return text

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            raise KeyError

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("ok")
        assert await peer.receive() == "ok"
        await peer.send("fail")
        await until(lambda: log.events[-1][0] == "over")
    told = [event for event in log.events if event[0] in {"sent", "ended"}]
    assert told == [
        ("ended", "on_connect", "NoneType"),
        ("sent", 2),
        ("ended", "on_message", "NoneType"),
        ("ended", "on_message", "ValueError"),
        ("ended", "on_disconnect", "KeyError"),
    ]


@pytest.mark.parametrize(("cause", "status"), [("full", 503), ("origin", 403), ("handler", 401), ("failure", 500)])
async def test_a_refused_handshake_is_told_once_with_its_cause(
    stack: Stack, cause: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    log = observed(app)

    @app.handler("/ws", max_connections=1)
    class Refuses:
        async def on_connect(self, addr: object, sink: Sink) -> None:
            if cause == "handler":
                raise HTTPException(401)
            if cause == "failure":
                raise ValueError(cause)

    headers = {"Origin": "https://evil.example"} if cause == "origin" else None
    async with stack.serve(app) as server:
        if cause == "full":
            async with server.connect("/ws"):
                assert (await refusal(server, "/ws")).status == status
        else:
            assert (await refusal(server, "/ws", headers=headers)).status == status
        await until(lambda: any(event[0] == "refused" for event in log.events))
    assert [event for event in log.events if event[0] == "refused"] == [("refused", "/ws", status, cause)]
    # A record of the log holds the frames of the failure, and they the socket.
    take_errors(caplog)


async def test_a_handshake_that_takes_too_long_or_whose_peer_leaves_is_told() -> None:
    clock = ManualClock()
    app = App(clock=clock)
    log = observed(app)

    @app.handler("/ws", connect_timeout=5)
    class Slow:
        async def on_connect(self, addr: object, sink: Sink) -> None:
            await asyncio.Event().wait()

    slow, gone, stopped = (Wire(app, websocket_scope()) for _ in range(3))
    for wire in (slow, gone, stopped):
        wire.connect()
    await clock.settle()
    gone.lose()
    await clock.advance(5)
    await asyncio.wait_for(slow.done(), 5)
    await clock.advance(60)
    await gone.done()
    await stopped.done()
    told = {event[2:] for event in log.events if event[0] == "refused"}
    assert told == {(503, "connect_timeout"), (0, "gone")}


async def test_a_message_that_is_too_big_is_told_if_it_arrived() -> None:
    app = App()
    log = observed(app)

    @app.handler("/ws", max_message_size=10)
    class Quiet:
        async def on_message(self, text: str) -> None:
            """Say nothing."""

    async with connect(app, "/ws") as client:
        await client.send("x" * 11)
        await client.expect_close(1009)
    assert ("received", "x" * 11) in log.events


async def test_a_handshake_at_shutdown_is_told() -> None:
    app = App()
    log = observed(app)

    @app.handler("/ws", close_timeout=0.01)
    class Slow:
        async def on_connect(self, addr: object, sink: Sink) -> None:
            await asyncio.Event().wait()

    begun = Wire(app, websocket_scope())
    begun.connect()
    await asyncio.sleep(0)
    late = asyncio.create_task(app.shut_down())
    await asyncio.sleep(0)
    refused = Wire(app, websocket_scope())
    refused.connect()
    await refused.done()
    await begun.done()
    await late
    assert [event for event in log.events if event[0] == "refused"] == [("refused", "/ws", 503, "shutdown")] * 2


async def test_messages_dropped_for_a_slow_consumer_are_told_and_several_observers_hear_the_same() -> None:
    app = App()
    logs = [observed(app), observed(app)]

    @app.handler("/ws", max_outbox=10, slow_consumer="drop")
    class Floods:
        async def on_connect(self, addr: object, sink: Sink) -> None:
            self.sink = sink

        async def on_message(self, text: str) -> None:
            assert self.sink.send_nowait("12345678")
            assert not self.sink.send_nowait("12345678")

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            raise ValueError

    async with connect(app, "/ws") as client:
        await client.send("go")
        await client.expect("12345678")
        await client.close(1000)
    with pytest.raises(Exception, match="403"):
        async with connect(app, "/ws", headers={"Origin": "https://evil.example"}):
            pass
    first, second = logs
    assert first.events == second.events
    assert ("dropped",) in first.events
    assert not {("over rate",), ("invalid",)} & set(first.events)
    assert first.events[-2:] == [("over", Close(1000, "", by="client")), ("refused", "/ws", 403, "origin")]
    assert not isinstance(first.events[-1], Timeout)


async def test_messages_that_are_too_many_or_of_another_type_are_told_to_several_observers() -> None:
    app = App(clock=ManualClock())
    logs = [observed(app), observed(app)]

    @app.handler("/ws", message_rate="1/s", burst=1, over_rate="drop")
    class Typed:
        async def on_message(self, message: list[int]) -> None:
            """Say nothing."""

    async with connect(app, "/ws") as client:
        await client.send('["x"]')
        await client.send("[1]")
        await client.receive()
        await client.close(1000)
    for log in logs:
        assert {("over rate",), ("invalid",)} <= set(log.events)


async def test_an_observer_of_one_connection_sees_that_one_alone_and_no_messages_it_did_not_ask_for() -> None:
    class Visit(Observer):
        def __init__(self, ended: list[object]) -> None:
            self.reasons = ended

        def ended(self, channel: Channel) -> None:
            self.reasons.append(channel.reason)

    class Visits(Observer):
        def __init__(self) -> None:
            self.visits: list[list[object]] = []

        def begin(self, channel: Channel) -> Observer:
            self.visits.append([])
            return Visit(self.visits[-1])

    app = App()
    visits = Visits()
    context_of(app).observe(visits)

    @app.handler("/ws")
    class Echo:
        async def on_message(self, text: str) -> str:
            return text

    for code in (4001, 4002):
        async with connect(app, "/ws") as client:
            await client.send("x")
            await client.expect("x")
            await client.close(code)
    assert visits.visits == [[Close(4001, "", by="client")], [Close(4002, "", by="client")]]
    assert (Visit.sees_messages, Visit.sees_hooks) == (False, False)


async def test_each_of_several_calls_is_told_in_its_own_task_also_when_it_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    task: ContextVar[object] = ContextVar("task")
    told: list[str] = []

    class Calls(Observer):
        def hook_started(self, channel: Channel, hook: str) -> None:
            task.set(asyncio.current_task())
            told.append(f"{hook} started")

        def hook_ended(self, channel: Channel, hook: str, exception: BaseException | None) -> None:
            assert task.get() is asyncio.current_task()
            told.append(f"{hook} {type(exception).__name__}")

    clock = ManualClock()
    app = App(clock=clock)
    context_of(app).observe(Calls())

    @app.handler("/ws", parallel=3, max_connection_duration=5)
    class Hangs:
        async def on_message(self, text: str) -> None:
            if text != "ends":
                await asyncio.Event().wait()

    async with connect(app, "/ws") as client:
        for text in ("hangs", "ends", "hangs"):
            await client.send(text)
        await clock.advance(5)
        await client.expect_close(1001)
    await clock.settle()
    assert told == [
        "on_connect started",
        "on_connect NoneType",
        *["on_message started"] * 2,
        "on_message NoneType",
        "on_message started",
        *["on_message CancelledError"] * 2,
        "on_disconnect started",
        "on_disconnect NoneType",
    ]
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == ["WARNING"]
