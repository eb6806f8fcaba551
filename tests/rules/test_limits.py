"""Limits for clients and for what they send, each on every server."""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from tests.support.recording import Journal, Recorder, refusal, take_errors
from tests.support.stacks import MEMORY, Peer, Stack, until
from wsdeco import App, WebSocketUpgrade, handle_upgrade
from wsdeco.channels.observer import Observer
from wsdeco.connection.admission import Slots
from wsdeco.connection.clients import network_of
from wsdeco.routing.application import context_of
from wsdeco.routing.endpoints import HandlerEndpoint
from wsdeco.testing import HandshakeRefused


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
            "request.client.host where there is none"
        )
    take_errors(caplog)
    assert (slots_of(app).taken, slots_of(app).by_client) == (0, {})
    assert journal.ended()


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
