"""The kit that users import for their own tests: the client, the clock, and the checker for channels."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeAlias

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wsdeco import App, Close, ConnectionClosed, ConnectionConfig, DisconnectReason, Sink, Unknown, testing
from wsdeco.channels.asgi import AsgiChannel
from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data
from wsdeco.testing import ChannelPeer, Client, HandshakeRefused, MakePair, ManualClock, check_channel, connect

Script: TypeAlias = Callable[[Receive, Send], Awaitable[None]]

ACCEPT: Message = {"type": "websocket.accept"}


def app_of(script: Script) -> ASGIApp:
    """Return a raw ASGI app that runs `script` on each connection."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "websocket.connect"}
        await script(receive, send)

    return app


async def never(receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def accepts_and_waits(receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    await asyncio.Event().wait()


async def echo(receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept", "subprotocol": "b", "headers": [(b"x-a", b"1"), (b"x-a", b"\xe9")]})
    while (message := await receive())["type"] == "websocket.receive":
        if message["text"] == "close":
            await send({"type": "websocket.close", "code": 4002, "reason": "enough"})
        elif message["text"] is not None:
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


# The client.


async def test_a_conversation() -> None:
    async with connect(app_of(echo), "/", subprotocols=["a", "b"]) as client:
        assert client.subprotocol == "b"
        assert client.headers == [("x-a", "1"), ("x-a", "\u00e9")]
        await client.send("text")
        await client.send(b"bytes")
        await client.send("")
        assert [await client.receive() for _ in range(3)] == ["text", b"bytes", ""]
        await client.send_json({"a": [1, None]})
        assert await client.receive_json() == {"a": [1, None]}
        await client.send("x")
        await client.expect("x")
        await client.send("close")
        await client.expect_close(4002, "enough")
        await client.expect_close(4002)
        await client.close()
        await client.drop()
        with pytest.raises(ConnectionClosed) as caught:
            await client.send("x")
        assert caught.value.reason == Close(4002, "enough", by="server")


async def test_an_app_of_decorators() -> None:
    ws = App()

    @ws.handler("/rooms/{room}")
    class Echo:
        sink: Sink

        def __init__(self, room: str, query_params: Any, headers: Any) -> None:
            self.greeting = f"{room} {query_params['a']} {headers['x-test']} {headers['host']}"

        async def on_message(self, text: str) -> str:
            return f"{self.sink.addr} {self.sink.request.url.scheme} {self.greeting} {text}"

    path = "/rooms/a%20b?a=%3D"
    async with connect(ws, path, headers={"X-Test": "1"}, client=("10.0.0.1", 7), scheme="wss") as client:
        await client.send("x")
        await client.expect("10.0.0.1:7 wss a b = 1 testserver x")
    async with connect(ws, path, headers=[("x-test", "2"), ("HOST", "here")], client=None) as client:
        await client.send("x")
        await client.expect("unknown address ws a b = 2 here x")
        await client.close(4001, "bye")


@pytest.mark.parametrize(
    ("way", "reason"), [("close", Close(4001, "bye", by="client")), ("drop", Unknown()), ("leave", Unknown())]
)
async def test_the_ways_to_leave(way: str, reason: DisconnectReason) -> None:
    reasons: list[DisconnectReason] = []
    ws = App()

    @ws.handler("/")
    class Handler:
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            await asyncio.sleep(0)
            reasons.append(reason)

    async with connect(ws, "/") as client:
        if way == "close":
            await client.close(4001, "bye")
        elif way == "drop":
            await client.drop()
        if way != "leave":
            assert reasons == [reason], "the app is done"
            with pytest.raises(ConnectionClosed):
                await client.receive()
            with pytest.raises(ConnectionClosed):
                await client.send("x")
            await client.expect_close(1006)
            await client.close()
            await client.drop()
    assert reasons == [reason]


async def test_what_arrived_before_the_end_can_be_read_behind_it() -> None:
    async def script(receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        await send({"type": "websocket.send", "text": "last words"})

    async with connect(app_of(script), "/") as client:
        await client.wait_done()
        await client.expect("last words")
        await client.expect_close(1006, "")


async def test_expectations_that_fail() -> None:
    async with connect(app_of(echo), "/") as client:
        await client.send("x")
        with pytest.raises(AssertionError, match="expected 'y', received 'x'"):
            await client.expect("y")
        await client.send("x")
        with pytest.raises(AssertionError, match="expected b'x', received 'x'"):
            await client.expect(b"x")
        await client.send("x")
        with pytest.raises(AssertionError, match="expected a close with 4002, received 'x'"):
            await client.expect_close(4002)
        await client.send("close")
        with pytest.raises(AssertionError, match="expected a close with 1000 , found 4002 enough"):
            await client.expect_close(1000)
        with pytest.raises(AssertionError, match="expected a close with 4002 more, found 4002 enough"):
            await client.expect_close(4002, "more")
        with pytest.raises(ConnectionClosed):
            await client.expect("x")


async def test_a_close_without_a_code_is_1000() -> None:
    async def script(receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        await send({"type": "websocket.close"})
        assert await receive() == {"type": "websocket.disconnect", "code": 1000, "reason": ""}

    async with connect(app_of(script), "/") as client:
        await client.expect_close(1000, "")


async def test_a_refused_handshake() -> None:
    async def script(receive: Receive, send: Send) -> None:
        headers = [(b"X-Why", b"because"), (b"x-latin", b"\xe9")]
        await send({"type": "websocket.http.response.start", "status": 418, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"short ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"and stout"})
        assert await receive() == {"type": "websocket.disconnect", "code": 1006}

    with pytest.raises(HandshakeRefused, match="HTTP 418: short and stout") as caught:
        async with connect(app_of(script), "/"):
            raise NotImplementedError
    refused = caught.value
    assert (refused.status, refused.body) == (418, b"short and stout")
    assert refused.headers == {"x-why": "because", "x-latin": "\u00e9"}


async def test_a_refusal_that_has_neither_headers_nor_body() -> None:
    async def script(receive: Receive, send: Send) -> None:
        await send({"type": "websocket.http.response.start", "status": 404})
        await send({"type": "websocket.http.response.body"})

    with pytest.raises(HandshakeRefused) as caught:
        async with connect(app_of(script), "/"):
            raise NotImplementedError
    assert (caught.value.status, caught.value.headers, caught.value.body) == (404, {}, b"")


async def test_a_server_without_denial_responses() -> None:
    async def closes(receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close", "code": 1008})

    async def denies(receive: Receive, send: Send) -> None:
        await send({"type": "websocket.http.response.start", "status": 404})

    with pytest.raises(HandshakeRefused) as caught:
        async with connect(app_of(closes), "/", denial=False):
            raise NotImplementedError
    assert caught.value.status == 403
    with pytest.raises(RuntimeError, match="no denial response extension"):
        async with connect(app_of(denies), "/", denial=False):
            raise NotImplementedError


async def test_an_app_that_never_answers_the_handshake() -> None:
    with pytest.raises(TimeoutError):
        async with connect(app_of(never), "/", timeout=0.01):
            raise NotImplementedError


async def test_an_app_that_returns_without_an_answer() -> None:
    async def nothing(receive: Receive, send: Send) -> None:
        pass

    with pytest.raises(HandshakeRefused, match="HTTP 500: the app returned without an answer"):
        async with connect(app_of(nothing), "/"):
            raise NotImplementedError


async def test_what_the_app_raises_reaches_the_test() -> None:
    async def at_once(receive: Receive, send: Send) -> None:
        raise KeyError("at once")

    async def later(receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        await receive()
        raise KeyError("later")

    with pytest.raises(KeyError, match="at once"):
        async with connect(app_of(at_once), "/"):
            raise NotImplementedError
    for wait in (Client.receive, Client.wait_done, Client.drop):
        async with connect(app_of(later), "/") as client:
            await client.send("x")
            with pytest.raises(KeyError, match="later"):
                await wait(client)


async def test_an_app_that_is_cancelled() -> None:
    async def script(receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        await receive()
        raise asyncio.CancelledError

    async with connect(app_of(script), "/") as client:
        await client.send("x")
        await client.wait_done()
        await client.expect_close(1006)


async def test_waits_end_in_time() -> None:
    async with connect(app_of(accepts_and_waits), "/", timeout=0.1) as client:
        for wait in (client.receive(), client.expect("x"), client.expect_close(1000), client.wait_done()):
            with pytest.raises(TimeoutError):
                await wait
        with pytest.raises(TimeoutError):
            await client.close()


async def test_an_app_that_does_not_end_is_cancelled_behind_the_client() -> None:
    cancelled: list[str] = []

    async def script(receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append("cancelled")

    async with connect(app_of(script), "/", timeout=0.1):
        pass
    assert cancelled == ["cancelled"]


async def test_an_exception_of_the_test_ends_the_connection_too() -> None:
    disconnected: list[Message] = []

    async def script(receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        disconnected.append(await receive())

    with pytest.raises(ZeroDivisionError):
        async with connect(app_of(script), "/"):
            raise ZeroDivisionError
    assert disconnected == [{"type": "websocket.disconnect", "code": 1006}]


async def test_a_client_that_is_not_connected() -> None:
    client = connect(app_of(echo), "/")
    with pytest.raises(RuntimeError, match=r"write `async with connect\(...\) as client`"):
        await client.wait_done()
    with pytest.raises(RuntimeError, match="not connected"):
        await client.receive()


async def test_a_client_that_does_not_read() -> None:
    sent: list[int] = []

    async def script(receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        await receive()
        for number in range(3):
            await send({"type": "websocket.send", "text": str(number)})
            sent.append(number)
        await receive()

    async with connect(app_of(script), "/") as client:
        client.stop_reading()
        await client.send("go")
        for _ in range(10):
            await asyncio.sleep(0)
        assert sent == []
        client.resume_reading()
        assert [await client.receive() for _ in range(3)] == ["0", "1", "2"]


async def test_a_client_that_does_not_read_and_leaves_lets_the_app_go_on() -> None:
    failures: list[BaseException] = []

    async def script(receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        await receive()
        try:
            await send({"type": "websocket.send", "text": "x"})
        except OSError as exc:
            failures.append(exc)

    async with connect(app_of(script), "/") as client:
        client.stop_reading()
        await client.send("go")
        await asyncio.sleep(0)
        await client.close()
    assert [str(failure) for failure in failures] == ["the client has gone"]


async def test_an_app_that_speaks_after_its_own_close() -> None:
    async def script(receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        await send({"type": "websocket.close", "code": 1000})
        with pytest.raises(RuntimeError, match=r"unexpected 'websocket.send' after the end of the connection"):
            await send({"type": "websocket.send", "text": "x"})

    async with connect(app_of(script), "/") as client:
        await client.expect_close(1000)
        await client.wait_done()


# The clock.


async def test_the_clock_fires_timers_in_order_and_at_their_time() -> None:
    clock = ManualClock(100)
    fired: list[tuple[float, str]] = []

    def at(when: float, name: str) -> Any:
        return clock.call_at(when, lambda: fired.append((clock.time(), name)))

    at(103, "c")
    at(101, "a")
    at(101, "b")
    cancelled = at(102, "never")
    at(110, "late")
    assert (clock.time(), clock.pending) == (100, 5)
    cancelled.cancel()
    assert clock.pending == 4
    await clock.advance(0.5)
    assert (clock.time(), fired) == (100.5, [])
    await clock.advance(3)
    assert fired == [(101, "a"), (101, "b"), (103, "c")]
    assert (clock.time(), clock.pending) == (103.5, 1)
    await clock.advance(0)
    assert len(fired) == 3


async def test_the_clock_fires_what_a_timer_sets() -> None:
    clock = ManualClock()
    fired: list[float] = []

    def tick() -> None:
        fired.append(clock.time())
        clock.call_at(clock.time() + 1, tick)

    clock.call_at(1, tick)
    await clock.advance(5)
    assert fired == [1, 2, 3, 4, 5]
    assert clock.pending == 1


async def test_the_clock_fires_soon_what_is_due_already() -> None:
    clock = ManualClock(10)
    fired: list[str] = []
    clock.call_at(10, lambda: fired.append("now"))
    clock.call_at(3, lambda: fired.append("past"))
    clock.call_at(10, lambda: fired.append("never")).cancel()
    assert fired == []
    await clock.settle()
    assert fired == ["now", "past"]
    assert clock.pending == 0


async def test_the_clock_lets_run_what_a_timer_wakes_before_the_next_one() -> None:
    clock = ManualClock()
    seen: list[float] = []

    async def sleeper(until: float) -> None:
        event = asyncio.Event()
        clock.call_at(until, event.set)
        await event.wait()
        seen.append(clock.time())

    tasks = [asyncio.create_task(sleeper(until)) for until in (2, 1, 3)]
    await clock.advance(10)
    assert seen == [1, 2, 3]
    await asyncio.gather(*tasks)


async def test_the_clock_does_not_run_backwards() -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="a clock advances by 0 seconds or more, not by -1"):
        await clock.advance(-1)
    assert clock.time() == 0


async def test_an_hour_in_no_time() -> None:
    clock = ManualClock()
    ws = App(clock=clock)

    @ws.handler("/", idle_timeout=3600)
    class Handler:
        async def on_message(self, text: str) -> str:
            return text

    async with connect(ws, "/") as client:
        await clock.advance(3599)
        await client.send("x")
        await client.expect("x")
        await clock.advance(3600)
        await client.expect_close(1001, "idle_timeout of 3600 s is over")


# The checker, on channels that are wrong in one way each.


def pair_of(kind: type[AsgiChannel]) -> MakePair:
    @asynccontextmanager
    async def make_pair(config: ConnectionConfig) -> AsyncGenerator[tuple[Channel, ChannelPeer]]:
        ready: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            channel = kind(scope, receive, send, config)
            assert await channel.connect()
            await channel.accept()
            ready.set_result(channel)
            await channel.read()
            await channel.flushed()
            channel.release()

        async with connect(app, "/") as client:
            yield await ready, client

    return make_pair


async def test_a_good_channel_passes() -> None:
    await check_channel(pair_of(AsgiChannel))


class OutOfOrder(AsgiChannel):
    says: ClassVar = "messages arrive unchanged and in order"

    def deliver(self, data: Data) -> None:
        super().deliver(b"other" if data == b"b" else data)


class NoRoom(AsgiChannel):
    says: ClassVar = "send_nowait takes a message while the outbox has room"

    def send_nowait(self, data: Data) -> bool:
        return False


class Overtakes(AsgiChannel):
    says: ClassVar = "messages leave in the order of the calls"

    def send_nowait(self, data: Data) -> bool:
        if self.closed:
            return False
        self.loop.call_later(0.005, super().send_nowait, data)
        return True


class DropsEmpty(AsgiChannel):
    says: ClassVar = "check_empty waits for something that does not come"

    async def send(self, data: Data) -> None:
        if data or self.closed:
            await super().send(data)


class ChangesEmpty(AsgiChannel):
    says: ClassVar = "empty messages are messages"

    async def send(self, data: Data) -> None:
        await super().send(data or " ")


class WrongReason(AsgiChannel):
    says: ClassVar = "the peer's close is seen: closed by the client with 1000"

    def end(self, reason: DisconnectReason) -> bool:
        return super().end(Close(1000, "", by="client") if reason == Close(4001, "bye") else reason)


class LosesTheLast(AsgiChannel):
    says: ClassVar = "a message before the close frame is delivered"

    def end(self, reason: DisconnectReason) -> bool:
        ended = super().end(reason)
        if isinstance(reason, Close) and reason.code == 4001:
            self.discard_inbox()
        return ended


class OneMore(AsgiChannel):
    says: ClassVar = "nothing comes after the last message"

    async def receive(self) -> Data | None:
        data = await super().receive()
        return "one more" if data is None and isinstance(self.reason, Close) and self.reason.code == 4001 else data


class NeverClosed(AsgiChannel):
    says: ClassVar = "a channel that has ended says so"

    @property
    def closed(self) -> bool:
        return False


class TakesAfterTheEnd(AsgiChannel):
    says: ClassVar = "send_nowait refuses after the end"

    def send_nowait(self, data: Data) -> bool:
        return super().send_nowait(data) or True


class WrongError(AsgiChannel):
    says: ClassVar = "ConnectionClosed holds the reason"

    def closed_error(self) -> ConnectionClosed:
        return ConnectionClosed(Close(1000))


class SilentAfterTheEnd(AsgiChannel):
    says: ClassVar = "send raises ConnectionClosed after the end"

    async def send(self, data: Data) -> None:
        if self.reason is None:
            await super().send(data)


class LastCloseDecides(AsgiChannel):
    says: ClassVar = "the first close decides"

    def close(self, code: int, text: str, reason: DisconnectReason) -> None:
        super().close(code, text, reason)
        self.reason = reason


class LosesWhatWaits(AsgiChannel):
    says: ClassVar = "what was sent before the close frame arrives before it"

    async def send(self, data: Data) -> None:
        await super().send("first" if data == "last" else data)


class WrongCode(AsgiChannel):
    says: ClassVar = "the peer sees code and text: closed by the server with 1000"

    def close(self, code: int, text: str, reason: DisconnectReason) -> None:
        super().close(1000, "", reason)


class SpeaksAtTheEnd(AsgiChannel):
    says: ClassVar = "the peer sees the close frame, not 'bye'"

    def close(self, code: int, text: str, reason: DisconnectReason) -> None:
        self.send_nowait("bye")
        super().close(code, text, reason)


class LossIsAClose(AsgiChannel):
    says: ClassVar = "a lost transport is Unknown: closed by the client with 1006"

    def end(self, reason: DisconnectReason) -> bool:
        return super().end(Close(1006) if reason == Unknown() else reason)


class TooStrict(AsgiChannel):
    says: ClassVar = "a message of exactly max_message_size is delivered"

    def deliver(self, data: Data) -> None:
        super().deliver(data[:999])


class TakesAnySize(AsgiChannel):
    says: ClassVar = "nothing comes after a message that is too big"

    def deliver(self, data: Data) -> None:
        super().deliver(data[:100] if data[:1] == "\u20ac" else data)


class TooBigIsNormal(AsgiChannel):
    says: ClassVar = "1009 for too much: closed by the server with 1000"

    def close(self, code: int, text: str, reason: DisconnectReason) -> None:
        super().close(code, text, Close(1000, by="server") if code == 1009 else reason)


BROKEN: list[Any] = [
    *(OutOfOrder, NoRoom, Overtakes, DropsEmpty, ChangesEmpty, WrongReason, LosesTheLast, OneMore, NeverClosed),
    *(TakesAfterTheEnd, WrongError, SilentAfterTheEnd, LastCloseDecides, LosesWhatWaits, WrongCode, SpeaksAtTheEnd),
    *(LossIsAClose, TooStrict, TakesAnySize, TooBigIsNormal),
]


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
async def test_check_channel_finds(kind: Any) -> None:
    with pytest.raises(AssertionError) as caught:
        await check_channel(pair_of(kind), timeout=0.5 if kind is DropsEmpty else 10)
    assert str(caught.value).startswith(f"check_channel: {kind.says}")


def test_the_kit_has_what_it_says() -> None:
    assert set(testing.__all__) == {
        *("ChannelPeer", "Client", "HandshakeRefused", "MakeBackplane", "MakePair", "ManualClock", "MemoryBroker"),
        *("check_backplane", "check_channel", "connect"),
    }
