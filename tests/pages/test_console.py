"""The console over HTTP: its page, the document, the counts, and why a handshake is refused."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from tests.support.stacks import MEMORY, Stack
from wsdeco import Address, App, Sink, WebSocketUpgrade, console, handle_upgrade
from wsdeco.console import handshake

PAGE: Final = Path(console.__file__).with_name("page.html")


class Echo:
    """Sends back what it gets.

    <b>Text</b> and binary.
    """

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink
        await sink.send("Welcome!")

    async def on_message(self, data: str | bytes) -> str | bytes | None:
        if data == "bye":
            await self.sink.close(4001, "as you wish")
            return None
        if data == "flood":
            for number in range(5000):
                await self.sink.send(json.dumps({"number": number}))
            return "the end"
        return data


class Room:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        if sink.query_params.get("token") != "secret":
            raise HTTPException(401, "The token is missing, or wrong.")
        await sink.send(f"{sink.path_params['room']} {sink.path_params['n']}")


class Fails:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        raise RuntimeError("the inside")


async def both(upgrade: WebSocketUpgrade) -> Response | None:
    if "raise" in upgrade.query_params:
        raise RuntimeError("the inside")
    if "long" in upgrade.query_params:
        return StreamingResponse(iter(["x" * 1500] * 3), 402)
    if "wait" in upgrade.query_params:
        await asyncio.Event().wait()
    await handle_upgrade(upgrade, Echo)
    return None


async def closes(websocket: WebSocket) -> None:
    await websocket.close(1008)


def demo() -> App:
    app = App(docs="/docs")
    app.add("/ws", Echo)
    app.add("/rooms/{room}/{n:int}", Room, subprotocols=["chat.v2", "chat.v1"], max_connections=1)
    app.add("/fails", Fails)
    app.route("/both")(both)
    app.app.router.routes.append(WebSocketRoute("/closes", closes))
    return app


async def ask(client: httpx.AsyncClient, path: str, query: str = "", subprotocols: str = "") -> dict[str, Any]:
    answer = await client.post("/docs", json={"path": path, "query": query, "subprotocols": subprotocols})
    assert answer.status_code == 200
    return dict(answer.json())


async def test_the_page_comes_with_a_policy_that_lets_nothing_else_in(stack: Stack) -> None:
    async with stack.serve(demo()) as server, server.http() as client:
        page = await client.get("/docs")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(each.split(maxsplit=1) for each in page.headers["content-security-policy"].split("; ")[:-1])
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"])
        assert re.fullmatch(r"'self' ws://([\w.:]+) wss://\1", policy["connect-src"])
        assert (await client.get("/docs", headers={"Host": "a b; x"})).status_code in (200, 400)
        assert (await client.head("/docs")).status_code == 200
        for method, path, allowed in (("PUT", "/docs", "GET, HEAD, POST"), ("POST", "/asyncapi.json", "GET, HEAD")):
            refused = await client.request(method, path)
            assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


async def test_a_strange_host_gets_into_no_policy() -> None:
    async with MEMORY.serve(demo()) as server, server.http() as client:
        page = await client.get("/docs", headers={"Host": "a; script-src *"})
        assert "connect-src 'self' ;" in page.headers["content-security-policy"]


async def test_the_document_names_the_server_and_the_counts_are_live(stack: Stack) -> None:
    async with stack.serve(demo()) as server, server.http() as client:
        document = (await client.get("/asyncapi.json")).json()
        assert document["servers"]["server"]["protocol"] == "ws"
        assert list(document["channels"]) == ["ws", "rooms_room_n", "fails", "both"]
        counts = {"/ws": 0, "/rooms/{room}/{n:int}": 0, "/fails": 0}
        assert (await client.get("/docs?counts")).json() == counts
        async with server.connect("/ws") as peer:
            assert await peer.receive() == "Welcome!"
            assert (await client.get("/docs?counts")).json() == counts | {"/ws": 1}


async def test_it_tells_why_a_handshake_is_refused(stack: Stack) -> None:
    refusal = {"status": 401, "text": "The token is missing, or wrong."}
    async with stack.serve(demo()) as server, server.http() as client:
        assert await ask(client, "/rooms/a/1") == refusal
        assert await ask(client, "/rooms/a/1", "token=wrong", "chat.v1") == refusal
        assert (await ask(client, "/rooms/a%20b/1", "token=secret", "chat.v1"))["status"] == 101
        assert await ask(client, "/rooms/a/x") == {"status": 404, "text": "Not Found"}
        assert await ask(client, "/fails") == {"status": 500, "text": "Internal Server Error"}
        assert (await ask(client, "/both"))["status"] == 101
        assert await ask(client, "/both", "raise") == {"status": 500, "text": "Internal Server Error"}
        assert await ask(client, "/both", "long") == {"status": 402, "text": "x" * 2000}
        assert await ask(client, "/closes") == {"status": 403, "text": "Forbidden"}
        assert (await client.get("/docs?counts")).json()["/ws"] == 0


async def test_a_handler_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "PATIENCE", 0.01)
    async with MEMORY.serve(demo()) as server, server.http() as client:
        assert await ask(client, "/both", "wait") == {"status": 0, "text": ""}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 50_000,
        b"[" * 100_000,
        b'{"path": "ws", "query": "", "subprotocols": ""}',
        b'{"path": "/\xc3\xa9", "query": "", "subprotocols": ""}',
        b'{"path": 1, "query": "", "subprotocols": ""}',
    ],
)
async def test_what_is_no_question_is_a_bad_request(body: bytes) -> None:
    async with MEMORY.serve(demo()) as server, server.http() as client:
        assert (await client.post("/docs", content=body)).status_code == 400


async def test_only_its_own_page_may_ask() -> None:
    async with MEMORY.serve(demo()) as server, server.http() as client:
        question = {"path": "/ws", "query": "", "subprotocols": ""}
        answer = await client.post("/docs", json=question, headers={"Origin": "https://example.com"})
        assert answer.status_code == 403


def test_the_page_is_small_and_needs_nothing_from_elsewhere() -> None:
    page = PAGE.read_text("utf-8")
    assert len(page.encode()) < 40_000
    assert re.findall(r"""https?://|@import|\ssrc=|url\(|innerHTML|style=|\son\w+=""", page) == []
