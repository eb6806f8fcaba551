"""The in-memory client shows an app the handshake that a server shows it."""

from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.stacks import MEMORY, SANSIO, Stack
from wsdeco import App
from wsdeco.testing import connect

OF_EACH = {"host", "sec-websocket-key", "user-agent"}


async def shown(stack: Stack, **options: Any) -> dict[str, Any]:
    found: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        found.append(scope)
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        await receive()

    async with stack.serve(app) as server, server.connect("/ws?a=b", **options) as peer:
        await peer.close()
    scope = found[0]
    fields = [(name.decode(), value.decode()) for name, value in scope["headers"]]
    return {
        "names": sorted(name for name, _ in fields),
        "values": sorted((name, value) for name, value in fields if name not in OF_EACH),
        "subprotocols": list(scope["subprotocols"]),
    }


@pytest.mark.parametrize(
    "options", [{}, {"subprotocols": ["bearer", "token.abc"]}, {"headers": {"Cookie": "a=b", "X-Id": "7"}}]
)
async def test_field_by_field(options: dict[str, Any]) -> None:
    assert await shown(MEMORY, **options) == await shown(SANSIO, **options)


async def test_a_token_in_the_subprotocol() -> None:
    app = App()
    seen: list[tuple[str, str]] = []

    @app.handler("/ws")
    class Guarded:
        def __init__(self, headers: Any) -> None:
            seen.append((headers["sec-websocket-protocol"], headers["user-agent"]))

        async def on_message(self, text: str) -> str:
            return text

    async with connect(app, "/ws", subprotocols=["bearer", "abc"]) as client:
        await client.send("x")
        await client.expect("x")
    async with connect(app, "/ws", headers={"Sec-WebSocket-Protocol": "bearer, abc", "User-Agent": "mine"}) as client:
        await client.send("x")
        await client.expect("x")
    assert seen == [("bearer, abc", "wsdeco.testing"), ("bearer, abc", "mine")]
