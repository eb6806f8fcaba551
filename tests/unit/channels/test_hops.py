"""How many Python calls stand between the bytes of a message and the bytes of its reply."""

import sys
from types import FrameType
from typing import Any, Final

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support import raw
from tests.support.in_memory import REQUEST, FakeTransport, Session, settle
from wsdeco import App

BUDGET: Final = {"direct": 12, "asgi": 38}
"""Calls of functions of wsdeco, Starlette and uvicorn, and resumptions of their coroutines, from bytes to bytes."""

COUNTED: Final = ("wsdeco.", "starlette.", "uvicorn.")


class SeesMessages:
    """A middleware that wraps `receive`, so that messages go the way of ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched() -> Message:
            return await receive()

        await self.app(scope, watched, send)


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
