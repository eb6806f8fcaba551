"""uvicorn's HTTP class with bounds: what owns a socket from accept to the upgrade, where `run` owns the server.

uvicorn's own has no timer before the first request, no cap on what a head may hold, and drops what arrives behind a
request for an upgrade in the same segment. Here

- one deadline runs from accept to the end of the first head, however its bytes come. It ends there, since the
  lifecycle bounds what follows by itself. The next head of a connection that is kept alive has its deadline from its
  first byte; uvicorn has a timer for the time before;
- a head has at most 64 KiB and 128 lines, else the answer is 431;
- what follows the head of an upgrade reaches the WebSocket protocol;
- a handshake that is the first thing on its connection, and comes in one piece, is parsed once: it goes straight to
  wsdeco's WebSocket protocol, and uvicorn's class is not even set up. Whatever is unusual about a request leaves it
  to uvicorn;
- an upgrade that fails ends the connection, and what was sent behind it is never a request.

The deadline starts when asyncio hands over the transport. With TLS this is after the TLS handshake, which asyncio
bounds by itself.

What is relied on of uvicorn's classes is written beside it. None of it has changed since uvicorn 0.35, and the tests
of this module fail should it change.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from http import HTTPStatus
from importlib.util import find_spec
from typing import Any, Final, TypeAlias, cast
from weakref import WeakKeyDictionary

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from wsdeco.clock import Clock, Timer
from wsdeco.transport.protocol import WebSocketProtocol
from wsdeco.wire.handshake import MAX_HEAD_LINES, MAX_HEAD_SIZE, read_handshake, refusal_response

__all__ = ["BoundedH11Protocol", "HttpProtocol"]

_HEAD_TIMEOUT: Final = 10.0
"""Seconds for the head of a request."""
_LINGER: Final = 2.0
"""Seconds for a refused peer to read the refusal and to close."""
_TICK: Final = 0.02
"""Least seconds between two runs of a timer: what is due by then is done in one go."""
_MAX_LATENESS: Final = 0.5
"""Seconds by which a timer may be late before the loop counts as having stood still."""
_DOUBT: Final = 0.1
"""Seconds to read what has arrived while the loop stood still."""

_REQUEST_LINE_SIZE: Final = len(b"GET  HTTP/1.1\r\n")
"""Bytes of a request line around its target."""
_HEADER_LINE_SIZE: Final = len(b": \r\n")
"""Bytes of a header line around its name and value."""

_EMPTY_LINE: Final = b"\r\n"

_TOO_LARGE: Final = "The request head is too large."


class _Deadlines:
    """One delay for all connections of a server, so that their order is that of time, and one timer serves them."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._due: dict[_BoundedProtocol, float] = {}
        self._timer: Timer | None = None
        self._timer_due = 0.0

    def add(self, connection: _BoundedProtocol) -> None:
        """Let `connection` expire one delay from now, unless it waits for that already."""
        if connection not in self._due:
            self._due[connection] = self._clock.time() + self._seconds
            if self._timer is None:
                self._set_timer(self._due[connection])

    def discard(self, connection: _BoundedProtocol) -> None:
        """Forget `connection`. The timer stays: to set and to cancel it for every request would cost more."""
        self._due.pop(connection, None)

    def _set_timer(self, when: float) -> None:
        self._timer_due = max(when, self._clock.time() + _TICK)
        self._timer = self._clock.call_at(self._timer_due, self._run)

    def _run(self) -> None:
        now = self._clock.time()
        if now - self._timer_due > _MAX_LATENESS:
            # A loop that has been busy runs its timers before it reads what has arrived meanwhile.
            self._set_timer(now + _DOUBT)
            return
        due: list[_BoundedProtocol] = []
        for connection, when in self._due.items():
            if when > now:
                break
            due.append(connection)
        for connection in due:
            del self._due[connection]
        for connection in due:
            connection.expire()
        self._timer = None
        if self._due:
            self._set_timer(next(iter(self._due.values())))


class _Shared:
    """What the connections of one server share."""

    def __init__(self, clock: Clock) -> None:
        self.heads = _Deadlines(clock, _HEAD_TIMEOUT)
        self.lingering = _Deadlines(clock, _LINGER)


_shared: WeakKeyDictionary[ServerState, _Shared] = WeakKeyDictionary()


