"""A server of one connection that does what the test says: what the app receives, and how its sends go."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

import pytest
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Message, Scope

from wsdeco import App
from wsdeco.routing.endpoints import HandlerEndpoint
from wsdeco.testing import ManualClock

Seen: TypeAlias = str | bytes | tuple[object, ...]
"""What the client sees: "accepted", a message, ("close", code, text) or ("http", status)."""

PATIENCE: Final = 30.0
"""Seconds of real time after which a test that waits in vain fails."""


def websocket_scope(
    headers: Sequence[tuple[str, str]] = (), subprotocols: Sequence[str] = (), *, denial: bool = True, query: str = ""
) -> Scope:
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/ws",
        "raw_path": b"/ws",
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"testserver"), *((name.encode(), value.encode()) for name, value in headers)],
        "client": ["192.0.2.1", 4321],
        "server": ["testserver", 80],
        "subprotocols": list(subprotocols),
        "extensions": {"websocket.http.response": {}} if denial else {},
        "state": {},
    }


class Wire:
    """A server without a network.

    Attributes:
        sent: The ASGI messages of the app, as they arrived.
        writable: Cleared, every send of the app waits.
        failure: What a send of the app raises; by default `OSError` as soon as the peer has gone.
        answers: Whether the peer answers a close frame, so that the app is told of the end.
        task: The app.
    """

    def __init__(self, app: ASGIApp, scope: Scope | None = None) -> None:
        self.sent: list[Message] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.failure: BaseException | None = None
        self.answers = True
        self.before_send: Callable[[Message], Awaitable[object]] | None = None
        self._app = app
        self._scope = websocket_scope() if scope is None else scope
        self._events: deque[Message | BaseException] = deque()
        self._arrived = asyncio.Event()
        self.task: asyncio.Task[None] = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self._app(self._scope, self.receive, self.send)

    # The peer's side.

    def tell(self, event: Message | BaseException) -> None:
        """Let the app receive an event, or its `receive()` raise."""
        self._events.append(event)
        self._arrived.set()

    def connect(self) -> None:
        self.tell({"type": "websocket.connect"})

    def message(self, data: str | bytes) -> None:
        key = "text" if isinstance(data, str) else "bytes"
        self.tell({"type": "websocket.receive", key: data})

    def close(self, code: int, reason: str = "") -> None:
        self.failure = OSError("the peer has closed")
        self.tell({"type": "websocket.disconnect", "code": code, "reason": reason})

    def lose(self) -> None:
        self.failure = OSError("the peer has gone")
        self.tell({"type": "websocket.disconnect", "code": 1006})

    @property
    def seen(self) -> list[Seen]:
        """What the client has seen so far."""
        seen: list[Seen] = []
        for message in self.sent:
            match message:
                case {"type": "websocket.accept"}:
                    seen.append("accepted")
                case {"type": "websocket.send", "text": str(text)}:
                    seen.append(text)
                case {"type": "websocket.send", "bytes": bytes(binary)}:
                    seen.append(binary)
                case {"type": "websocket.close", "code": code, "reason": text}:
                    seen.append(("close", code, text))
                case {"type": "websocket.http.response.start", "status": status}:
                    seen.append(("http", status))
                case _:
                    pass
        return seen

    @property
    def unread(self) -> int:
        """How many events the app has not received."""
        return len(self._events)

    async def done(self) -> None:
        """Wait until the app has returned; raise what it raised."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait((self.task,))
        self.task.result()

    # The app's side.

    async def receive(self) -> Message:
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, BaseException):
            raise event
        return event

    async def send(self, message: Message) -> None:
        if self.before_send is not None:
            await self.before_send(message)
        await self.writable.wait()
        if self.failure is not None:
            raise self.failure
        self.sent.append(message)
        ends = message["type"] in {"websocket.close", "websocket.http.response.body"}
        if ends and self.answers:
            self.tell({"type": "websocket.disconnect", "code": message.get("code", 1006), "reason": ""})


def slots_taken(app: App) -> int:
    """Return how many slots of all routes are taken."""
    endpoints = [route.endpoint for route in app.app.routes if isinstance(route, WebSocketRoute)]
    return sum(endpoint.admission.slots.taken for endpoint in endpoints if isinstance(endpoint, HandlerEndpoint))


def assert_at_rest(app: App, clock: ManualClock) -> None:
    """Fail unless nothing is left of the connections: no slot, no timer, no task."""
    assert slots_taken(app) == 0
    assert clock.pending == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


class CountingClock(ManualClock):
    """A clock that counts its timers.

    Attributes:
        made: How many there have been.
    """

    made = 0

    def call_at(self, when: float, callback: Callable[[], object], /) -> Any:
        self.made += 1
        return super().call_at(when, callback)


class Logged:
    """What wsdeco logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "wsdeco")
        self._caplog = caplog

    @property
    def records(self) -> list[logging.LogRecord]:
        return [record for record in self._caplog.records if record.name == "wsdeco"]

    def lines(self, level: int = logging.WARNING) -> list[str]:
        """Return level and text of the records of `level` and above."""
        return [f"{each.levelname} {each.getMessage()}" for each in self.records if each.levelno >= level]

    def exceptions(self) -> list[Any]:
        """Return the exceptions that were logged with their traceback."""
        return [record.exc_info[1] for record in self.records if record.exc_info is not None]
