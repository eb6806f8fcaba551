"""What answers where no route matches: browsers and programs on the path of a WebSocket, and where the console is."""

import re
import subprocess
import sys
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from tests.support.checkout import CHECKOUT
from tests.support.stacks import MEMORY, Server, Stack
from wsdeco import App, RouteError
from wsdeco.routing.application import not_found_of

BROWSER: Final = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
TEXT: Final = "This path speaks WebSocket: open it with a WebSocket client."


class Echo:
    async def on_message(self, text: str) -> str:
        return text


def echo_app(path: str = "/n/{n:int}", docs: str | None = "auto", **limits: Any) -> App:
    app = App(docs=docs)
    app.add(path, Echo, **limits)
    return app


async def get(server: Server, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> tuple[int, str]:
    async with server.http() as client:
        answer = await client.request(method, path, headers=headers)
        return answer.status_code, answer.text


async def test_a_browser_on_a_websocket_path_reads_what_it_is_and_a_program_gets_text(stack: Stack) -> None:
    async with stack.serve(echo_app()) as server, server.http() as client:
        page = await client.get("/n/1?a=<b>", headers=BROWSER)
        assert (page.status_code, page.headers["upgrade"]) == (426, "websocket")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert "This is a WebSocket" in page.text
        assert re.search(r"new WebSocket\(\"ws://[^/]+/n/1\?a=", page.text)
        assert "<b>" not in page.text
        assert "wsdeco connect ws://" in page.text
        assert "href" not in page.text
        for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
            answer = await client.get("/n/1", headers=headers)
            assert (answer.status_code, answer.text) == (426, TEXT)


async def test_a_mounted_app_says_the_same_with_a_link_to_its_console(stack: Stack) -> None:
    async def page(_: object) -> PlainTextResponse:
        return PlainTextResponse("outer")

    outer = Starlette(routes=[Route("/", page), Mount("/live", echo_app(docs="/docs")), Mount("/bare", echo_app())])
    async with stack.serve(outer) as server:
        status, text = await get(server, "/live/n/1", BROWSER)
        assert (status, 'href="/live/docs#/n/1"' in text) == (426, True)
        assert re.search(r"ws://[^/]+/live/n/1", text)
        assert await get(server, "/live/n/1") == (426, TEXT)
        status, text = await get(server, "/bare/n/1", BROWSER)
        assert (status, "href" in text) == (426, False)
        assert await get(server, "/live/other") == (404, "Not Found")
        assert (await get(server, "/live/docs"))[0] == 200
        assert (await get(server, "/live/asyncapi.json"))[0] == 200
        assert (await get(server, "/docs"))[0] == 404


async def test_a_plain_request_reads_why_a_handshake_would_be_refused(stack: Stack) -> None:
    async with stack.serve(echo_app("/ws", max_connections=1)) as server, AsyncExitStack() as opened:
        assert (await get(server, "/ws", method="POST"))[0] == 426
        peer = await opened.enter_async_context(server.connect("/ws"))
        await peer.send("x")
        assert await peer.receive() == "x"
        async with server.http() as client:
            full = await client.get("/ws", headers=BROWSER)
        assert (full.status_code, full.text, full.headers["retry-after"]) == (503, "Service Unavailable", "1")
        await peer.close()
        while (await get(server, "/ws"))[0] == 503:
            pass
        foreign = {"Origin": "https://example.com"}
        assert await get(server, "/ws", foreign, "POST") == (403, "Forbidden")


async def test_a_plain_request_reads_that_the_app_shuts_down(stack: Stack) -> None:
    app = echo_app("/ws")
    async with stack.serve(app) as server:
        await app.shut_down()
        assert await get(server, "/ws", BROWSER) == (503, "Service Unavailable")


# Where the console is.


async def docs_of(app: App, path: str = "/docs", **headers: str) -> int:
    async with MEMORY.serve(app) as server:
        return (await get(server, path, {"Host": "127.0.0.1:8000"} | headers))[0]


async def test_the_console_is_off_unless_asked_for() -> None:
    app = echo_app()
    assert app.docs == "auto"
    assert await docs_of(app) == 404
    app.docs = "/tools/console"
    assert await docs_of(app, "/tools/console") == 200
    assert await docs_of(app, "/tools/asyncapi.json") == 200
    assert await docs_of(app, "/docs") == 404
    app.docs = "/"
    assert [await docs_of(app, path) for path in ("/", "/asyncapi.json")] == [200, 200]
    app.docs = None
    assert await docs_of(app, "/tools/console") == 404


async def test_a_server_on_loopback_shows_it_to_its_own_machine() -> None:
    app = echo_app()
    not_found_of(app).on_loopback = True
    for host in ("127.0.0.1:8000", "localhost", "[::1]:9000", "app.localhost:80"):
        assert await docs_of(app, Host=host) == 200
    for host in ("example.com", "10.0.0.1:8000", "", "127.0.0.1:8000:1"):
        assert await docs_of(app, Host=host) == 404
    for name in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP", "X-Forwarded-Host"):
        assert await docs_of(app, **{name: "1.2.3.4"}) == 404
    app.docs = None
    assert await docs_of(app) == 404
    app.docs = "/docs"
    assert await docs_of(app, Host="example.com") == 200


async def test_a_route_of_the_users_own_wins() -> None:
    app = echo_app(docs="/docs")
    assert await docs_of(app) == 200

    @app.route("/docs")
    async def own() -> PlainTextResponse:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse("mine", 203)

    assert await docs_of(app) == 203
    assert await docs_of(app, "/asyncapi.json") == 404
    assert not_found_of(app).console_path is None


@pytest.mark.parametrize("docs", ["docs", "/docs/{name}", "/docs?x", ""])
def test_a_path_that_is_none_is_refused(docs: str) -> None:
    with pytest.raises(RouteError):
        App(docs=docs)
    app = App()
    with pytest.raises(RouteError):
        app.docs = docs


async def test_without_its_package_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    app = echo_app()
    not_found_of(app).on_loopback = True
    monkeypatch.setitem(sys.modules, "wsdeco.console", None)
    assert not_found_of(app).console_path is None
    assert await docs_of(app) == 404


SERVED: Final = """
import sys, urllib.error, urllib.request
from wsdeco import App

app = App()

@app.handler("/ws")
class Echo:
    async def on_message(self, text):
        return text

with app.run(port=0, background=True) as server:
    for path in ("/ws", "/other"):
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server.http_url + path)
        except urllib.error.HTTPError as error:
            error.close()
print([name for name in sys.modules if name.startswith(("wsdeco.console", "wsdeco.describe", "wsdeco.cli"))])
"""


def test_nothing_of_it_is_loaded_until_somebody_asks() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SERVED], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.splitlines()[-1] == "[]"
