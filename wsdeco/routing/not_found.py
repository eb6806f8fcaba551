"""What answers if no route matches: 404, 426 on a path that only speaks WebSocket, the console if it is on."""

from __future__ import annotations

from functools import cached_property
from html import escape
from importlib.util import find_spec
from typing import Final

from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import Receive, Scope, Send

from wsdeco.connection.hosts import FORWARDING
from wsdeco.definition.paths import check_path
from wsdeco.origins import is_loopback, parse_origin
from wsdeco.reasons import RouteError
from wsdeco.routing.denial import deny
from wsdeco.routing.endpoints import HandlerEndpoint
from wsdeco.routing.registry import Registry
from wsdeco.routing.router import IndexedRouter, first_match

__all__ = ["NotFound", "checked_docs", "document_path"]

_PATH: Final = "/docs"
"""Path of the console if the app names none."""

_CONSOLE: Final = "wsdeco.console"
"""The package that serves it, without which it is off."""

_UPGRADE: Final = {"Upgrade": "websocket", "Connection": "Upgrade"}

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>426 Upgrade Required</title>
<style>body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif }}
code {{ overflow-wrap: anywhere }}</style>
<h1>This is a WebSocket</h1>
<p>No page is served on <code>{path}</code>. WebSocket clients connect to it; in the script of a page, this line:</p>
<p><code>new WebSocket("{url}")</code></p>
<p>{hint}</p>
</html>
"""


_CSP: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"


def document_path(console: str) -> str:
    """Return where the AsyncAPI document of an app is whose console is on this path: beside it."""
    return f"{console.rpartition('/')[0]}/asyncapi.json"


def checked_docs(docs: str | None) -> str | None:
    """Return what `App(docs=...)` may be as it is.

    Raises:
        RouteError: It is no path, or one with parameters.
    """
    if docs is not None and docs != "auto" and "{" in check_path(docs):
        raise RouteError(f"docs={docs!r} has a parameter, and the console has one path: write {_PATH!r}")
    return docs


class NotFound:
    """Answers what no route of an app matches.

    Attributes:
        docs: Path of the console, `"auto"`, or `None` for none.
        on_loopback: Whether a server of `run` serves the app, and listens on loopback.
    """

    def __init__(self, router: IndexedRouter, registry: Registry, docs: str | None) -> None:
        """Answer for `router`, whose routes `registry` fills; `docs` is as for `Application`, and checked."""
        self.on_loopback = False
        self._router = router
        self._registry = registry
        self.docs = docs

    @property
    def console_path(self) -> str | None:
        """Where the console answers, `None` if it is off or the app has a route of its own on that path."""
        path = self.docs
        if path == "auto":
            path = _PATH if self.on_loopback and self._has_console else None
        if path is None:
            return None
        asked: Scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
        return None if first_match(self._router.candidates(asked), asked)[0] is not None else path

    @cached_property
    def _has_console(self) -> bool:
        # Asked for each 404, it would cost 50 us.
        return find_spec(_CONSOLE) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or handshake; handshakes with 404 as well (Starlette closes those, which is a 403)."""
        if scope["type"] != "http":
            await deny(PlainTextResponse("Not Found", 404), scope, receive, send)
            return
        request = Request(scope, receive)
        route, _ = first_match(self._router.candidates(scope), {**scope, "type": "websocket"})
        if route is not None:
            await self._answer_as_websocket(request, route, send)
            return
        console = self._console_for(request)
        asked = get_route_path(scope)
        if console is None or asked not in (console, document_path(console)):
            raise HTTPException(404)
        from wsdeco.console.serving import serve  # noqa: PLC0415 - nothing of it is loaded until somebody asks

        await serve(self._registry, scope, receive, send, is_page=asked == console)

    async def _answer_as_websocket(self, request: Request, route: BaseRoute, send: Send) -> None:
        # The state of this moment is for pages, which cannot read why a handshake was refused.
        endpoint = route.app if isinstance(route, WebSocketRoute) else None
        refusal = endpoint.refusal(request.scope) if isinstance(endpoint, HandlerEndpoint) else None
        if refusal is not None:
            raise HTTPException(refusal.status, refusal.phrase, refusal.headers)
        if "text/html" not in request.headers.get("accept", ""):
            # RFC 9110, section 15.5.22.
            raise HTTPException(426, "This path speaks WebSocket: open it with a WebSocket client.", _UPGRADE)
        response = HTMLResponse(self._page(request), 426, _UPGRADE | {"Content-Security-Policy": _CSP})
        await response(request.scope, request.receive, send)

    def _page(self, request: Request) -> str:
        url = str(request.url.replace(scheme="wss" if request.url.scheme == "https" else "ws"))
        hint = f"In a shell: <code>wsdeco connect {escape(url)}</code>"
        console = self._console_for(request)
        if console is not None:
            link = f"{request.scope.get('root_path', '')}{console}#{get_route_path(request.scope)}"
            hint = f'<a href="{escape(link)}">Try it in the console</a>'
        return _PAGE.format(path=escape(request.url.path), url=escape(url), hint=hint)

    def _console_for(self, request: Request) -> str | None:
        if self.docs == "auto" and not _is_from_here(request):
            return None
        return self.console_path


def _is_from_here(request: Request) -> bool:
    # Behind a proxy, a server that listens on loopback is seen by others. The Host header counts as well: the name of
    # another site may resolve to this machine.
    origin = parse_origin(f"http://{request.headers.get('host', '')}")
    return origin is not None and is_loopback(origin[1]) and FORWARDING.isdisjoint(dict(request.scope["headers"]))
