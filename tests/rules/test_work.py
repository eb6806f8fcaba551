"""Work that belongs to a connection, errors as values, what every handler finds on itself, and other threads."""

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.exceptions import HTTPException, WebSocketException

from tests.rules.test_lifecycle import Served
from tests.support.recording import Journal, Recorder, closing, refusal, take_errors
from tests.support.stacks import Stack, soon, until
from tests.support.wire import Logged
from wsdeco import (
    Address,
    App,
    Close,
    ConnectionClosed,
    DisconnectReason,
    Error,
    ServerError,
    Sink,
    WebSocketHandler,
    websocket_route,
)
from wsdeco.testing import connect

BYE = Close(4001, "bye", by="client")


# Tasks.


async def test_stop_cancels_a_streamed_answer(stack: Stack) -> None:
    journal = Journal()
    app = App()

    @app.handler("/ws")
    class Tokens:
        sink: Sink

        def __init__(self) -> None:
            self.answer: asyncio.Task[None] | None = None

        async def tokens(self) -> None:
            try:
                await self.sink.send("token")
                await asyncio.Event().wait()
            finally:
                journal.add("cancelled")

        async def on_message(self, text: str) -> str | None:
            if self.answer is not None:
                self.answer.cancel()
                await asyncio.wait((self.answer,))
                return "stopped"
            self.answer = self.sink.create_task(self.tokens())
            return None

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("go")
        assert await peer.receive() == "token"
        await peer.send("stop")
        assert await peer.receive() == "stopped"
        assert await journal.next() == "cancelled"


