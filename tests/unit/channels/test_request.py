"""The request of an open connection: packed while nobody looks at it, and the same when somebody does."""

import gc
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from starlette.requests import HTTPConnection
from starlette.types import Scope

from tests.support.stacks import DIRECT, soon
from wsdeco import Address, App, Sink
from wsdeco.channels.packed_request import PackedRequest
from wsdeco.wire.handshake import parse_request
from wsdeco.wire.scope import build_scope

ID = "6e8bc430-9c3a-11d9-9669-0800200c9a66"


HEAD = (
    b"GET /caf%C3%A9?a=1 HTTP/1.1\r\nHost: example.com\r\nX: 1\r\nX: 2\xff\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: chat"
)
PARSED = parse_request(HEAD)
APP = App()
DB = object()
CLIENT = Address("192.0.2.1", 50000)


def scope(**more: Any) -> Scope:
    built = build_scope(
        PARSED,
        scheme="wss",
        server=("127.0.0.1", 8000),
        client=CLIENT,
        root_path="/root",
        asgi={"version": "3.0", "spec_version": "2.4"},
        state={"db": DB},
    )
    routed = {"app": APP, "router": APP.app.router, "endpoint": scope, "path_params": {"id": UUID(ID)}}
    return built | routed | more


def test_a_packed_request_says_what_it_said_before() -> None:
    packed = PackedRequest(HTTPConnection(scope()), PARSED, {"db": DB}, CLIENT)
    found = packed.unpack()
    assert found.scope == scope()
    assert found.headers.getlist("x") == ["1", "2\xff"]
    assert (found.url.path, found.path_params) == ("/root/café", {"id": UUID(ID)})
    assert found.state.db is DB
    found.state.db = None
    assert packed.unpack().state.db is DB


def test_a_request_that_somebody_keeps_stays_the_same_object() -> None:
    request = HTTPConnection(scope())
    packed = PackedRequest(request, PARSED, {"db": DB}, CLIENT)
    packed.drop_dead_reference()
    assert packed.unpack() is request


def test_a_request_that_nobody_keeps_is_told_again() -> None:
    packed = PackedRequest(HTTPConnection(scope()), PARSED, {"db": DB}, CLIENT)
    packed.drop_dead_reference()
    packed.drop_dead_reference()
    assert packed.unpack().scope == scope()


@pytest.mark.parametrize(
    "more",
    [
        {"state": {"db": DB, "user": "ada"}},
        {"user": "ada"},
        {"headers": []},
        {"subprotocols": []},
        {"client": ("192.0.2.2", 50000)},
        {"asgi": {"version": "2.0"}},
    ],
    ids=["state", "key", "headers", "subprotocols", "client", "asgi"],
)
def test_what_somebody_has_put_into_the_scope_is_kept(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"somebody has put there"):
        PackedRequest(HTTPConnection(scope(**more)), PARSED, {"db": DB}, CLIENT)


async def test_a_sink_says_the_same_before_and_after() -> None:
    app = App()
    sinks: list[Sink] = []
    told: list[object] = []

    def look(sink: Sink) -> object:
        request = sink.request
        return (
            *(str(request.url), list(sink.headers.items()), sink.query_params["a"], sink.path_params, request.cookies),
            *(request.client, request.app, request.scope["endpoint"], request.state.shared),
        )

    @app.lifespan
    async def lifespan(_: object) -> AsyncIterator[dict[str, object]]:
        yield {"shared": DB}

    @app.handler("/rooms/{id:uuid}")
    class Handler:  # pyright: ignore[reportUnusedClass] - the decorator has it
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sink = sink
            sinks.append(sink)

        async def on_message(self, text: str) -> str:
            if text == "look":
                told.append(look(self.sink))
            return text

    async with DIRECT.serve(app) as server, server.connect(f"/rooms/{ID}?a=1", headers={"Cookie": "c=2"}) as peer:
        await peer.send("first")
        assert await soon(peer.receive()) == "first"
        gc.collect()
        found: list[Any] = [each for each in gc.get_objects() if type(each) is HTTPConnection]
        assert [each for each in found if each.scope["path"] == f"/rooms/{ID}"] == []
        del found
        for _ in range(2):
            await peer.send("look")
            assert await soon(peer.receive()) == "look"
        assert sinks[0].request is sinks[0].request
    assert told[0] == told[1]
    assert f"/rooms/{ID}?a=1" in str(told[0])
    assert "'c': '2'" in str(told[0])
    assert UUID(ID) in sinks[0].path_params.values()
