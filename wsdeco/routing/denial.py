"""The answer to a handshake that is not accepted: an HTTP response if the server can send one."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from wsdeco.channels.events import refusal_done
from wsdeco.reasons import CloseCode

__all__ = ["deny"]


async def deny(response: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a handshake with `response`, or close it if the server has no "WebSocket Denial Response" (ASGI)."""
    if (await receive())["type"] != "websocket.connect":
        return
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await response(scope, receive, send)
        await refusal_done()
    else:
        await send({"type": "websocket.close", "code": CloseCode.POLICY})
