"""uvicorn's HTTP class with bounds: what owns a socket from accept to the upgrade, if `run` owns the server.

uvicorn's own has no timer before the first request, no cap on what a head may hold, and drops what arrives behind a
request for an upgrade in the same segment. Here

- one deadline runs from accept to the end of the first head, however its bytes come. It ends there, since the
  lifecycle bounds what follows by itself. The next head of a connection that is kept alive has its deadline from its
  first byte; uvicorn has a timer for the time before;
- a head has at most 64 KiB and 128 lines, else the answer is 431;
- a body that brings less than 500 bytes a second, for ten seconds, ends its connection;
- of requests that are sent without waiting for responses few are parsed, and the others wait as bytes;
- what follows the head of an upgrade reaches the WebSocket protocol;
- a request that asks for another upgrade is an ordinary one, with its body (RFC 9110, section 7.8);
- a handshake that is the first thing on its connection, and comes in one piece, is parsed once: it goes straight to
  wsdeco's WebSocket protocol, and uvicorn's class is not even set up. Whatever is unusual about a request leaves it
  to uvicorn;
- an upgrade that fails ends the connection, and what was sent behind it is never a request.

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

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from wsdeco.clock import Clock
from wsdeco.transport.deadlines import Deadlines, HttpDeadlines
from wsdeco.transport.endings import half_close, say_end
from wsdeco.transport.protocol import WebSocketProtocol
from wsdeco.transport.shared import shared_of
from wsdeco.wire.handshake import MAX_HEAD_LINES, MAX_HEAD_SIZE, read_handshake, refusal_response

__all__ = ["BoundedH11Protocol", "HttpProtocol"]

_LEAST_RATE: Final = 500
"""Bytes a second that a body has to bring, as with Apache's `RequestReadTimeout`."""
_PIECE: Final = 1024
"""Bytes that are parsed at once outside of a body: up to 57 requests, each of which takes about 6 KiB of memory."""
_PIECE_OF_BODY: Final = 4096
"""The same inside of a body, whose end may lie in it with requests behind it."""

_REQUEST_LINE_SIZE: Final = len(b"GET  HTTP/1.1\r\n")
"""Bytes of a request line around its target."""
_HEADER_LINE_SIZE: Final = len(b": \r\n")
"""Bytes of a header line around its name and value."""

_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
"""Header fields by which the end of a body is found."""
_EMPTY_LINE: Final = b"\r\n"

_TOO_LARGE: Final = "The request head is too large."


class _Flow(FlowControl):
    """Reads nothing while requests wait, whatever an app that asks for a body wants.

    Attributes:
        holding: Requests wait behind the one that is answered.
    """

    holding = False

    def resume_reading(self) -> None:
        if not self.holding:
            super().resume_reading()


