"""For tests: an in-memory client, a clock that tests advance, a broker in memory, and checkers of what can be replaced.

    async with connect(ws, "/ws") as client:
        await client.send("x")
        await client.expect("Echo: x")
        await client.close()

Nothing here opens a socket or waits for real time, but for `timeout`, after which a test that hangs fails.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Scope

from wsdeco.backplanes.checks import MakeBackplane, check_backplane
from wsdeco.backplanes.memory import MemoryBroker
from wsdeco.channel import Channel, HeaderItems, header_pairs
from wsdeco.config import ConnectionConfig
from wsdeco.reasons import Close, CloseCode, ConnectionClosed, Unknown

__all__ = [
    "ChannelPeer",
    "Client",
    "HandshakeRefused",
    "MakeBackplane",
    "MakePair",
    "ManualClock",
    "MemoryBroker",
    "check_backplane",
    "check_channel",
    "connect",
]

_TIMEOUT: Final = 5.0
_SETTLE_TURNS: Final = 50


class ManualClock:
    """A clock that stands still until a test advances it; pass it as `App(clock=...)`."""

    def __init__(self, start: float = 0.0) -> None:
        """Start at `start` seconds."""
        self._now = start
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    def time(self) -> float:
        """Return the present time in seconds."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> _ManualTimer:
        """Call `callback` once the clock has been advanced to `when`; soon, if it has been already."""
        timer = _ManualTimer(when, callback)
        if when <= self._now:
            asyncio.get_running_loop().call_soon(timer.fire)
        else:
            heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: every timer due in them fires at its time, and what it wakes runs on.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock advances by 0 seconds or more, not by {seconds!r}")
        end = self._now + seconds
        await self.settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            timer.fire()
            await self.settle()
        self._now = end
        await self.settle()

    async def settle(self) -> None:
        """Let the tasks of the event loop run until, as a rule, all of them wait."""
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)

    @property
    def pending(self) -> int:
        """How many timers wait."""
        return sum(not timer.cancelled for _, _, timer in self._timers)


@dataclass(eq=False, slots=True)
class _ManualTimer:
    when: float
    callback: Callable[[], object] | None

    @property
    def cancelled(self) -> bool:
        return self.callback is None

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()


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
        headers: Fields of the handshake request; `Host` is `testserver` unless given.
        subprotocols: What the client offers.
        client: The peer's address; `None` as over a Unix socket.
        scheme: `"ws"` or `"wss"`.
        denial: Whether the server has the denial response extension of ASGI.
        timeout: Seconds of real time after which a wait fails.
    """
    fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in header_pairs(headers)]
    if not any(name == b"host" for name, _ in fields):
        fields.insert(0, (b"host", b"testserver"))
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
        "subprotocols": list(subprotocols),
        "state": {},
        "extensions": {"websocket.http.response": {}} if denial else {},
    }
    return Client(app, scope, timeout)


class ChannelPeer(Protocol):
    """The other end of a channel, as `check_channel` drives it."""

    async def send(self, data: str | bytes) -> None:
        """Send one message."""

    async def receive(self) -> str | bytes:
        """Return the next message; raise `ConnectionClosed` when the channel's side has closed."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame."""

    async def drop(self) -> None:
        """Vanish without a close frame."""


MakePair: TypeAlias = Callable[[ConnectionConfig], AbstractAsyncContextManager[tuple[Channel, ChannelPeer]]]
"""Makes a channel with these limits that has just accepted the upgrade and is being read, and its peer."""


async def check_channel(make_pair: MakePair, timeout: float = _TIMEOUT) -> None:
    """Check that a channel behaves as the lifecycle relies on.

    Args:
        make_pair: Makes a fresh pair for each check, as an async context manager.
        timeout: Seconds of real time that each check may take.

    Raises:
        AssertionError: It does not; the text says where.
    """
    for check in (_check_order, _check_empty, _check_peer_close, _check_own_close, _check_lost, _check_too_big):
        try:
            async with asyncio.timeout(timeout), make_pair(ConnectionConfig(max_message_size=1000)) as (channel, peer):
                await check(channel, peer)
        except TimeoutError:
            name = check.__name__.strip("_")
            raise AssertionError(f"check_channel: {name} waits for something that does not come") from None


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(f"check_channel: {what}")


async def _check_order(channel: Channel, peer: ChannelPeer) -> None:
    sent: list[str | bytes] = ["a", b"b", "\u20ac", "", b""]
    for data in sent:
        await peer.send(data)
    received = [await channel.receive() for _ in sent]
    _require(received == sent, f"messages arrive unchanged and in order: {received!r}")
    await channel.send("1")
    _require(channel.send_nowait("2"), "send_nowait takes a message while the outbox has room")
    await asyncio.gather(channel.send("3"), channel.send(b"4"))
    replies = [await peer.receive() for _ in range(4)]
    _require(replies == ["1", "2", "3", b"4"], f"messages leave in the order of the calls: {replies!r}")


async def _check_empty(channel: Channel, peer: ChannelPeer) -> None:
    await channel.send("")
    await channel.send(b"")
    _require([await peer.receive(), await peer.receive()] == ["", b""], "empty messages are messages")


async def _check_peer_close(channel: Channel, peer: ChannelPeer) -> None:
    await peer.send("last")
    await peer.close(4001, "bye")
    _require(await channel.ended() == Close(4001, "bye", by="client"), f"the peer's close is seen: {channel.reason}")
    _require(await channel.receive() == "last", "a message before the close frame is delivered")
    _require(await channel.receive() is None, "nothing comes after the last message")
    await _require_closed(channel)


async def _check_own_close(channel: Channel, peer: ChannelPeer) -> None:
    await channel.send("last")
    reason = Close(4002, "enough", by="server")
    channel.close(4002, "enough", reason)
    channel.close(4003, "again", Close(4003, "again", by="server"))
    _require(channel.reason == reason, "the first close decides")
    await _require_closed(channel)
    await channel.flushed()
    _require(await peer.receive() == "last", "what was sent before the close frame arrives before it")
    try:
        data = await peer.receive()
    except ConnectionClosed as exc:
        _require(exc.reason == reason, f"the peer sees code and text: {exc.reason}")
    else:
        raise AssertionError(f"check_channel: the peer sees the close frame, not {data!r}")


async def _check_lost(channel: Channel, peer: ChannelPeer) -> None:
    await peer.drop()
    _require(await channel.ended() == Unknown(), f"a lost transport is Unknown: {channel.reason}")
    await _require_closed(channel)


async def _check_too_big(channel: Channel, peer: ChannelPeer) -> None:
    largest = "x" * channel.config.max_message_size
    await peer.send(largest)
    await peer.send("\u20ac" * (channel.config.max_message_size // 3 + 1))
    _require(await channel.receive() == largest, "a message of exactly max_message_size is delivered")
    await channel.send("reply")
    _require(await channel.receive() is None, "nothing comes after a message that is too big")
    ended = await channel.ended()
    _require(isinstance(ended, Close) and (ended.code, ended.by) == (1009, "server"), f"1009 for too much: {ended}")


async def _require_closed(channel: Channel) -> None:
    _require(channel.closed, "a channel that has ended says so")
    _require(not channel.send_nowait("x"), "send_nowait refuses after the end")
    try:
        await channel.send("x")
    except ConnectionClosed as exc:
        _require(exc.reason == channel.reason, "ConnectionClosed holds the reason")
    else:
        raise AssertionError("check_channel: send raises ConnectionClosed after the end")
