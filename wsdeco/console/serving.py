"""The answers of the console: its page, the AsyncAPI document it works from, live counts, and why a handshake fails."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from wsdeco.console.handshake import answer_of, read_question
from wsdeco.describe.document import asyncapi
from wsdeco.origins import origin_allowed, parse_origin
from wsdeco.routing.registry import Registry

__all__ = ["serve"]

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_POLICY: Final = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self' {sockets}; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)

_INLINE: Final = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


async def serve(registry: Registry, scope: Scope, receive: Receive, send: Send, *, is_page: bool) -> None:
    """Answer one HTTP request.

    Args:
        registry: What is registered in the app.
        scope: The ASGI scope, with the Starlette app.
        receive: As ASGI has it.
        send: As ASGI has it.
        is_page: Whether the path is that of the page, or else of the document.
    """
    request = Request(scope, receive)
    await (await _answer(registry, request, is_page=is_page))(scope, receive, send)


async def _answer(registry: Registry, request: Request, *, is_page: bool) -> Response:
    if is_page and request.method == "POST":
        return await _ask(request)
    if request.method not in ("GET", "HEAD"):
        return PlainTextResponse("Method Not Allowed", 405, {"Allow": "GET, HEAD, POST" if is_page else "GET, HEAD"})
    if not is_page:
        scheme = "wss" if request.url.scheme == "https" else "ws"
        server = f"{scheme}://{request.url.netloc}{request.scope.get('root_path', '')}"
        return JSONResponse(asyncapi(registry, server), headers=_HEADERS)
    if "counts" in request.query_params:
        return JSONResponse(registry.counts(), headers=_HEADERS)
    page, script, style = _page()
    # Not every browser takes 'self' for the WebSocket connections of a page.
    host = request.url.netloc
    sockets = f"ws://{host} wss://{host}" if parse_origin(f"http://{host}") is not None else ""
    policy = _POLICY.format(script=script, style=style, sockets=sockets)
    return Response(page, headers=_HEADERS | {"Content-Security-Policy": policy}, media_type="text/html")


async def _ask(request: Request) -> Response:
    # Of another site's page, which could make the handler work.
    origins = request.headers.getlist("origin")
    if not origin_allowed(origins, request.headers.get("host"), request.url.scheme, None):
        return PlainTextResponse("Forbidden", 403)
    question = await read_question(request)
    if question is None:
        return PlainTextResponse("Bad Request", 400)
    return JSONResponse(await answer_of(question, request.scope), headers=_HEADERS)


@lru_cache(maxsize=1)
def _page() -> tuple[bytes, str, str]:
    page = files("wsdeco.console").joinpath("page.html").read_bytes()
    hashes = {kind: base64.b64encode(hashlib.sha256(text).digest()) for kind, text in _INLINE.findall(page)}
    return page, f"'sha256-{hashes[b'script'].decode()}'", f"'sha256-{hashes[b'style'].decode()}'"
