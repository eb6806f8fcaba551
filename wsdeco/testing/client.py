"""A client for tests, in memory; `connect(..., live=True)` is the same over a real server.

    async with connect(ws, "/ws") as client:
        await client.send("x")
        await client.expect("Echo: x")
        await client.close()

In memory nothing opens a socket or waits for real time, but for `timeout`, after which a test that hangs fails.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from starlette.types import ASGIApp, Message, Scope

from wsdeco.channels.data import Outgoing, wire_size
from wsdeco.clock import Clock, running_loop, sleep
from wsdeco.reasons import Close, CloseCode, ConnectionClosed, Unknown

if TYPE_CHECKING:
    from wsdeco.testing.forms import Forms

__all__ = ["Client", "HandshakeRefused"]

T = TypeVar("T")


class HandshakeRefused(Exception):
    """The app answered the handshake with an HTTP response.

    Attributes:
        status: The HTTP status; 403 if the app closed without a response, as ASGI has it.
        headers: Its header fields, names in lower case.
        body: Its body.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body.decode(errors='replace')}")
        self.status = status
        self.headers: dict[str, str] = dict(headers)
        self.body = body


class Client:
    """The peer of one connection. Made by `connect`, and connected by `async with`.

    Attributes:
        subprotocol: The subprotocol agreed on.
        headers: The further header fields of the 101 response.
    """

    def __init__(self, app: ASGIApp, scope: Scope, timeout: float, clock: Clock | None = None) -> None:
        self.subprotocol: str | None = None
        self.headers: list[tuple[str, str]] = []
        self._app = app
        self._scope = scope
        self._timeout = timeout
        self._clock = clock
        self._pace: float | None = None
        self._found_forms: Forms | None = None
        self._to_app: deque[Message] = deque([{"type": "websocket.connect"}])
        self._app_waiter = _Signal()
        self._inbox: deque[str | bytes] = deque()
        self._client_waiter = _Signal()
        self._reads = asyncio.Event()
        self._reads.set()
        self._accepted = False
        self._response: dict[str, Any] = {}
        self._refused: HandshakeRefused | None = None
        self._closed: Close | None = None
        self._gone = False
        self._task: asyncio.Task[None] | None = None

    async def send(self, data: Outgoing, *, pieces: int = 1) -> None:
        """Send one message.

        Args:
            data: The message: `str`, `bytes`, or one that the `on_message` of the handler is annotated with.
            pieces: Frames that it is sent in; in memory there are none, and the app gets it whole on any server.

        Raises:
            ConnectionClosed: The connection has ended.
            TypeError: `data` has no form on the wire.
        """
        if self._gone or self._closed is not None:
            raise ConnectionClosed(self._closed or Unknown())
        await self._send(data if isinstance(data, str | bytes) else self._forms.sent(data), pieces)

    async def send_json(self, data: Any) -> None:
        """Send `data` as JSON in a text message."""
        await self.send(json.dumps(data))

    @overload
    async def receive(self) -> str | bytes: ...
    @overload
    async def receive(self, kind: type[T]) -> T: ...
    async def receive(self, kind: type[Any] | None = None) -> Any:
        """Return the next message.

        Args:
            kind: The type that it is decoded to, by the codec of the handler; by default it is returned as it came.

        Raises:
            AssertionError: It is not of this type.
            ConnectionClosed: The app has closed the connection, or has ended; or this side has.
            TimeoutError: None came in time.
        """
        received = await self._receive()
        return received if kind is None else self._forms.read(received, kind)

    async def _receive(self) -> str | bytes:
        async with asyncio.timeout(self._timeout):
            while not self._inbox:
                if self._closed is not None:
                    raise ConnectionClosed(self._closed)
                self._raise_failure()
                if self._gone or self._running_task().done():
                    raise ConnectionClosed(Unknown())
                await self._client_waiter.wait()
        return self._inbox.popleft()

    async def receive_json(self) -> Any:
        """Return the next message, which holds JSON."""
        return json.loads(await self.receive())

    async def expect(self, data: Outgoing) -> None:
        """Fail unless the next message is `data`: `str`, `bytes`, or one that the handler of the route replies with.

        Raises:
            AssertionError: It is another one.
            ConnectionClosed: The app has closed the connection.
            TimeoutError: None came in time.
            TypeError: `data` has no form on the wire.
        """
        received = await self._receive()
        is_same = received == data if isinstance(data, str | bytes) else self._forms.is_form_of(received, data)
        if not is_same:
            raise AssertionError(f"expected {data!r}, received {received!r}")

    async def expect_close(self, code: int, reason: str | None = None) -> None:
        """Fail unless the app closes with `code` (and with the text `reason`, if given), sending nothing before.

        Raises:
            AssertionError: It sends a message, or closes with something else.
            TimeoutError: It does neither in time.
        """
        try:
            data = await self.receive()
        except ConnectionClosed as exc:
            closed = exc.reason
        else:
            raise AssertionError(f"expected a close with {code}, received {data!r}")
        found = (closed.code, closed.reason) if isinstance(closed, Close) else (CloseCode.ABNORMAL, "")
        if found[0] != code or reason not in (None, found[1]):
            raise AssertionError(f"expected a close with {code} {reason or ''}, found {found[0]} {found[1]}")

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close as a client does, and wait until the app is done; does nothing if the connection has ended."""
        if not self._gone and self._closed is None:
            self._end({"type": "websocket.disconnect", "code": code, "reason": reason})
        await self.wait_done()

    async def drop(self) -> None:
        """Vanish without a close frame, and wait until the app is done."""
        if not self._gone:
            self._end({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})
        await self.wait_done()

    async def half_close(self) -> None:
        """Send nothing more, not even a close frame, but go on reading."""
        if not self._gone and self._closed is None:
            self._tell({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})
            await asyncio.sleep(0)

    def slow(self, bytes_per_second: float) -> None:
        """Read so many bytes a second from now on, of the clock of the client.

        Raises:
            ValueError: It is not more than 0.
        """
        if not bytes_per_second > 0:
            raise ValueError(f"a slow client reads more than 0 bytes per second, not {bytes_per_second!r}: see stall()")
        self._pace = bytes_per_second

    def stall(self) -> None:
        """Do what `stop_reading` does: be a client that hangs, until `resume_reading`."""
        self.stop_reading()

    def stop_reading(self) -> None:
        """Read nothing more, so that the app's `send` waits."""
        self._reads.clear()

    def resume_reading(self) -> None:
        """Read again."""
        self._reads.set()

    async def wait_done(self) -> None:
        """Wait until the app has ended.

        Raises:
            TimeoutError: It has not, in time.
        """
        task = self._running_task()
        async with asyncio.timeout(self._timeout):
            await asyncio.wait((task,))
        self._raise_failure()

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            HandshakeRefused: The app refused the handshake.
            RuntimeError: No event loop of asyncio runs the test.
            TimeoutError: It did not answer in time.
        """
        _check_asyncio()
        try:
            await self._open()
        except BaseException:
            await self._shut()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Vanish, unless the connection has ended; at the end the app is done, or cancelled."""
        await self._shut()

    # The server's side.

    async def _open(self) -> None:
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda task: self._client_waiter.set())
        async with asyncio.timeout(self._timeout):
            while not self._accepted and self._refused is None and not self._task.done():
                await self._client_waiter.wait()
        self._raise_failure()
        if self._refused is not None:
            await self.wait_done()
            raise self._refused
        if not self._accepted:
            raise HandshakeRefused(500, {}, b"the app returned without an answer")

    async def _run(self) -> None:
        await self._app(self._scope, self._app_receive, self._app_send)

    async def _send(self, data: str | bytes, pieces: int) -> None:
        text, binary = (data, None) if isinstance(data, str) else (None, data)
        self._tell({"type": "websocket.receive", "text": text, "bytes": binary})
        await asyncio.sleep(0)

    @property
    def _forms(self) -> Forms:
        if self._found_forms is None:
            from wsdeco.testing.forms import Forms  # noqa: PLC0415 - messages with types need an extra

            self._found_forms = Forms(self._app, self._scope)
        return self._found_forms

    async def _wait(self, seconds: float) -> None:
        await sleep(self._clock or asyncio.get_running_loop(), seconds)

    async def _shut(self) -> None:
        task = self._running_task()
        self._reads.set()
        if not task.done():
            self._end({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})
            await asyncio.wait((task,), timeout=self._timeout)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))

    def _running_task(self) -> asyncio.Task[None]:
        if self._task is None:
            raise RuntimeError("the client is not connected: write `async with connect(...) as client`")
        return self._task

    def _raise_failure(self) -> None:
        task = self._running_task()
        if task.done() and not task.cancelled():
            failure = task.exception()
            if failure is not None:
                raise failure

    def _tell(self, message: Message) -> None:
        self._to_app.append(message)
        self._app_waiter.set()

    def _end(self, message: Message) -> None:
        self._gone = True
        self._reads.set()
        self._tell(message)

    async def _app_receive(self) -> Message:
        while not self._to_app:
            await self._app_waiter.wait()
        return self._to_app.popleft()

    async def _app_send(self, message: Message) -> None:
        await self._reads.wait()
        await self._keep_pace(message)
        kind = message["type"]
        if self._gone:
            raise OSError("the client has gone")
        if self._closed is not None or self._refused is not None:
            raise RuntimeError(f"unexpected {kind!r} after the end of the connection")
        if kind == "websocket.accept":
            self._accepted = True
            self.subprotocol = message.get("subprotocol")
            self.headers = [(name.decode(), value.decode("latin-1")) for name, value in message.get("headers", ())]
        elif kind == "websocket.send":
            text = message.get("text")
            self._inbox.append(text if text is not None else message["bytes"])
        elif kind == "websocket.close" and self._accepted:
            self._closed = Close(message.get("code", CloseCode.NORMAL), message.get("reason") or "", by="server")
            self._tell({"type": "websocket.disconnect", "code": self._closed.code, "reason": self._closed.reason})
        elif kind == "websocket.close":
            self._refuse(403, {}, b"")
        elif kind == "websocket.http.response.start":
            if "websocket.http.response" not in self._scope["extensions"]:
                raise RuntimeError(f"unexpected {kind!r}: this server has no denial response extension")
            headers = {name.decode().lower(): value.decode("latin-1") for name, value in message.get("headers", ())}
            self._response = {"status": message["status"], "headers": headers, "body": b""}
        else:
            self._response["body"] += message.get("body", b"")
            if not message.get("more_body", False):
                self._refuse(**self._response)
        self._client_waiter.set()

    async def _keep_pace(self, message: Message) -> None:
        if self._pace is not None and message["type"] == "websocket.send":
            await self._wait(wire_size(message.get("text") or message.get("bytes") or "") / self._pace)

    def _refuse(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self._refused = HandshakeRefused(status, headers, body)
        self._tell({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})


def _check_asyncio() -> None:
    if running_loop() is None:
        raise RuntimeError(
            "wsdeco runs on asyncio, and no event loop of asyncio runs this test: with anyio, let the fixture "
            'anyio_backend return "asyncio", as its other backend is trio'
        )


class _Signal:
    """Wakes whoever waits; nothing is kept for those who come later, who look at the state first."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def set(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter
