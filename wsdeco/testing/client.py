"""An in-memory client, for tests.

    async with connect(ws, "/ws") as client:
        await client.send("x")
        await client.expect("Echo: x")
        await client.close()

Nothing here opens a socket or waits for real time, but for `timeout`, after which a test that hangs fails.
"""

from __future__ import annotations

import asyncio
import json
import os
from base64 import b64encode
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Scope

from wsdeco.channels.data import HeaderItems, header_pairs
from wsdeco.reasons import Close, CloseCode, ConnectionClosed, Unknown

__all__ = ["Client", "HandshakeRefused", "connect"]

_TIMEOUT: Final = 5.0


class HandshakeRefused(Exception):
    """The app answered the handshake with an HTTP response.

    Attributes:
        status: The HTTP status; 403 where the app closed without a response, as ASGI has it.
        headers: Its header fields, names in lower case.
        body: Its body.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body.decode(errors='replace')}")
        self.status = status
        self.headers = dict(headers)
        self.body = body


class Client:
    """The peer of one connection, in memory. Made by `connect`, and connected by `async with`.

    Attributes:
        subprotocol: The subprotocol agreed on.
        headers: The further header fields of the 101 response.
    """

    def __init__(self, app: ASGIApp, scope: Scope, timeout: float) -> None:
        self.subprotocol: str | None = None
        self.headers: list[tuple[str, str]] = []
        self._app = app
        self._scope = scope
        self._timeout = timeout
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

    async def send(self, data: str | bytes) -> None:
        """Send one message.

        Raises:
            ConnectionClosed: The connection has ended.
        """
        if self._gone or self._closed is not None:
            raise ConnectionClosed(self._closed or Unknown())
        text, binary = (data, None) if isinstance(data, str) else (None, data)
        self._tell({"type": "websocket.receive", "text": text, "bytes": binary})
        await asyncio.sleep(0)

    async def send_json(self, data: Any) -> None:
        """Send `data` as JSON in a text message."""
        await self.send(json.dumps(data))

    async def receive(self) -> str | bytes:
        """Return the next message.

        Raises:
            ConnectionClosed: The app has closed the connection, or has ended; or this side has.
            TimeoutError: None came in time.
        """
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

    async def expect(self, data: str | bytes) -> None:
        """Fail unless the next message is `data`.

        Raises:
            AssertionError: It is another one.
            ConnectionClosed: The app has closed the connection.
            TimeoutError: None came in time.
        """
        received = await self.receive()
        if received != data:
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
        """Close as a client does, and wait until the app is done; does nothing where the connection has ended."""
        if not self._gone and self._closed is None:
            self._end({"type": "websocket.disconnect", "code": code, "reason": reason})
        await self.wait_done()

    async def drop(self) -> None:
        """Vanish without a close frame, and wait until the app is done."""
        if not self._gone:
            self._end({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})
        await self.wait_done()

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
            TimeoutError: It did not answer in time.
        """
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

    def _refuse(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self._refused = HandshakeRefused(status, headers, body)
        self._tell({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})


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


def connect(
    app: ASGIApp,
    path: str,
    *,
    headers: HeaderItems = (),
    subprotocols: Iterable[str] = (),
    client: tuple[str, int] | None = ("127.0.0.1", 50000),
    scheme: str = "ws",
    denial: bool = True,
    timeout: float = _TIMEOUT,
) -> Client:
    """Return a client that `async with` connects to an ASGI app, without a server.

    Args:
        app: The app, for instance an `App`.
        path: Path and query, such as `/rooms/1?token=x`.
        headers: Fields of the handshake request, besides those that every client sends; `Host` is `testserver` unless
            given.
        subprotocols: What the client offers.
        client: The peer's address; `None` as over a Unix socket.
        scheme: `"ws"` or `"wss"`.
        denial: Whether the server has the denial response extension of ASGI.
        timeout: Seconds of real time after which a wait fails.
    """
    fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in header_pairs(headers)]
    offered = list(subprotocols)
    if offered:
        fields.append((b"sec-websocket-protocol", ", ".join(offered).encode("latin-1")))
    given = {name for name, _ in fields}
    defaults = [(b"host", b"testserver"), (b"upgrade", b"websocket"), (b"connection", b"Upgrade")]
    defaults += [(b"sec-websocket-key", b64encode(os.urandom(16))), (b"sec-websocket-version", b"13")]
    defaults += [(b"user-agent", b"wsdeco.testing")]
    fields[:0] = [field for field in defaults if field[0] not in given]
    # As servers have them: those of all fields of the name.
    names = [name.strip() for key, value in fields if key == b"sec-websocket-protocol" for name in value.split(b",")]
    raw_path, _, query = path.partition("?")
    scope: Scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": scheme,
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": fields,
        "client": list(client) if client is not None else None,
        "server": ["testserver", 80],
        "subprotocols": [name.decode("latin-1") for name in names],
        "state": {},
        "extensions": {"websocket.http.response": {}} if denial else {},
    }
    return Client(app, scope, timeout)