class _BoundedProtocol(asyncio.Protocol, ABC):
    """What both of uvicorn's HTTP classes lack.

    Attributes:
        clock: Time and timers, set by a subclass; the event loop's, if it is `None`.
    """

    clock: Clock | None = None

    # Both of uvicorn's HTTP classes have these, and log, count and answer with them.
    transport: asyncio.Transport
    cycle: Any = None
    """The newest request with its response, or `None`; `shutdown` sets its `keep_alive` as we do."""

    _deadlines: _Shared
    _silent = True
    _deaf = False
    _status = HTTPStatus.BAD_REQUEST

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        # uvicorn's own follows when the first bytes are no handshake.
        if not config.loaded:
            config.load()
        self.config = config
        self.server_state = server_state
        self.app_state = app_state
        self.connections: set[Any] = server_state.connections
        self.loop = asyncio.get_running_loop() if _loop is None else _loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a transport, and start the deadline."""
        self.transport = cast(asyncio.Transport, transport)
        # Nobody can tell it any more when the peer has reset the connection behind its handshake.
        self._peer_name = transport.get_extra_info("peername")
        self.connections.add(self)
        deadlines = _shared.get(self.server_state)
        if deadlines is None:
            deadlines = _shared[self.server_state] = _Shared(self.loop if self.clock is None else self.clock)
        self._deadlines = deadlines
        deadlines.heads.add(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the peer."""
        if self._deaf:
            return
        if self._silent:
            self._silent = False
            if self._take_handshake(data):
                return
            transport, uvicorns = self.transport, cast(Any, super())
            uvicorns.__init__(self.config, self.server_state, self.app_state, self.loop)
            uvicorns.connection_made(transport)
        self._take_http(data)

    @abstractmethod
    def _take_http(self, data: bytes) -> None:
        """Take bytes that are not those of a handshake in one piece."""

    def _take_handshake(self, data: bytes) -> bool:
        protocol_class = self.config.ws_protocol_class
        if protocol_class is None or not issubclass(protocol_class, WebSocketProtocol):
            return False
        found = read_handshake(data)
        if found is None:
            return False
        request, early = found
        self.connections.discard(self)
        self._deadlines.heads.discard(self)
        protocol = protocol_class(self.config, self.server_state, self.app_state, self.loop)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.start(request, early, self._peer_name)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the loss of the transport."""
        self._deadlines.heads.discard(self)
        self._deadlines.lingering.discard(self)
        if self._silent:
            self.connections.discard(self)
        else:
            super().connection_lost(exc)

    def shutdown(self) -> None:
        """End the connection because the server stops."""
        if self._silent:
            self.transport.close()
        else:
            cast(Any, super()).shutdown()

    def expire(self) -> None:
        """End a connection whose deadline has run out."""
        if self._answering and not self._deaf:
            # The rest of the next head may wait behind our response: uvicorn stops reading for it.
            self._deadlines.heads.add(self)
        elif self._deaf or self._silent or not self.transport.can_write_eof():
            # What a browser opens in advance must not hold a 408 already; and with TLS, close() waits for the peer.
            self.transport.abort()
        else:
            self._write_refusal(HTTPStatus.REQUEST_TIMEOUT, "The request head took too long.")
            self.transport.close()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """End a connection whose peer breaks HTTP. uvicorn calls it for whatever its parser raises.

        Args:
            msg: The body of the response.
        """
        status = self._status
        message = _TOO_LARGE if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE else msg
        if not self._answering:
            self._refuse(status, message)
        elif not self.cycle.more_body:
            self._end_after_response()
        else:
            # The fault is in the body of a request that the app has already, and is told of by the lost connection.
            self._deaf = True
            if not self.cycle.response_started:
                self._write_refusal(status, message)
            self.transport.close()

    def _end_after_response(self) -> None:
        self._deaf = True
        self._deadlines.heads.discard(self)
        self.cycle.keep_alive = False

    def _write_refusal(self, status: HTTPStatus, message: str) -> None:
        defaults = self.server_state.default_headers
        self.transport.write(refusal_response(status, body=message.encode(), default_headers=defaults))
        # Nobody waits for a refused peer, not even the shutdown.
        self.connections.discard(self)
        self._deadlines.heads.discard(self)
        self._deadlines.lingering.add(self)
        self._deaf = True

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._write_refusal(status, message)
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            # Closing a socket with unread bytes would reset the connection, and destroy what the peer has yet to read.
            self.transport.write_eof()
        except OSError:
            # The peer has reset the connection, and the loop has yet to notice.
            self.transport.abort()

    def _pass_on(self, early: bytes) -> None:
        # uvicorn has handed the transport to the WebSocket protocol, by `set_protocol`.
        protocol = self.transport.get_protocol()
        if early and isinstance(protocol, asyncio.Protocol) and not self.transport.is_closing():
            protocol.data_received(early)


_H11Event: TypeAlias = "type[h11.NEED_DATA | h11.PAUSED] | h11.Event"


class _H11Connection(h11.Connection):
    """Checks requests before uvicorn sees them.

    Attributes:
        fault: The HTTP status for what the peer did wrong.
        asked_to_upgrade: The newest request has an `Upgrade` header.
    """

    fault = HTTPStatus.BAD_REQUEST
    asked_to_upgrade = False

    def next_event(self) -> _H11Event:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._check(event)
        except h11.RemoteProtocolError as error:
            self.fault = HTTPStatus(error.error_status_hint)
            raise
        return event

    def _check(self, request: h11.Request) -> None:
        size = _REQUEST_LINE_SIZE + len(request.target)
        for name, value in request.headers:
            size += len(name) + len(value) + _HEADER_LINE_SIZE
            self.asked_to_upgrade |= name == b"upgrade"
        if len(request.headers) >= MAX_HEAD_LINES or size > MAX_HEAD_SIZE:
            raise h11.RemoteProtocolError(_TOO_LARGE, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)


class BoundedH11Protocol(_BoundedProtocol, H11Protocol):
    """uvicorn's class on h11, with bounds."""

    conn: _H11Connection

    def _take_http(self, data: bytes) -> None:
        if not isinstance(self.conn, _H11Connection):
            # uvicorn's own has taken no bytes yet.
            self.conn = _H11Connection(h11.SERVER, MAX_HEAD_SIZE + len(_EMPTY_LINE))
        if self.conn.their_state is h11.IDLE:
            self._deadlines.heads.add(self)
        H11Protocol.data_received(self, data)
        if self.conn.their_state is not h11.IDLE:
            self._deadlines.heads.discard(self)

    def handle_events(self) -> None:
        """Do what the bytes say. uvicorn calls it for bytes, and for pipelined ones at the end of a response."""
        super().handle_events()
        if self.conn.asked_to_upgrade and self.cycle is not None:
            # The response to it, if it is not one of the WebSocket protocol, has not begun: it is a task's.
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """End a connection whose peer breaks HTTP."""
        self._status = self.conn.fault
        super().send_400_response(msg)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection to the WebSocket protocol. uvicorn calls it instead of the app."""
        if event.http_version != b"1.1":
            self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "A WebSocket handshake needs HTTP/1.1.")
            return
        self._deadlines.heads.discard(self)
        super().handle_websocket_upgrade(event)
        early, _ = self.conn.trailing_data
        self._pass_on(early)


HttpProtocol: type[asyncio.Protocol] = BoundedH11Protocol
"""uvicorn's class on httptools where that is installed, else the one on h11, with bounds."""