class _BoundedProtocol(asyncio.Protocol, ABC):
    """What both of uvicorn's HTTP classes lack.

    Attributes:
        clock: Time and timers, set by a subclass; the event loop's, if it is `None`.
    """

    clock: Clock | None = None

    # Attributes of both of uvicorn's HTTP classes, which log, count and answer with them.
    transport: asyncio.Transport
    cycle: Any = None
    """The newest request with its response, or `None`; `shutdown` sets its `keep_alive` as we do."""

    _flow: _Flow
    _deadlines: HttpDeadlines
    _head: Deadlines
    """Where the deadline for the next head is, or will be."""
    _body: Deadlines
    """The same for a body."""
    _body_size = 0
    """Bytes of a body since its deadline began."""
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
        # `__init__` of uvicorn's class is called only if the first bytes are no handshake.
        if not config.loaded:
            config.load()
        self.config = config
        self.server_state = server_state
        self.app_state = app_state
        self.connections: set[Any] = server_state.connections
        self.loop = asyncio.get_running_loop() if _loop is None else _loop
        # With TLS the transport comes later, behind the TLS handshake, which the deadline includes.
        self._deadlines = shared_of(server_state, self.loop).http_deadlines(self.clock)
        self._accepted_at = self._deadlines.clock.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a transport, and start the deadline."""
        self.transport = cast(asyncio.Transport, transport)
        # The socket cannot tell it any more once the peer has reset the connection.
        self._peer_name = transport.get_extra_info("peername")
        self.connections.add(self)
        self._head = self._deadlines.first_heads(self._accepted_at)
        self._body = self._deadlines.bodies
        self._head.add(self)

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
            self._flow = cast(Any, self).flow = _Flow(transport)
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
        self._end_head()
        protocol = protocol_class(self.config, self.server_state, self.app_state, self.loop)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.start(request, early, self._peer_name)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the loss of the transport."""
        say_end(self.transport)
        self._end_head()
        self._body.discard(self)
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
            waits = self._body.discard(self)
            self._body = self._deadlines.last_bodies
            if waits:
                self._await_body()

    def _end_head(self) -> None:
        self._head.discard(self)
        self._head = self._deadlines.heads

    def _await_body(self, size: int = 0) -> None:
        if self._body.add(self):
            self._body_size = 0
        self._body_size += size

    def expire(self) -> None:
        """End a connection whose deadline has run out."""
        if self._answering and not self._deaf:
            # The rest of the next head may be unread: uvicorn stops reading while a response is under way.
            self._head.add(self)
        elif self._deaf or self._silent or not self.transport.can_write_eof():
            # Browsers open connections in advance, and a 408 would answer their first request; with TLS, close() waits.
            self.transport.abort()
        else:
            self._write_refusal(HTTPStatus.REQUEST_TIMEOUT, "The request head took too long.")
            self.transport.close()

    def expire_body(self) -> None:
        """End a connection whose body has made no progress, unless that is the app's doing, which does not read it."""
        cycle = self.cycle
        if (
            self._body_size >= self._body.seconds * _LEAST_RATE
            or self._flow.read_paused
            or (cycle.waiting_for_100_continue and not cycle.response_started)
        ):
            self._await_body()
        elif cycle.response_started:
            self.transport.abort()
        else:
            self._write_refusal(HTTPStatus.REQUEST_TIMEOUT, "The request body took too long.")
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
            # The fault is in a body: the app has the request already, and learns of it by the lost connection.
            self._deaf = True
            if not self.cycle.response_started:
                self._write_refusal(status, message)
            self.transport.close()

    def _end_after_response(self) -> None:
        self._deaf = True
        self._end_head()
        self.cycle.keep_alive = False

    def _write_refusal(self, status: HTTPStatus, message: str) -> None:
        defaults = self.server_state.default_headers
        self.transport.write(refusal_response(status, body=message.encode(), default_headers=defaults))
        # Nobody waits for a refused peer, not even the shutdown.
        self.connections.discard(self)
        self._end_head()
        self._body.discard(self)
        self._deadlines.lingering.add(self)
        self._deaf = True

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._write_refusal(status, message)
        half_close(self.transport)

    def _unsupported_upgrade_warning(self) -> None:
        # Java's HTTP client and `curl --http2` ask for an upgrade with each request: no reason to warn.
        pass

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
        paused: What has arrived waits for the response to the newest request.
    """

    fault = HTTPStatus.BAD_REQUEST
    asked_to_upgrade = False
    paused = False

    def next_event(self) -> _H11Event:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._check(event)
        except h11.RemoteProtocolError as error:
            self.fault = HTTPStatus(error.error_status_hint)
            raise
        self.paused = event is h11.PAUSED
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
            # uvicorn's parser has taken no bytes yet.
            self.conn = _H11Connection(h11.SERVER, MAX_HEAD_SIZE + len(_EMPTY_LINE))
        if self.conn.their_state is h11.IDLE:
            self._head.add(self)
        self._body_size += len(data)
        H11Protocol.data_received(self, data)
        if self.conn.their_state is not h11.IDLE:
            self._end_head()

    def handle_events(self) -> None:
        """Do what the bytes say. uvicorn calls it for bytes, and for pipelined ones at the end of a response."""
        flow = self._flow
        if flow.holding:
            flow.holding = False
            flow.resume_reading()
        super().handle_events()
        flow.holding = self.conn.paused
        if self.conn.their_state is not h11.SEND_BODY:
            self._body.discard(self)
        elif not self._deaf:
            self._await_body()
        if self.conn.asked_to_upgrade and self.cycle is not None:
            # A task writes the response, unless the WebSocket protocol does, so it has not begun.
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
        self._end_head()
        super().handle_websocket_upgrade(event)
        early, _ = self.conn.trailing_data
        self._pass_on(early)


HttpProtocol: type[asyncio.Protocol] = BoundedH11Protocol
"""uvicorn's class on httptools if that is installed, else the one on h11, with bounds."""

