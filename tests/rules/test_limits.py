"""Limits for clients and for what they send, each on every server."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, Literal, NoReturn

import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from tests.support.recording import Journal, Recorder, closing, refusal, take_errors
from tests.support.stacks import DIRECT, MEMORY, Peer, Stack, until
from wsdeco import Address, App, Close, ConnectionConfig, Sink, Timeout, Unknown, WebSocketUpgrade, handle_upgrade
from wsdeco.channels.observer import Observer
from wsdeco.channels.sink import channel_of
from wsdeco.connection.admission import Admission
from wsdeco.connection.clients import network_of
from wsdeco.connection.hosts import Hosts
from wsdeco.connection.slots import Slots
from wsdeco.routing.application import context_of
from wsdeco.routing.endpoints import HandlerEndpoint
from wsdeco.testing import HandshakeRefused, ManualClock


class Echo:
    async def on_message(self, text: str) -> str:
        return text


def user_of(request: HTTPConnection) -> str:
    return request.query_params["user"]


class Refusals(Observer):
    """Writes down which handshakes are refused, and why."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def refused(self, scope: Scope, status: int, cause: str) -> None:
        self.seen.append((status, cause))


def assert_too_many(refused: HandshakeRefused, stack: Stack) -> None:
    if refused.status != 403:
        # A server without the denial extension of ASGI answers 403 to everything.
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")


async def test_a_client_has_so_many_connections_and_others_are_unharmed(stack: Stack) -> None:
    app = App()
    refusals = Refusals()
    context_of(app).observe(refusals)
    app.add("/ws", Echo, max_connections_per_client=2, client=user_of)
    async with stack.serve(app) as server, AsyncExitStack() as connections:

        async def connect(user: str) -> Peer:
            return await connections.enter_async_context(server.connect(f"/ws?user={user}"))

        first, _ = await connect("ann"), await connect("ann")
        assert_too_many(await refusal(server, "/ws?user=ann"), stack)
        for peer in (await connect("bob"), await connect("bob"), first):
            await peer.send("still here")
            assert await peer.receive() == "still here"
        assert_too_many(await refusal(server, "/ws?user=bob"), stack)
        await first.close()
        await until(lambda: slots_of(app).by_client == {"ann": 1, "bob": 2})
        await connect("ann")
        assert_too_many(await refusal(server, "/ws?user=ann"), stack)
    await until(lambda: slots_of(app).by_client == {})
    assert slots_of(app).taken == 0
    assert refusals.seen == [(429, "client")] * 3


def slots_of(app: App) -> Slots:
    """Return what counts the connections of the one handler."""
    found = [getattr(route, "endpoint", None) for route in app.app.routes]
    (endpoint,) = (each for each in found if isinstance(each, HandlerEndpoint))
    return endpoint.admission.slots


async def test_without_a_function_a_client_is_its_address(stack: Stack) -> None:
    app = App()
    app.add("/ws", Echo, max_connections_per_client=1)
    async with stack.serve(app) as server:
        async with server.connect("/ws"):
            assert_too_many(await refusal(server, "/ws"), stack)
        await until(lambda: slots_of(app).by_client == {})
        async with server.connect("/ws"):
            assert len(slots_of(app).by_client) == 1


