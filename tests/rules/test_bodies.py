"""Bodies of HTTP requests: their size, and clients that leave in the middle of one."""

import logging

import pytest
from httpx import ASGITransport, AsyncClient
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Scope

from tests.support.raw import dial
from tests.support.stacks import Stack, until
from wsdeco import App
from wsdeco.routing.bodies import BodyLimitingApp


def app_that_reads(events: list[str], max_body_size: int | None = 1000) -> App:
    app = App(max_body_size=max_body_size)

    @app.route("/body", methods=["POST"])
    async def body(request: Request) -> PlainTextResponse:
        events.append("asked")
        return PlainTextResponse(str(len(await request.body())))

    return app


async def test_an_upload_that_is_too_large_is_refused(stack: Stack) -> None:
    app = app_that_reads([])
    async with stack.serve(app) as server, server.http() as client:
        assert (await client.post("/body", content=b"x" * 1000)).text == "1000"
        assert (await client.post("/body", content=b"x" * 1001)).status_code == 413


@pytest.mark.parametrize(("size", "status"), [(16 << 20, 200), ((16 << 20) + 1, 413)])
async def test_a_body_has_16_mib_unless_the_app_says_otherwise(size: int, status: int) -> None:
    app = App()

    @app.route("/body", methods=["POST"])
    async def body(request: Request) -> PlainTextResponse:
        await request.body()
        return PlainTextResponse("taken")

    sent: Message = {"type": "http.request", "body": b"x" * size, "more_body": False}
    statuses: list[int] = []

    async def receive() -> Message:
        return sent

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope: Scope = {"type": "http", "method": "POST", "path": "/body", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    assert statuses == [status]


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_a_body_counts_however_it_is_framed(version: str) -> None:
    """HTTP/1.1 says in the head that there is a body; HTTP/2 need not."""
    framing = [(b"transfer-encoding", b"chunked")] if version == "1.1" else []
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/body",
        "query_string": b"",
        "http_version": version,
        "headers": framing,
    }
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 600, "more_body": True}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app_that_reads([])(scope, receive, send)
    assert statuses == [413]


async def test_a_client_that_leaves_in_the_middle_of_its_upload_is_one_line(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    if not stack.on_network:
        pytest.skip("nobody leaves in memory")
    caplog.set_level(logging.INFO)
    events: list[str] = []
    async with stack.serve(app_that_reads(events)) as server:
        async with dial(server) as peer:
            await peer.write(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
            await until(lambda: events == ["asked"])
        await until(lambda: "a client left in the middle of its request: POST /body" in caplog.messages)
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR or each.exc_info] == []


async def test_without_a_limit_any_body_is_taken() -> None:
    app = App(max_body_size=None)

    @app.route("/", methods=["POST"])
    async def length(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    async with AsyncClient(transport=ASGITransport(app), base_url="http://host") as client:
        answer = await client.post("/", content=bytes(5_000_000))
    assert answer.text == "5000000"


def test_a_limit_that_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"max_body_size must be 0 or more bytes, or None for no limit, not -1"):
        App(max_body_size=-1)
    monkeypatch.setattr(BodyLimitingApp, "limits_bodies", False)
    with pytest.raises(ValueError, match=r"max_body_size=1000 needs Starlette 1\.6"):
        App(max_body_size=1000)
    App()
    App(max_body_size=None)
