"""What other servers take from an ASGI app, wsdeco's own protocol takes as well; and nothing of it gets into a log."""

import logging
from typing import Any, Final

import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.support.recording import closing, take_errors
from tests.support.stacks import DIRECT, SANSIO, Stack, soon
from wsdeco import Close

pytestmark = pytest.mark.usefixtures("no_errors_logged")

HIDDEN: Final = "hidden"

both = pytest.mark.parametrize("stack", [DIRECT, SANSIO], ids=lambda stack: stack.name)


def app_that_sends(*messages: Message) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        await receive()
        for message in messages:
            await send(message)

    return app


ACCEPT: Final[Message] = {"type": "websocket.accept"}


@both
@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_an_app_sends_any_kind_of_bytes(stack: Stack, kind: Any) -> None:
    app = app_that_sends(ACCEPT, {"type": "websocket.send", "bytes": kind(b"hello")})
    async with stack.serve(app) as server, server.connect("/") as peer:
        assert await soon(peer.receive()) == b"hello"


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_an_app_sends_headers_of_any_kind_of_bytes(kind: Any) -> None:
    headers = [(kind(b"X-Name"), kind(b"value")), (kind(b"sec-websocket-protocol"), kind(b"chat"))]
    app = app_that_sends({**ACCEPT, "headers": headers})
    async with DIRECT.serve(app) as server, server.connect("/", subprotocols=["chat"]) as peer:
        assert ("x-name", "value") in peer.headers
        assert peer.subprotocol == "chat"


async def test_an_app_closes_without_a_code() -> None:
    app = app_that_sends(ACCEPT, {"type": "websocket.close", "code": None, "reason": None})
    async with DIRECT.serve(app) as server, server.connect("/") as peer:
        assert await closing(peer) == Close(1000, "", by="server")


@pytest.mark.parametrize(
    "messages",
    [
        [ACCEPT, {"type": "websocket.send", "bytes": [HIDDEN]}],
        [{**ACCEPT, "headers": [("set-cookie", HIDDEN)]}],
        [{**ACCEPT, "headers": [(b"set-cookie", b"a\r\n" + HIDDEN.encode())]}],
        [{**ACCEPT, "subprotocol": "another"}],
    ],
    ids=["payload", "header of text", "header with a control character", "subprotocol"],
)
async def test_what_an_app_must_not_send_stands_in_no_log(
    messages: list[Message], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with DIRECT.serve(app_that_sends(*messages)) as server:
        with pytest.raises(Exception):  # noqa: B017, PT011 - refused, or closed with 1011
            async with server.connect("/", subprotocols=[HIDDEN]) as peer:
                await peer.receive()
    text = caplog.text
    assert len(take_errors(caplog)) == 1
    assert HIDDEN not in text
