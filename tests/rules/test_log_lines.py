"""What a peer sends forges no line of the log, and fills none."""

import io
import logging
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from starlette.exceptions import WebSocketException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from websockets.sync.client import connect

from tests.support.raw import dial
from tests.support.stacks import DIRECT, Stack, soon, until
from wsdeco import Address, App, ConnectionClosed, DisconnectReason, Sink
from wsdeco.testing import HandshakeRefused

FORGED: Final = "x\r\nINFO:     admin logged in\n\x1b[2J" + "y" * 20_000


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that is logged, as a plain formatter writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    # The client of these tests writes lines of its own.
    handler.addFilter(lambda record: not record.name.startswith("http"))
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    root, ours, access = map(logging.getLogger, (None, "wsdeco", "wsdeco.access"))
    before = [(each, each.level, each.handlers.copy(), each.filters.copy()) for each in (root, ours, access)]
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    root.setLevel(logging.INFO)
    yield stream
    # run() in the same process sets levels, handlers and filters.
    for each, level, handlers, filters in before:
        each.setLevel(level)
        each.handlers[:] = handlers
        each.filters[:] = filters


def check(log: io.StringIO) -> None:
    lines = log.getvalue().rstrip("\n").split("\n")
    assert len(lines) > 0
    # An empty line is what uvicorn puts behind "Exception in ASGI application".
    wrong = [line[:200] for line in lines if not line.isprintable() or len(line) > 1500 or line.startswith("INFO:")]
    assert wrong == []


class Failing:
    """Fails in as many ways as a peer's text can reach the log."""

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink
        if "refuse" in sink.query_params:
            raise WebSocketException(1008, FORGED)
        if "fail" in sink.query_params:
            raise ValueError(FORGED)

    async def on_message(self, text: str) -> None:
        kind, _, text = text.partition(" ")
        if kind == "close":
            raise WebSocketException(4000, text[:20])
        if kind == "task":
            _ = self.sink.create_task(self.work(text), name=text)
            return
        error = LookupError(text)
        error.add_note(text)
        raise ExceptionGroup(text, [error]) from KeyError(text)

    async def work(self, text: str) -> None:
        raise OSError(text)

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        raise RuntimeError(str(reason) + FORGED)


async def test_hooks_that_raise_what_the_peer_has_sent(stack: Stack, log: io.StringIO) -> None:
    app = App()
    app.add("/ws", Failing)
    async with stack.serve(app) as server:
        for kind in ("group", "close", "task"):
            async with server.connect("/ws") as peer:
                await peer.send(f"{kind} {FORGED}")
                with pytest.raises(ConnectionClosed):
                    await soon(peer.receive())
        for query in ("refuse", "fail"):
            with pytest.raises(HandshakeRefused):
                async with server.connect(f"/ws?{query}"):
                    pass
        await until(lambda: log.getvalue().count("RuntimeError: ") >= 4)
    check(log)
    assert "admin logged in" in log.getvalue()


async def test_a_handshake_with_a_forged_origin(log: io.StringIO) -> None:
    app = App()
    app.add("/ws/{name}", Failing)
    async with DIRECT.serve(app) as server, dial(server) as peer:
        head = ("GET /ws/%1b%0d%0aINFO: HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade")
        key = (
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            "Origin: \x85" + "y" * 20_000,
        )
        await peer.write("\r\n".join([*head, *key, "", ""]).encode("latin-1"))
        assert await peer.status() == 403
    check(log)
    assert "refused: origin \\x85yyy" in log.getvalue()


def test_plain_requests_of_run(log: io.StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    app = App()
    app.add("/ws", Failing)

    @app.route("/page")
    async def page(request: Request) -> PlainTextResponse:
        raise ValueError(request.query_params["text"])

    server: Any = app.run(port=0, background=True, log_level="info", use_colors=False)
    with server, httpx.Client(base_url=server.http_url, trust_env=False) as client:
        assert client.get("/page", params={"text": FORGED}).status_code == 500
        with connect(f"{server.url}/ws?text={'y' * 5000}", proxy=None) as peer:
            peer.send(f"group {FORGED}")
            with pytest.raises(Exception, match="1011"):
                peer.recv()
    check(log)
    written = capfd.readouterr()
    lines = (written.err + written.out).split("\n")
    assert all(line.isprintable() and len(line) < 1500 for line in lines)
    assert not any("admin" in line and line.startswith("INFO") and "ValueError" in line for line in lines)
    assert any('"GET /page?text=' in line for line in lines)