if find_spec("httptools") is not None:
    import httptools
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class _HeadTooLarge(Exception):
        pass

    class _BodyOf:
        """Gets what a parser finds in the body of a request."""

        def __init__(self, owner: BoundedHttpToolsProtocol) -> None:
            self.on_body = owner.on_body
            self.on_message_complete = owner.on_message_complete

    class BoundedHttpToolsProtocol(_BoundedProtocol, HttpToolsProtocol):
        """uvicorn's class on httptools, with bounds. What begins with `on_` is called by httptools."""

        parser: httptools.HttpRequestParser
        _data = b""
        _start = 0
        _end = 0
        """Where the piece of the data that the parser has just now starts and ends."""
        _held = b""
        """What has arrived behind requests that wait."""
        _head_size = 0
        _head_lines = 0
        _reading_body = False
        _body_follows = False
        """The parser takes the body for another protocol."""
        _is_last = False
        _parsed = False
        _unparsed_size = 0

        def _take_http(self, data: bytes) -> None:
            if self._held:
                # These bytes were read before reading was paused.
                self._held += data
                return
            if not self._reading_body:
                self._head.add(self)
            self._data = data
            self._end = 0
            while self._end < len(data) and not self._deaf:
                if self.pipeline:
                    self._held = data[self._end :]
                    break
                self._parse_piece()
            self._data = b""
            self._flow.holding = bool(self.pipeline)
            if self._reading_body and not self._deaf:
                self._await_body(len(data))

        def _parse_piece(self) -> None:
            start = self._start = self._end
            end = self._end = min(len(self._data), start + (_PIECE_OF_BODY if self._reading_body else _PIECE))
            self._parsed = False
            HttpToolsProtocol.data_received(self, self._data[start:end])
            # The parser passes a header on when it is complete, and the bytes that it keeps until then count here.
            self._unparsed_size = 0 if self._parsed else self._unparsed_size + end - start
            if self._unparsed_size > MAX_HEAD_SIZE and not self._deaf:
                self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                self.send_400_response(_TOO_LARGE)

        def on_response_complete(self) -> None:
            """Go on with what waits. uvicorn calls it at the end of a response."""
            super().on_response_complete()
            if self._flow.holding and not self.pipeline:
                # In the next turn of the loop, so that other connections have theirs.
                self.loop.call_soon(self._go_on)

        def _go_on(self) -> None:
            if self.pipeline or self._deaf or self.transport.is_closing():
                return
            self._flow.holding = False
            self._flow.resume_reading()
            held, self._held = self._held, b""
            if held:
                self._take_http(held)

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
                # httptools makes an HttpParserError of it, for which uvicorn calls `send_400_response`.
                raise _HeadTooLarge

        def on_headers_complete(self) -> None:
            """Take the end of the head."""
            self._parsed = self._reading_body = True
            self._end_head()
            before = self.cycle
            super().on_headers_complete()
            if self.cycle is not before and self.parser.should_upgrade():
                # An upgrade to another protocol than WebSocket: the app answers as if there were none.
                self.cycle.keep_alive = False
                self._body_follows = any(name in _FRAMING for name, _ in self.headers)
                if not self._body_follows:
                    self._end_after_response()

        def on_body(self, body: bytes) -> None:
            """Take a piece of the body."""
            self._parsed = True
            super().on_body(body)

        def on_message_complete(self) -> None:
            """Take the end of a request."""
            if self._body_follows:
                return
            self._reading_body = False
            self._body.discard(self)
            super().on_message_complete()
            if self._is_last:
                self._end_after_response()

        def _unsupported_upgrade_warning(self) -> None:
            # uvicorn calls it when it handles HttpParserUpgrade.
            if not self._body_follows:
                return
            self._body_follows = False
            self._is_last = True
            (parsed,) = cast(Exception, sys.exception()).args
            self._end = self._start + parsed
            # A parser of the body alone. It has to be told how its end is found.
            self.parser = httptools.HttpRequestParser(_BodyOf(self))
            framing = b"".join(b"%s: %s\r\n" % pair for pair in self.headers if pair[0] in _FRAMING)
            try:
                self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % framing)
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")

        def handle_websocket_upgrade(self) -> None:
            """Hand the connection to the WebSocket protocol. uvicorn calls it when it handles HttpParserUpgrade."""
            if self._answering:
                # Both would write to the transport at once.
                self._end_after_response()
                return
            if self.scope["http_version"] != "1.1":
                self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "A WebSocket handshake needs HTTP/1.1.")
                return
            (parsed,) = cast(Exception, sys.exception()).args
            early = self._data[self._start + parsed :]
            self._end = len(self._data)
            super().handle_websocket_upgrade()
            self._pass_on(early)
            # The parser refers back to its owner: a cycle, which only the garbage collector would free.
            self.parser = cast(Any, None)

    HttpProtocol = BoundedHttpToolsProtocol