async def test_a_task_has_ended_before_on_disconnect(stack: Stack) -> None:
    journal = Journal()
    app = App()

    @app.handler("/ws", factory=lambda headers: Works(journal))
    class Works(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await super().on_connect(addr, sink)
            _ = sink.create_task(self.work())

        async def work(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                self.journal.add("work over")

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.close(4001, "bye")
        assert await journal.take(3) == ["connect", "work over", stack.peer_closed(4001, "bye")]


async def test_a_failed_task_closes_the_connection(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal()
    app = App()

    @app.handler("/ws", factory=lambda headers: Fails(journal))
    class Fails(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            _ = self.sink.create_task(self.work(), name="work")

        async def work(self) -> None:
            raise KeyError("secret")

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("go")
        assert await closing(peer) == Close(1011, "internal error", by="server")
        assert await journal.next() == "connect"
        match await journal.next():
            case Error(message="Fails: task work raised KeyError: 'secret'", exception=KeyError()):
                pass
            case reason:
                pytest.fail(f"another reason: {reason!r}")
    assert len(take_errors(caplog)) == 1


async def test_a_task_that_raises_websocketexception_closes_with_its_code(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Fails:
        sink: Sink

        async def on_message(self, text: str) -> None:
            _ = self.sink.create_task(self.work())

        async def work(self) -> None:
            raise WebSocketException(4000, "enough")

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("go")
        assert await closing(peer) == Close(4000, "enough", by="server")


async def first_of(task: "asyncio.Task[None]") -> object:
    done, _ = await asyncio.wait((task,))
    return done.pop().exception()


async def gathered(task: "asyncio.Task[None]") -> object:
    return (await asyncio.gather(task, return_exceptions=True))[0]


async def awaited(task: "asyncio.Task[None]") -> object:
    try:
        await task
    except ValueError as exc:
        return exc
    return None


async def timed(task: "asyncio.Task[None]") -> object:
    try:
        await asyncio.wait_for(task, 5)
    except ValueError as exc:
        return exc
    return None


async def shielded(task: "asyncio.Task[None]") -> object:
    try:
        await asyncio.shield(task)
    except ValueError as exc:
        return exc
    return None


@pytest.mark.parametrize("wait", [awaited, first_of, gathered, timed, shielded])
async def test_who_awaits_a_task_gets_its_exception(
    wait: Callable[["asyncio.Task[None]"], Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Waits(WebSocketHandler):
        async def on_message(self, text: str) -> str:
            task = self.sink.create_task(self.work())
            return str(await wait(task))

        async def work(self) -> None:
            await asyncio.sleep(0)
            raise ValueError("mine")

    logged = Logged(caplog)
    served = Served(Waits)
    wire = await served.connected("x", "y")
    assert wire.seen == ["accepted", "mine", "mine"]
    await served.lose(wire)
    gc.collect()
    assert logged.lines() == []


async def test_a_task_whose_peer_has_gone_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    gone = asyncio.Event()

    class Sends(WebSocketHandler):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            _ = sink.create_task(self.work())

        async def work(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()
                await self.sink.send("too late")

    logged = Logged(caplog)
    served = Served(Sends)
    wire = await served.connected()
    await served.lose(wire)
    assert gone.is_set()
    gc.collect()
    assert logged.lines() == []


async def test_a_task_that_ignores_its_cancellation_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    over = asyncio.Event()
    reasons: list[DisconnectReason] = []

    class Stubborn(WebSocketHandler):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            _ = sink.create_task(self.work(), name="work")

        async def work(self) -> None:
            while not over.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await over.wait()

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            reasons.append(reason)

    logged = Logged(caplog)
    served = Served(Stubborn, disconnect_grace=15, close_timeout=10)
    wire = await served.connected()
    wire.close(4001, "bye")
    await served.clock.settle()
    await served.clock.advance(14)
    assert reasons == []
    await served.clock.advance(1)
    assert reasons == [BYE]
    assert logged.lines() == ["WARNING Stubborn: tasks of 192.0.2.1:4321 ignore their cancellation: work"]
    over.set()
    await served.over(wire)


async def test_at_shutdown_tasks_have_close_timeout(caplog: pytest.LogCaptureFixture) -> None:
    over = asyncio.Event()

    class Stubborn(WebSocketHandler):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            _ = sink.create_task(self.work(), name="work")

        async def work(self) -> None:
            while not over.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await over.wait()

    logged = Logged(caplog)
    served = Served(Stubborn, disconnect_grace=100, close_timeout=5)
    wire = await served.connected()
    ending = asyncio.create_task(served.app.shut_down())
    await served.clock.settle()
    assert logged.lines() == []
    await served.clock.advance(5)
    assert logged.lines() == ["WARNING Stubborn: tasks of 192.0.2.1:4321 ignore their cancellation: work"]
    over.set()
    await served.over(wire)
    await ending


async def test_tasks_of_a_refused_handshake_end_with_it() -> None:
    over = asyncio.Event()

    class Refuses:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            _ = sink.create_task(self.work())
            await asyncio.sleep(0)
            raise HTTPException(401)

        async def work(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                over.set()

    served = Served(Refuses)
    wire = served.wire()
    await served.over(wire)
    assert wire.seen == [("http", 401)]
    assert over.is_set()


async def nothing() -> None:
    pass


async def test_a_task_needs_a_coroutine_a_connection_and_its_loop() -> None:
    sinks: list[Sink] = []

    class Keeps(WebSocketHandler):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            sinks.append(sink)
            with pytest.raises(TypeError, match=r"takes a coroutine, not function: call the async function"):
                _ = sink.create_task(nothing)  # type: ignore[arg-type]

    served = Served(Keeps)
    wire = await served.connected()
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            _ = sinks[0].create_task(nothing())
        except RuntimeError as exc:
            errors.append(exc)

    await asyncio.to_thread(elsewhere)
    assert "another event loop" in str(errors[0])
    await served.lose(wire)
    with pytest.raises(ConnectionClosed):
        _ = sinks[0].create_task(nothing())
    gc.collect()


async def test_without_tasks_a_connection_keeps_nothing_for_them() -> None:
    class Plain(WebSocketHandler):
        async def on_message(self, text: str) -> str:
            return str(getattr(getattr(self.sink, "_channel").owner, "_tasks"))  # noqa: B009

    served = Served(Plain)
    wire = await served.connected("x")
    assert wire.seen == ["accepted", "None"]
    await served.lose(wire)


# Errors as values.


async def test_websocketexception_closes_with_its_code(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    journal = Journal()
    app = App()

    @app.handler("/message", factory=lambda headers: Says(journal))
    class Says(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            raise WebSocketException(4003, "not for you")

    @app.handler("/stream", factory=lambda headers: Streams(journal))
    class Streams(Recorder):
        async def on_message(self, message: str | bytes) -> AsyncIterator[str]:  # type: ignore[override]
            yield "one"
            raise WebSocketException(4003, "not for you")

    @app.handler("/connect", factory=lambda headers: Connects(journal))
    class Connects(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.accept()
            self.journal.add("connect")
            raise WebSocketException(4003, "not for you")

    async with stack.serve(app) as server:
        for path in ("/message", "/stream", "/connect"):
            async with server.connect(path) as peer:
                if path != "/connect":
                    await peer.send("x")
                if path == "/stream":
                    assert await peer.receive() == "one"
                assert await closing(peer) == Close(4003, "not for you", by="server")
                assert await journal.take(2) == ["connect", Close(4003, "not for you", by="server")]
    lines = [record for record in caplog.records if "WebSocketException" in record.getMessage()]
    assert [record.levelname for record in lines] == ["INFO"] * 3
    assert all(record.exc_info is None for record in lines)


async def test_websocketexception_before_the_upgrade_is_a_403(stack: Stack) -> None:
    journal = Journal()
    app = App()

    @app.handler("/connect", factory=lambda headers: Refuses(journal))
    class Refuses(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            raise WebSocketException(1008, "who are you?")

    @app.handler("/init")
    class RefusesAtOnce:
        def __init__(self) -> None:
            raise WebSocketException(1008)

        async def on_message(self, text: str) -> None: ...

    async with stack.serve(app) as server:
        for path in ("/connect", "/init"):
            assert (await refusal(server, path)).status == 403
    assert journal.ended()


async def test_a_reserved_code_in_a_websocketexception_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Says(WebSocketHandler):
        async def on_message(self, text: str) -> None:
            raise WebSocketException(1006)

    logged = Logged(caplog)
    served = Served(Says)
    wire = await served.connected("x")
    assert wire.seen == ["accepted", ("close", 1011, "internal error")]
    assert logged.lines() == ["ERROR Says.on_message failed for 192.0.2.1:4321"]
    caplog.clear()
    await served.over(wire)


async def test_a_refusal_with_json_says_so(stack: Stack) -> None:
    app = App()

    @app.handler("/ws")
    class Refuses:
        def __init__(self) -> None:
            raise HTTPException(422, {"loc": ["header", "x"]})  # type: ignore[arg-type]

        async def on_message(self, text: str) -> None: ...

    async with stack.serve(app) as server:
        refused = await refusal(server, "/ws")
    if refused.status == 422:
        assert refused.headers["content-type"] == "application/json"
        assert refused.body == b'{"loc": ["header", "x"]}'
    else:
        assert refused.status == 403, "this server cannot show the response"


# What every handler finds on itself.


class Bare:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        pass

    async def on_message(self, text: str) -> str:
        kept: Any = self
        return f"{kept.addr == kept.sink.addr} {type(kept.sink).__name__}"


@dataclass(frozen=True)
class Frozen(Bare):
    pass


class Slotted(Bare):
    __slots__ = ()


class Explicit(WebSocketHandler):
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        pass

    async def on_message(self, text: str) -> str:
        return f"{self.addr == self.sink.addr} {type(self.sink).__name__}"


@pytest.mark.parametrize("handler", [Bare, Frozen, Slotted, Explicit])
async def test_sink_and_addr_are_there_with_an_on_connect_as_well(handler: type) -> None:
    app = App()
    app.add("/ws", handler)
    async with connect(app, "/ws") as client:
        await client.send("x")
        await client.expect("True Sink")


async def test_a_class_keeps_its_own_sink_and_addr() -> None:
    app = App()

    @app.handler("/declared")
    class Declared:
        addr = "somewhere"

        @property
        def sink(self) -> str:
            raise RuntimeError("asked before its time")

        async def on_connect(self, addr: Address, sink: Sink) -> None:
            pass

        async def on_message(self, text: str) -> str:
            return self.addr

    @app.handler("/set")
    class Sets:
        def __init__(self) -> None:
            self.addr = "init"
            self.sink: list[str] = []

        async def on_connect(self, addr: Address, sink: Sink) -> None:
            pass

        async def on_message(self, text: str) -> str:
            self.sink.append(text)
            return f"{self.addr} {self.sink}"

    async with connect(app, "/declared") as client:
        await client.send("x")
        await client.expect("somewhere")
    async with connect(app, "/set") as client:
        await client.send("x")
        await client.expect("init ['x']")


async def test_an_instance_without_room_goes_without() -> None:
    class Small:
        __slots__ = ("seen",)

        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.seen = addr

        async def on_message(self, text: str) -> str:
            return f"{hasattr(self, 'sink')} {self.seen.host}"

    app = App()
    app.app.routes.append(websocket_route("/ws", lambda headers: Small()))
    async with connect(app, "/ws") as client:
        await client.send("x")
        await client.expect("False 127.0.0.1")


# Other threads.


async def in_thread(function: Callable[[], object]) -> object:
    """Call a function in a thread without an event loop."""
    return await soon(asyncio.to_thread(function))


async def test_send_nowait_and_close_nowait_work_in_any_thread(stack: Stack) -> None:
    journal = Journal()
    app = App()

    @app.handler("/ws", factory=lambda headers: Recorder(journal))
    class Handler(Recorder):
        pass

    sinks: list[Sink] = []

    @app.handler("/kept")
    class Keeps(WebSocketHandler):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            sinks.append(sink)

    async with stack.serve(app) as server, server.connect("/kept") as peer:
        await until(lambda: bool(sinks))
        assert await in_thread(lambda: sinks[0].send_nowait("from a thread")) is True
        assert await peer.receive() == "from a thread"
        await in_thread(lambda: sinks[0].close_nowait(4002, "from a thread"))
        assert await closing(peer) == Close(4002, "from a thread", by="server")
        await until(lambda: sinks[0].closed)
        assert await in_thread(lambda: sinks[0].send_nowait("late")) is False
        await in_thread(sinks[0].close_nowait)


async def test_close_nowait_in_on_connect_accepts_first(stack: Stack) -> None:
    app = App()

    @app.handler("/ws", disconnect_grace=0)
    class Closes:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            sink.close_nowait(4001, "no room")
            await asyncio.Event().wait()

    async with stack.serve(app) as server, server.connect("/ws") as peer:
        assert await closing(peer) == Close(4001, "no room", by="server")


async def test_what_cannot_be_sent_is_said_in_the_thread_that_sends() -> None:
    sinks: list[Sink] = []

    class Keeps(WebSocketHandler):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            sinks.append(sink)

    served = Served(Keeps)
    wire = await served.connected()

    def elsewhere() -> None:
        with pytest.raises(TypeError):
            sinks[0].send_nowait(1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="may not be sent"):
            sinks[0].close_nowait(1006)

    await asyncio.to_thread(elsewhere)
    await served.lose(wire)


def test_a_sink_of_a_closed_loop_takes_nothing() -> None:
    sinks: list[Sink] = []

    class Keeps(WebSocketHandler):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            sinks.append(sink)

    async def leave_open() -> None:
        served = Served(Keeps)
        await served.connected()

    asyncio.run(leave_open())
    sinks[0].close_nowait()
    assert sinks[0].send_nowait("x") is False


def test_a_cell_calls_into_the_server() -> None:
    app = App()

    @app.handler("/ws")
    class Echo:
        async def on_message(self, text: str) -> str:
            return text

    async def twice(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def fails() -> None:
        raise LookupError("mine")

    async def inside() -> str:
        assert server is not None
        with pytest.raises(ServerError, match="await the coroutine there"):
            server.call(twice(1))
        return threading.current_thread().name

    server = app.run(port=0, background=True)
    assert server is not None
    with server:
        assert server.call(twice(21)) == 42
        assert server.call(app.broadcast("/ws", "hello")) == 0
        assert server.call(inside()).startswith("wsdeco ")
        with pytest.raises(LookupError, match="mine"):
            server.call(fails())
        with pytest.raises(TypeError, match=r"takes a coroutine, not function"):
            server.call(twice)  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            server.call(asyncio.sleep(60), timeout=0.01)
    with pytest.raises(ServerError, match="has ended"):
        server.call(twice(1))


def test_a_call_ends_with_the_server() -> None:
    async def for_ever() -> None:
        begun.set_result(None)
        await asyncio.Event().wait()

    begun: Future[None] = Future()
    app = App()
    app.add("/ws", Explicit)
    server = app.run(port=0, background=True)
    assert server is not None
    errors: list[BaseException] = []

    def call() -> None:
        try:
            server.call(for_ever())
        except ServerError as exc:
            errors.append(exc)

    caller = threading.Thread(target=call)
    caller.start()
    begun.result(5)
    server.stop()
    caller.join(5)
    assert "has ended meanwhile" in str(errors[0])
