"""How many Python calls stand between the bytes of a message, or of a request, and the bytes of the answer."""

import asyncio
import sys
from types import FrameType
from typing import Any, Final

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tests.support import raw
from tests.support.in_memory import REQUEST, FakeTransport, Session, settle
from tests.support.middleware import SeesMessages
from wsdeco import App
from wsdeco.transport.httptools_impl import BoundedHttpToolsProtocol

BUDGET: Final = {"direct": 12, "asgi": 27}
"""Calls of functions of wsdeco, Starlette and uvicorn, and resumptions of their coroutines, from bytes to bytes."""

REQUEST_BUDGET: Final = 16
"""What a plain HTTP request may have besides those that it has with Starlette on uvicorn."""

COUNTED: Final = ("wsdeco.", "starlette.", "uvicorn.")


class Calls:
    """The names of what is called while it is the profiler of this thread."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        module: str = frame.f_globals["__name__"]
        if event == "call" and module.startswith(COUNTED):
            self.names.append(f"{module}.{frame.f_code.co_qualname}")


def write_and_stop_counting(transport: FakeTransport, data: bytes) -> None:
    sys.setprofile(None)
    transport.written.append(data)


@pytest.mark.parametrize("channel", BUDGET)
async def test_an_echo_stays_within_its_budget_of_calls(channel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()

    @app.handler("/chat")
    class Echo:
        async def on_message(self, text: str) -> str:
            return text

    session = Session(app if channel == "direct" else SeesMessages(app))
    await session.open(REQUEST)
    monkeypatch.setattr(FakeTransport, "write", write_and_stop_counting)
    counted: list[list[str]] = []
    for _ in range(3):
        calls = Calls()
        message = raw.text("x")
        sys.setprofile(calls)
        session.protocol.data_received(message)
        await settle()
        assert session.transport.take() == b"\x81\x01x"
        counted.append(calls.names)
    await session.end()
    names = min(counted, key=len)
    assert len(names) <= BUDGET[channel], "\n".join([f"{len(names)} calls:", *names])


async def test_a_plain_request_takes_few_calls_more_than_starlette_on_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    app = App()
    app.route("/page")(page)
    ours = await calls_of_a_request(app, BoundedHttpToolsProtocol, monkeypatch)
    theirs = await calls_of_a_request(Starlette(routes=[Route("/page", page)]), HttpToolsProtocol, monkeypatch)
    further = [name for name in ours if name.startswith("wsdeco.")]
    assert len(ours) - len(theirs) <= REQUEST_BUDGET, "\n".join([f"{len(ours)} calls, not {len(theirs)}:", *further])


async def calls_of_a_request(
    app: ASGIApp, protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    def write(transport: FakeTransport, data: bytes) -> None:
        if data == b"page":
            sys.setprofile(None)
        transport.written.append(data)

    session = Session(app, protocol=protocol)
    request = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"
    # The first one on a connection makes what is kept.
    await session.feed(request)
    monkeypatch.setattr(FakeTransport, "write", write)
    calls = Calls()
    sys.setprofile(calls)
    session.protocol.data_received(request)
    await settle()
    assert session.transport.take().endswith(b"\r\n\r\npage")
    session.transport.lose()
    await settle()
    return calls.names
