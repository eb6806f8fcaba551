"""Who calls `receive` on the ASGI channel: the hooks while they are idle, the server's task otherwise."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from starlette.types import Message

from tests.support.wire import Logged, Wire, assert_at_rest, websocket_scope
from wsdeco import Address, App, Close, ConnectionConfig, DisconnectReason, Error, Sink, Unknown
from wsdeco.channels.asgi import AsgiChannel
from wsdeco.testing import ManualClock

HOOKS = "Handler"


class Watched(Wire):
    """A server that knows who calls `receive`, and whether anybody does.

    Attributes:
        receivers: The names of the tasks that have called it, one for each time that it was another one.
        receiving: Whether somebody is in it.
        written_while_receiving: Whether a close frame was written meanwhile.
    """

    def __init__(self, app: App) -> None:
        self.receivers: list[str] = []
        self.receiving = 0
        self.written_while_receiving = False
        super().__init__(app)

    async def receive(self) -> Message:
        task = asyncio.current_task()
        assert task is not None
        name = HOOKS if task.get_name() == HOOKS else "server"
        if self.receivers[-1:] != [name]:
            self.receivers.append(name)
        self.receiving += 1
        assert self.receiving == 1
        try:
            return await super().receive()
        finally:
            self.receiving -= 1

    async def send(self, message: Message) -> None:
        self.written_while_receiving |= message["type"] == "websocket.close" and self.receiving > 0
        await super().send(message)


class Handler:
    """Echoes; what begins with a w waits for the gate first, and - gets no answer."""

    instances: ClassVar[list["Handler"]]
    gate: ClassVar[asyncio.Event]

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink
        self.task = asyncio.current_task()
        self.taken: list[str] = []
        self.reason: DisconnectReason | None = None
        self.instances.append(self)

    async def on_message(self, text: str) -> str | None:
        self.taken.append(text)
        if text.startswith("w"):
            await self.gate.wait()
        return None if text == "-" else text

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        self.reason = reason


class Opened:
    """A connection that has handled one message, so its hooks read."""

    def __init__(self, wire: Watched, clock: ManualClock, app: App) -> None:
        self.wire = wire
        self.clock = clock
        self.app = app
        self.handler = Handler.instances[0]

    async def tell(self, *messages: str) -> None:
        for message in messages:
            self.wire.message(message)
        await self.clock.settle()


@asynccontextmanager
async def opened(kind: type[Watched] = Watched, **limits: Any) -> AsyncGenerator[Opened]:
    Handler.instances, Handler.gate = [], asyncio.Event()
    clock = ManualClock()
    app = App(clock=clock)
    app.add("/ws", Handler, **limits)
    wire = kind(app)
    wire.connect()
    await clock.settle()
    wire.message("first")
    await clock.settle()
    assert wire.receivers == ["server", HOOKS]
    yield Opened(wire, clock, app)
    if not wire.task.done():
        wire.lose()
    await clock.settle()
    with contextlib.suppress(asyncio.CancelledError):
        await wire.done()
    assert_at_rest(app, clock)
    assert not wire.written_while_receiving


async def test_idle_hooks_read() -> None:
    async with opened() as connection:
        await connection.tell("a", "b")
        await connection.tell("c")
        assert connection.wire.receivers == ["server", HOOKS]
        assert connection.wire.seen == ["accepted", "first", "a", "b", "c"]
    assert connection.handler.reason == Unknown()
    assert connection.wire.receivers == ["server", HOOKS], "they also take the end"


async def test_a_hook_that_waits_hands_reading_over_for_a_while() -> None:
    async with opened() as connection:
        await connection.tell("wait")
        assert connection.wire.receivers == ["server", HOOKS, "server"]
        await connection.tell("a", "b")
        assert connection.wire.unread == 0
        Handler.gate.set()
        await connection.clock.settle()
        for number in range(29):
            await connection.tell(str(number))
        assert connection.wire.receivers == ["server", HOOKS, "server"]
        await connection.tell("last")
        assert connection.wire.receivers == ["server", HOOKS, "server", HOOKS]
        assert connection.wire.seen[2:5] == ["wait", "a", "b"]


async def test_a_hook_that_only_takes_turns_keeps_reading() -> None:
    async with opened() as connection:
        for _ in range(3):
            await connection.tell(*map(str, range(100)))
            await connection.tell(*"-" * 100)
        assert connection.wire.receivers == ["server", HOOKS]
        assert len(connection.handler.taken) == 601


async def test_the_end_of_the_peer_is_seen_while_a_hook_waits() -> None:
    async with opened(disconnect_grace=0) as connection:
        await connection.tell("wait")
        connection.wire.close(4001, "bye")
        await connection.clock.settle()
        await connection.clock.advance(0)
        assert connection.handler.reason == Close(4001, "bye", by="client")


@pytest.mark.parametrize("way", ["close", "hook", "abort"])
async def test_the_end_calls_the_hooks_off(way: str) -> None:
    async with opened() as connection:
        if way == "close":
            await connection.handler.sink.close(4002, "enough")
        elif way == "hook":
            Handler.gate.set()
            connection.wire.message("w")
            await connection.handler.sink.close(4002, "enough")
        else:
            connection.wire.failure = OSError("gone")
            with contextlib.suppress(ConnectionError):
                connection.handler.sink.send_nowait("x")
            await connection.clock.advance(100)
            assert connection.handler.reason == Unknown()
            return
        await connection.clock.settle()
        assert connection.handler.reason == Close(4002, "enough", by="server")
        assert connection.wire.seen[-1] == ("close", 4002, "enough")
        assert connection.wire.task.done(), "the server's task has read on"


async def test_the_server_cancels_its_task_while_the_hooks_read() -> None:
    async with opened() as connection:
        connection.wire.task.cancel()
        await connection.clock.settle()
        assert connection.handler.reason == Close(1012, "service restart", by="server")
        assert connection.wire.task.cancelled()


async def test_the_task_of_the_hooks_is_cancelled_while_it_reads(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    async with opened() as connection:
        assert connection.handler.task is not None
        connection.handler.task.cancel()
        await connection.clock.settle()
        assert isinstance(connection.handler.reason, Error)
        assert connection.wire.seen[-1] == ("close", 1011, "internal error")
    assert len(logged.lines()) == 1


async def test_the_task_of_the_hooks_is_cancelled_as_it_is_called_off() -> None:
    async with opened() as connection:
        assert connection.handler.task is not None
        connection.handler.task.cancel()
        await connection.handler.sink.close(4002)
        await connection.clock.settle()
        assert connection.handler.reason == Close(4002, by="server")


@pytest.mark.parametrize("failure", [RuntimeError("broken"), {"type": "websocket.receive"}])
async def test_receive_fails_while_the_hooks_read(failure: Any, caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    async with opened() as connection:
        connection.wire.tell(failure)
        await connection.clock.settle()
        assert connection.handler.reason == Unknown()
        assert connection.wire.task.done()
    assert logged.lines() == []


class Stubborn(Watched):
    """Its `receive` takes the call-off for an event."""

    event: ClassVar[Message | Exception]

    async def receive(self) -> Message:
        try:
            return await super().receive()
        except asyncio.CancelledError:
            if isinstance(self.event, Exception):
                raise self.event from None
            return self.event


@pytest.mark.parametrize(
    "event",
    [
        {"type": "websocket.receive", "text": "late"},
        {"type": "websocket.disconnect", "code": 4001, "reason": ""},
        RuntimeError("cancelled"),
    ],
)
async def test_a_receive_that_does_not_let_itself_be_called_off(event: Any) -> None:
    async with opened(Stubborn, close_timeout=7) as connection:
        Stubborn.event = event
        connection.wire.answers = False
        await connection.handler.sink.close(4002)
        await connection.clock.settle()
        assert connection.handler.reason == Close(4002, by="server")
        assert connection.handler.taken == ["first"]
        Stubborn.event = {"type": "websocket.disconnect", "code": 1006}
        await connection.clock.advance(100)


class Extension:
    """What wsdeco's own protocol offers in the scope, and the connection that it tells of."""

    def __init__(self) -> None:
        self.connection = self
        self.end: Close | None = None
        self.last_activity = 0.0
        self.told: Callable[[], None] | None = None

    def tell_departure(self, told: Callable[[], None] | None) -> None:
        self.told = told

    def set_options(self, **options: object) -> None:
        """Take them."""

    def abort(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("is_full_first", [True, False])
async def test_a_server_that_stops_ends_a_connection_whose_inbox_is_full(is_full_first: bool) -> None:
    extension, events = Extension(), asyncio.Queue[Message]()
    scope = websocket_scope()
    scope["extensions"]["wsdeco"] = extension
    config = ConnectionConfig(max_inbox=100)

    async def send(_: Message) -> None:
        """Send nothing."""

    channel = AsgiChannel(scope, events.get, send, config, ManualClock(), accepted=True)
    reading = asyncio.create_task(channel.read())
    await asyncio.sleep(0)

    async def fill() -> None:
        events.put_nowait({"type": "websocket.receive", "text": "x" * 100})
        for _ in range(3):
            await asyncio.sleep(0)

    async def stop() -> None:
        extension.end = Close(1012, "", by="server")
        assert extension.told is not None
        extension.told()
        assert (channel.reason is not None) == is_full_first

    for step in (fill, stop) if is_full_first else (stop, fill):
        await step()
    assert channel.reason == extension.end
    events.put_nowait({"type": "websocket.disconnect", "code": 1012, "reason": ""})
    await reading
    channel.release()