if find_spec("httptools") is not None:
    import httptools
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class _HeadTooLarge(Exception):
        pass

    class BoundedHttpToolsProtocol(_BoundedProtocol, HttpToolsProtocol):
        """uvicorn's class on httptools, with bounds. What begins with `on_` is called by httptools."""

        parser: httptools.HttpRequestParser
        _data = b""
        _head_size = 0
        _head_lines = 0
        _reading_body = False
        _parsed = False
        _unparsed_size = 0

        def _take_http(self, data: bytes) -> None:
            if not self._reading_body:
                self._deadlines.heads.add(self)
            self._data = data
            self._parsed = False
            HttpToolsProtocol.data_received(self, data)
            self._data = b""
            # A header is passed on when it is complete: bytes that the parser keeps to itself are counted here.
            self._unparsed_size = 0 if self._parsed else self._unparsed_size + len(data)
            if self._unparsed_size > MAX_HEAD_SIZE and not self._deaf:
                self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                self.send_400_response(_TOO_LARGE)

        def on_message_begin(self) -> None:
            """Start a request."""
            self._parsed = True
            self._head_size = _REQUEST_LINE_SIZE
            self._head_lines = 1
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            """Take a piece of the request target."""
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            """Take a header, or a trailer."""
            self._head_lines += 1
            self._count(len(name) + len(value) + _HEADER_LINE_SIZE)
            super().on_header(name, value)

        def _count(self, size: int) -> None:
            self._head_size += size
            if self._head_size > MAX_HEAD_SIZE or self._head_lines > MAX_HEAD_LINES:
                self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                # httptools makes it an HttpParserError, and uvicorn that a call of `send_400_response`.
                raise _HeadTooLarge

        def on_headers_complete(self) -> None:
            """Take the end of the head."""
            self._parsed = self._reading_body = True
            self._deadlines.heads.discard(self)
            before = self.cycle
            super().on_headers_complete()
            if self.cycle is not before and self.parser.should_upgrade():
                # An upgrade that is not one to WebSocket: the app answers as if there were none, and httptools would
                # take what follows, be it the body of this request, for the next one.
                self._end_after_response()

        def on_body(self, body: bytes) -> None:
            """Take a piece of the body."""
            self._parsed = True
            super().on_body(body)

        def on_message_complete(self) -> None:
            """Take the end of a request."""
            self._reading_body = False
            super().on_message_complete()

        def handle_websocket_upgrade(self) -> None:
            """Hand the connection to the WebSocket protocol. uvicorn calls it where it handles HttpParserUpgrade."""
            if self._answering:
                # Both would write to the transport at once.
                self._end_after_response()
                return
            if self.scope["http_version"] != "1.1":
                self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "A WebSocket handshake needs HTTP/1.1.")
                return
            upgrade = sys.exception()
            end: int = upgrade.args[0] if isinstance(upgrade, httptools.HttpParserUpgrade) else len(self._data)
            super().handle_websocket_upgrade()
            self._pass_on(self._data[end:])
            # It refers back to its owner, and the two would wait for the garbage collector together.
            self.parser = cast(Any, None)

    HttpProtocol = BoundedHttpToolsProtocol
