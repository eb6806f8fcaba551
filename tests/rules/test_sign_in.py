"""Who a peer is, and for how long: the first message, tokens that expire, refusals that a page can read."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

from tests.support.recording import Journal, Recorder, closing, refusal, take_errors
from tests.support.stacks import MEMORY, Stack, until
from tests.support.wire import slots_taken
from wsdeco import Address, App, Close, ConnectionClosed, Sink, Timeout
from wsdeco.channels.observer import Observer
from wsdeco.clock import seconds_until
from wsdeco.routing.application import context_of
from wsdeco.testing import ManualClock


def served(handler: type[Recorder], journal: Journal, **limits: Any) -> tuple[App, ManualClock]:
    clock = ManualClock()
    app = App(clock=clock)
    app.add("/ws", handler, factory=lambda _: handler(journal), max_connections=1, **limits)
    return app, clock


# The first message.


class SignsIn(Recorder):
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink
        self.journal.add(("token", await sink.first_message(timeout=5)))


async def test_a_token_comes_as_the_first_message(stack: Stack) -> None:
    journal = Journal()
    app, clock = served(SignsIn, journal, first_message_timeout=3)
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("secret")
        await peer.send("hello")
        assert await journal.take(2) == [("token", "secret"), "hello"]
        await clock.advance(100)
        await peer.send("still here")
        assert await journal.next() == "still here"


async def test_who_sends_no_token_is_closed_and_nothing_is_logged(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal()
    app, clock = served(SignsIn, journal)
    text = "first_message_timeout of 5 s is over"
    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            await clock.advance(5)
            assert await closing(peer) == Close(1008, text, by="server")
            assert await journal.next() == Timeout(text, "first_message_timeout")
        # The server's task may end after the last hook, and the place is free then.
        await until(lambda: slots_taken(app) == 0)
        async with server.connect("/ws") as peer:
            await peer.close(4001)
            assert await journal.next() == stack.peer_closed(4001)
    assert take_errors(caplog) == []


async def test_the_first_message_is_for_on_connect() -> None:
    journal = Journal()

    class Late(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            try:
                await self.sink.first_message()
            except RuntimeError as exc:
                self.journal.add(str(exc))

    app, _ = served(Late, journal)
    async with MEMORY.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("x")
        advice = "first_message() belongs into on_connect: what comes later goes to on_message"
        assert await journal.take(2) == ["connect", advice]


# A token that expires.


class Expires(Recorder):
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        await super().on_connect(addr, sink)
        sink.expire_at(time.time() + 60)

    async def on_message(self, message: str | bytes) -> None:
        self.sink.expire_at(None if message == "for ever" else datetime.now(UTC) + timedelta(seconds=60))
        self.journal.add(message)


async def test_a_token_expires_unless_it_is_renewed(stack: Stack) -> None:
    journal = Journal()
    app, clock = served(Expires, journal)
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        assert await journal.next() == "connect"
        # The test itself takes time, which this clock does not know of: half of each minute is left for it.
        for seconds, message in ((30, "renew"), (45, "for ever"), (600, "renew")):
            await clock.advance(seconds)
            await peer.send(message)
            assert await journal.next() == message
        await clock.advance(30)
        assert journal.ended()
        await clock.advance(30)
        closed = Close(4401, "token expired", by="server")
        assert await closing(peer) == closed
        assert await journal.next() == closed


@pytest.mark.parametrize(
    ("when", "error", "advice"),
    [
        ("soon", TypeError, "a time must be seconds since 1970, such as time.time() + 3600, or a datetime, not str: "),
        (True, TypeError, "a time must be seconds since 1970"),
        (timedelta(1), TypeError, "a time must be seconds since 1970"),
        (float("inf"), ValueError, "a time must be finite, not inf: write None for no end"),
        (datetime(2030, 1, 1), ValueError, "a time needs its zone, such as datetime.now(UTC) + "),  # noqa: DTZ001
    ],
)
def test_what_is_no_time(when: Any, error: type[Exception], advice: str) -> None:
    with pytest.raises(error) as caught:
        seconds_until(when)
    assert str(caught.value).startswith(advice)


def test_a_time_that_is_over() -> None:
    assert seconds_until(1) == seconds_until(datetime(1970, 1, 2, tzinfo=UTC)) == 0
    assert 3500 < seconds_until(time.time() + 3600) <= 3600


# Refusals that a page can read.


class Told(Observer):
    def __init__(self) -> None:
        self.seen: list[object] = []

    def refused(self, scope: Any, status: int, cause: str) -> None:
        self.seen.append((status, cause))

    def accepted(self, channel: Any) -> None:
        self.seen.append("accepted")

    def ended(self, channel: Any) -> None:
        self.seen.append("ended")


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (HTTPException(402, cast(Any, {"price": 1})), 4402, '{"price": 1}'),
        (WebSocketException(4444, "mine"), 4444, "mine"),
    ],
    ids=["json", "websocket"],
)
async def test_which_code_a_page_reads(raised: Exception, code: int, text: str) -> None:
    await check_refusal(MEMORY, raised, code, text)


async def test_a_refusal_that_a_page_can_read(stack: Stack) -> None:
    await check_refusal(stack, HTTPException(401, "sign in first"), 4401, "sign in first")


async def check_refusal(stack: Stack, raised: Exception, code: int, text: str) -> None:
    journal, told = Journal(), Told()

    class Refuses(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await asyncio.sleep(0)
            raise raised

    app, clock = served(Refuses, journal, refuse_after_upgrade=True, first_message_timeout=1, idle_timeout=1)
    context_of(app).observe(told)
    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            assert await closing(peer) == Close(code, text, by="server")
            assert await app.broadcast("/ws", "nobody") == 0
        await until(lambda: slots_taken(app) == 0)
    assert journal.ended(), "on_disconnect is for connections that were not refused"
    assert told.seen == [(403 if code == 4444 else code - 4000, "handler")]
    await until(lambda: clock.pending == 0)


async def test_a_page_can_read_that_the_route_is_full(stack: Stack) -> None:
    journal, told = Journal(), Told()
    app, _ = served(Recorder, journal, refuse_after_upgrade=True)
    context_of(app).observe(told)
    async with stack.serve(app) as server, server.connect("/ws"):
        for _ in range(2):
            async with server.connect("/ws") as peer:
                assert await closing(peer) == Close(4503, "service unavailable", by="server")
    assert told.seen[:3] == ["accepted", (503, "full"), (503, "full")]


async def test_a_foreign_page_can_read_nothing() -> None:
    app = App()
    app.add("/ws", Recorder, factory=lambda _: Recorder(Journal()), refuse_after_upgrade=True)
    async with MEMORY.serve(app) as server:
        assert (await refusal(server, "/ws", headers={"Origin": "https://elsewhere.example"})).status == 403


async def test_a_refusal_whose_code_nobody_may_send_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Refuses(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            raise WebSocketException(999)

    app, _ = served(Refuses, Journal(), refuse_after_upgrade=True)
    async with MEMORY.serve(app) as server:
        assert (await refusal(server, "/ws")).status == 500
    assert len(take_errors(caplog)) == 1


# Starlette's own.


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        user = conn.headers.get("x-user")
        return None if user is None else (AuthCredentials(["authenticated"]), SimpleUser(user))


class Greets(Recorder):
    async def on_message(self, message: str | bytes) -> str:
        request = self.sink.request
        return f"{request.user.display_name!r} {request.user.is_authenticated} {request.auth.scopes}"


def around(app: App) -> ASGIApp:
    return AuthenticationMiddleware(app, backend=Backend())


def within(app: App) -> ASGIApp:
    app.app.user_middleware.append(Middleware(AuthenticationMiddleware, backend=Backend()))
    return app


@pytest.mark.parametrize("add", [around, within])
async def test_starlette_says_who_the_user_is(stack: Stack, add: Callable[[App], ASGIApp]) -> None:
    journal = Journal()
    app = App()
    app.add("/ws", Greets, factory=lambda _: Greets(journal))
    async with stack.serve(add(app)) as server:
        async with server.connect("/ws", headers={"X-User": "ann"}) as peer:
            await peer.send("who am I?")
            assert await peer.receive() == "'ann' True ['authenticated']"
        async with server.connect("/ws") as peer:
            await peer.send("who am I?")
            assert await peer.receive() == "'' False []"


async def test_nothing_can_be_asked_of_a_connection_that_has_ended() -> None:
    journal = Journal()
    sinks: list[Sink] = []

    class Keeps(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            sinks.append(sink)

    app, _ = served(Keeps, journal)
    async with MEMORY.serve(app) as server:
        async with server.connect("/ws"):
            pass
        with pytest.raises(ConnectionClosed):
            sinks[0].expire_at(time.time() + 1)
        with pytest.raises(ConnectionClosed):
            await sinks[0].first_message()