@pytest.mark.parametrize("fault", ["raises", "none", "bool"])
async def test_who_cannot_be_told_is_refused_and_the_log_says_why_once(
    stack: Stack, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal()
    answers: dict[str, Callable[[HTTPConnection], object]] = {
        "raises": lambda request: request.cookies["user"],
        "none": lambda request: None,
        "bool": lambda request: True,
    }
    app = App()
    app.add("/ws", Recorder, factory=lambda _: Recorder(journal), max_connections_per_client=2, client=answers[fault])
    async with stack.serve(app) as server:
        assert (await refusal(server, "/ws")).status in (500, 403)
    (error,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert error.getMessage().startswith("client of Recorder failed for ")
    assert error.exc_info is not None
    if fault == "raises":
        assert isinstance(error.exc_info[1], KeyError)
    else:
        found = {"none": "NoneType", "bool": "bool"}[fault]
        assert str(error.exc_info[1]) == (
            f"client returned {found}, and not who the client is: return a str or an int, such as the id of a user, or "
            "request.client.host where there is none, or raise HTTPException(401)"
        )
    take_errors(caplog)
    assert (slots_of(app).taken, slots_of(app).by_client) == (0, {})
    assert journal.ended()


def refuses(request: HTTPConnection) -> NoReturn:
    raise HTTPException(401, "who are you?", {"WWW-Authenticate": "Bearer"})


@pytest.mark.parametrize("late", [False, True])
async def test_who_a_client_is_may_be_asked_of_it(stack: Stack, late: bool, caplog: pytest.LogCaptureFixture) -> None:
    journal, refusals = Journal(), Refusals()
    app = App()
    context_of(app).observe(refusals)
    app.add(
        "/ws",
        Recorder,
        factory=lambda _: Recorder(journal),
        max_connections_per_client=2,
        client=refuses,
        refuse_after_upgrade=late,
    )
    async with stack.serve(app) as server:
        if late:
            async with server.connect("/ws") as peer:
                assert await closing(peer) == Close(4401, "who are you?", by="server")
        else:
            refused = await refusal(server, "/ws")
            if refused.status != 403:
                # A server without the denial extension of ASGI answers 403 to everything.
                assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
                assert refused.body == b"who are you?"
    assert refusals.seen == [(401, "handler")]
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []
    assert (slots_of(app).taken, slots_of(app).by_client) == (0, {})
    assert journal.ended()


async def test_a_websocket_exception_says_that_a_client_is_nobody(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(request: HTTPConnection) -> NoReturn:
        raise WebSocketException(1008, "who are you?")

    app = App()
    app.add("/ws", Echo, max_connections_per_client=2, client=refuse)
    async with stack.serve(app) as server:
        refused = await refusal(server, "/ws")
        assert (refused.status, refused.body) in ((403, b"who are you?"), (403, b""))
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []
    assert (slots_of(app).taken, slots_of(app).by_client) == (0, {})


def test_a_slot_is_given_back_when_the_question_who_a_client_is_is_broken_off() -> None:
    def leave(request: HTTPConnection) -> NoReturn:
        raise SystemExit

    slots = Slots(None)
    config = ConnectionConfig(max_connections_per_client=2, client=leave, allowed_origins="*")
    with pytest.raises(SystemExit):
        Admission("Echo", slots, config, Hosts()).admit({"type": "websocket", "headers": []})
    assert (slots.taken, slots.by_client) == (0, {})


async def test_endpoints_that_make_their_function_anew_count_together(stack: Stack) -> None:
    app = App()

    @app.route("/ws")
    async def endpoint(upgrade: WebSocketUpgrade) -> None:
        user = upgrade.query_params["user"]
        await handle_upgrade(upgrade, Echo(), max_connections_per_client=1, client=lambda request: user)

    async with stack.serve(app) as server, server.connect("/ws?user=ann"), server.connect("/ws?user=bob"):
        assert_too_many(await refusal(server, "/ws?user=ann"), stack)


@pytest.mark.parametrize(
    ("host", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:DB8:0:0:ffff::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("unix:", "unix:", True),
        ("testclient", "other", False),
    ],
)
def test_which_addresses_are_one_client(host: str, other: str, same: bool) -> None:
    assert (network_of(host) == network_of(other)) is same


async def test_behind_a_socket_without_addresses_all_are_one_client() -> None:
    app = App()
    app.add("/ws", Echo, max_connections_per_client=1)

    async def nameless(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "client": None}, receive, send)

    async with MEMORY.serve(nameless) as server, server.connect("/ws"):
        assert (await refusal(server, "/ws")).status == 429


# What a client sends.


def rated(app: App, journal: Journal, **limits: Any) -> None:
    app.add("/ws", Recorder, factory=lambda _: Recorder(journal), **limits)


async def test_a_client_over_its_rate_is_handled_in_its_rate(stack: Stack) -> None:
    await check_pace(stack)


async def test_a_client_over_its_rate_is_handled_in_its_rate_in_parallel() -> None:
    await check_pace(MEMORY, parallel=2)


async def check_pace(stack: Stack, **limits: Any) -> None:
    clock, journal = ManualClock(), Journal()
    app = App(clock=clock)
    app.stats()
    rated(app, journal, message_rate="2/s", burst=3, idle_timeout=0.4, **limits)
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for number in range(5):
            await peer.send(str(number))
        assert await journal.take(4) == ["connect", "0", "1", "2"]
        await until(lambda: app.stats().messages_received == 5)
        await clock.advance(0.4)
        assert journal.ended()
        await clock.advance(0.1)
        assert await journal.next() == "3"
        await clock.advance(0.4)
        assert journal.ended()
        await clock.advance(0.1)
        assert await journal.next() == "4"
        await peer.close()
        assert await journal.next() == stack.peer_closed(1000)
    await until(lambda: clock.pending == 0)


async def test_what_a_client_over_its_rate_sent_before_it_left_is_handled(stack: Stack) -> None:
    clock, journal = ManualClock(), Journal()
    app = App(clock=clock)
    rated(app, journal, message_rate="1/min", byte_rate="1KiB/h")
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for number in range(3):
            await peer.send(str(number))
        await peer.close()
        assert await journal.take(5) == ["connect", "0", "1", "2", stack.peer_closed(1000)]
    await until(lambda: clock.pending == 0)


async def test_a_client_over_its_rate_is_closed(stack: Stack) -> None:
    await check_close(stack, message_rate="2/s")


@pytest.mark.parametrize("limits", [{"byte_rate": "10B/s"}, {"message_rate": "2/s", "byte_rate": "10B/min"}], ids=str)
async def test_the_reason_names_the_rate_with_the_longer_wait(limits: dict[str, str]) -> None:
    await check_close(MEMORY, **limits)


async def check_close(stack: Stack, **limits: str) -> None:
    journal = Journal()
    app = App(clock=ManualClock())
    rated(app, journal, over_rate="close", **limits)
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        assert await journal.next() == "connect"
        for _ in range(2):
            await peer.send("12345")
            assert await journal.next() == "12345"
        await peer.send("12345")
        name, rate = list(limits.items())[-1]
        closed = Close(1008, f"{name} of {rate} is exceeded", by="server")
        assert await closing(peer) == closed
        assert await journal.next() == closed


async def test_a_message_over_the_rate_is_dropped_and_counted(stack: Stack) -> None:
    clock, journal = ManualClock(), Journal()
    app = App(clock=clock)
    app.stats()
    rated(app, journal, message_rate="2/s", over_rate="drop", idle_timeout=1)
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await clock.advance(0.9)
        for number in range(5):
            await peer.send(str(number))
        assert await journal.take(3) == ["connect", "0", "1"]
        await until(lambda: app.stats().messages_received == 5)
        await clock.advance(0.9)
        # What was dropped was activity all the same, and time goes on for who is over the rate.
        await peer.send("later")
        assert await journal.next() == "later"
        await peer.send("lost")
        await until(lambda: app.stats().messages_received == 7)
        await peer.close()
        assert await journal.next() == stack.peer_closed(1000)
        await until(lambda: app.stats().undelivered == 4)


async def test_whoever_counts_messages_or_not_they_are_dropped() -> None:
    journal = Journal()
    app = App(clock=ManualClock())
    rated(app, journal, message_rate="1/s", over_rate="drop")
    async with MEMORY.serve(app) as server, server.connect("/ws") as peer:
        await send_all(peer, ["0", "1"])
        assert await journal.take(2) == ["connect", "0"]
    assert await journal.next() == Unknown()


async def test_who_is_slowed_down_is_pushed_back_by_tcp() -> None:
    clock, journal = ManualClock(), Journal()
    app = App(clock=clock)
    handlers: list[Recorder] = []

    def make(_: Headers) -> Recorder:
        handlers.append(Recorder(journal))
        return handlers[0]

    app.add("/ws", Recorder, factory=make, byte_rate="10kB/s", max_inbox=50_000)
    async with DIRECT.serve(app) as server, server.connect("/ws") as peer:
        sending = asyncio.create_task(send_all(peer, ["x" * 10_000] * 1000))
        assert await journal.take(2) == ["connect", "x" * 10_000]
        channel: Any = channel_of(handlers[0].sink)
        await until(lambda: bool(channel._connection.reading_paused))  # noqa: SLF001 - its seam
        await clock.advance(1)
        assert await journal.next() == "x" * 10_000
        assert not sending.done()
        sending.cancel()
        await asyncio.wait((sending,))
        # Its close frame would stand behind what is not read.
        await peer.drop()


async def send_all(peer: Peer, messages: list[str]) -> None:
    for message in messages:
        await peer.send(message)


@pytest.mark.parametrize("larger", [1, 5])
async def test_a_message_larger_than_the_rate_comes_when_nothing_else_did(larger: int) -> None:
    clock, journal = ManualClock(), Journal()
    app = App(clock=clock)
    rated(app, journal, byte_rate="100B/s")
    async with MEMORY.serve(app) as server, server.connect("/ws") as peer:
        await send_all(peer, ["x" * 100 * larger, "y"])
        assert await journal.take(2) == ["connect", "x" * 100 * larger]
        await clock.advance(larger - 1)
        assert journal.ended()
        await clock.advance(0.02)
        assert await journal.next() == "y"


# How long it may take.


class Waiting(Recorder):
    """Stays in its hook for a message `wait`, until it is cancelled."""

    async def on_message(self, message: str | bytes) -> str | bytes | None:
        self.journal.add(message)
        if message == "wait":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.journal.add("cancelled")
                raise
        return message


class Streaming(Recorder):
    """The same, with a stream of replies."""

    async def on_message(self, message: str | bytes) -> AsyncGenerator[str | bytes]:  # type: ignore[override]
        self.journal.add(message)
        yield message
        if message == "wait":
            # Not every server has the reply behind it when the peer has got it.
            self.journal.add("waits")
            try:
                await asyncio.Event().wait()
            finally:
                self.journal.add("cancelled")


def timed(handler: type[Recorder], journal: Journal, **limits: Any) -> tuple[App, ManualClock]:
    clock = ManualClock()
    app = App(clock=clock)
    app.stats()
    app.add("/ws", handler, factory=lambda _: handler(journal), **limits)
    return app, clock


async def test_who_says_nothing_is_closed(stack: Stack) -> None:
    journal = Journal()
    app, clock = timed(Recorder, journal, first_message_timeout=5, max_connections=1)
    text = "first_message_timeout of 5 s is over"
    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            assert await journal.next() == "connect"
            await clock.advance(4.5)
            assert journal.ended()
            await clock.advance(0.5)
            assert await closing(peer) == Close(1008, text, by="server")
            assert await journal.next() == Timeout(text, "first_message_timeout")
        await until(lambda: slots_of(app).taken == 0)
    assert app.stats().ended == {"1008 server": 1}


async def test_a_first_message_counts_from_its_arrival(stack: Stack) -> None:
    journal, ready = Journal(), asyncio.Event()

    class Slow(Recorder):
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.accept()
            await ready.wait()

    app, clock = timed(Slow, journal, first_message_timeout=5)
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("early")
        await until(lambda: app.stats().messages_received == 1)
        await clock.advance(6)
        ready.set()
        assert await journal.next() == "early"
        await clock.advance(100)
        await peer.send("late")
        assert await journal.next() == "late"


@pytest.mark.parametrize("handler", [Waiting, Streaming])
async def test_a_run_of_on_message_that_takes_too_long_ends_the_connection(
    stack: Stack, handler: type[Recorder]
) -> None:
    journal = Journal()
    app, clock = timed(handler, journal, message_timeout=3)
    text = "message_timeout of 3 s is over"
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        for _ in range(2):
            await peer.send("quick")
            assert await peer.receive() == "quick"
            await clock.advance(2.5)
        await peer.send("wait")
        assert await journal.take(4) == ["connect", "quick", "quick", "wait"]
        if handler is Streaming:
            assert await journal.next() == "waits"
            assert await peer.receive() == "wait"
        await clock.advance(2.5)
        assert journal.ended()
        await clock.advance(0.5)
        assert await closing(peer) == Close(1011, text, by="server")
        assert await journal.take(2) == ["cancelled", Timeout(text, "message_timeout")]
    await until(lambda: clock.pending == 0)


@pytest.mark.parametrize("handler", [Waiting, Streaming])
async def test_or_the_next_message_follows(stack: Stack, handler: type[Recorder]) -> None:
    journal = Journal()
    app, clock = timed(handler, journal, message_timeout=3, on_message_timeout="continue")
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("wait")
        await peer.send("next")
        assert await journal.take(2) == ["connect", "wait"]
        if handler is Streaming:
            assert await journal.next() == "waits"
            assert await peer.receive() == "wait"
        await clock.advance(3)
        assert await journal.take(2) == ["cancelled", "next"]
        assert await peer.receive() == "next"
        await peer.close()
        assert await journal.next() == stack.peer_closed(1000)
    assert app.stats().hook_failures == {}


async def test_each_of_several_runs_has_its_time(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal()

    class Stubborn(Waiting):
        """Is not to be ended by its first cancellation, and fails at its second."""

        async def on_message(self, message: str | bytes) -> str | bytes | None:
            try:
                return await super().on_message(message)
            except asyncio.CancelledError:
                if message == "wait":
                    await super().on_message(message)
                raise

    app, clock = timed(Stubborn, journal, message_timeout=3, on_message_timeout="continue", parallel=2)
    async with MEMORY.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("wait")
        assert await journal.take(2) == ["connect", "wait"]
        await clock.advance(2)
        await peer.send("wait")
        assert await journal.next() == "wait"
        await clock.advance(1)
        assert await journal.take(2) == ["cancelled", "wait"]
        await clock.advance(1)
        assert await journal.next() == "cancelled"
        await peer.send("next")
        assert await journal.next() == "next"
        await clock.advance(1)
        assert await journal.take(2) == ["cancelled", "wait"]
        await clock.advance(1)
        assert await journal.next() == "cancelled"
    late = [each.getMessage() for each in caplog.records if "took more than" in each.getMessage()]
    assert [each.partition(" for ")[0] for each in late] == ["Stubborn.on_message"] * 2


async def test_a_run_that_will_not_be_cancelled_is_cancelled_again_every_second() -> None:
    journal = Journal()

    class Stubborn(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            for attempt in ("first", "second", "third"):
                self.journal.add(attempt)
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()

    app, clock = timed(Stubborn, journal, message_timeout=3)
    async with MEMORY.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("wait")
        assert await journal.take(2) == ["connect", "first"]
        await clock.advance(3)
        assert await journal.next() == "second"
        await clock.advance(1)
        assert await journal.next() == "third"
        await clock.advance(1)
        assert await journal.next() == Timeout("message_timeout of 3 s is over", "message_timeout")


@pytest.mark.parametrize("what_follows", ["close", "continue"])
async def test_a_run_has_no_more_time_when_the_peer_has_gone(what_follows: Literal["close", "continue"]) -> None:
    journal = Journal()
    app, clock = timed(Waiting, journal, message_timeout=3, on_message_timeout=what_follows, disconnect_grace=None)
    async with MEMORY.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("wait")
        assert await journal.take(2) == ["connect", "wait"]
        await peer.send("next")
        leaving = asyncio.create_task(peer.close())
        await clock.advance(3)
        assert await journal.take(3) == ["cancelled", "next", Close(1000, by="client")]
        await leaving
