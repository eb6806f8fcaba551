"""uvicorn's HTTP class on httptools, with the bounds of `wsdeco.transport.http`."""

from __future__ import annotations

import sys
from http import HTTPStatus
from typing import Any, Final, NoReturn, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wsdeco.transport.http import HEADER_LINE_SIZE, REQUEST_LINE_SIZE, TOO_LARGE, BoundedHttpProtocol
from wsdeco.wire.handshake import MAX_HEAD_LINES, MAX_HEAD_SIZE

__all__ = ["BoundedHttpToolsProtocol"]

_PIECE: Final = 1024
"""Bytes that are parsed at once outside of a body: up to 57 requests, each of which takes about 6 KiB of memory."""
_PIECE_OF_BODY: Final = 4096
"""The same inside of a body, whose end may lie in it with requests behind it."""

_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
"""Header fields by which the end of a body is found."""


class _HeadTooLarge(Exception):
    pass


class _HostAmbiguous(Exception):
    pass


class _BodyOf:
    """Gets what a parser finds in the body of a request."""

    def __init__(self, owner: BoundedHttpToolsProtocol) -> None:
        self.on_body = owner.on_body
        self.on_message_complete = owner.on_message_complete


class BoundedHttpToolsProtocol(BoundedHttpProtocol, HttpToolsProtocol):
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
            self.send_400_response(TOO_LARGE)

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
        self._head_size = REQUEST_LINE_SIZE
        self._head_lines = 1
        HttpToolsProtocol.on_message_begin(self)

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request target."""
        self._head_size += len(url)
        if self._head_size > MAX_HEAD_SIZE:
            self._overflow()
        HttpToolsProtocol.on_url(self, url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        lines = self._head_lines = self._head_lines + 1
        size = self._head_size = self._head_size + len(name) + len(value) + HEADER_LINE_SIZE
        if size > MAX_HEAD_SIZE or lines > MAX_HEAD_LINES:
            self._overflow()
        HttpToolsProtocol.on_header(self, name, value)

    def _overflow(self) -> NoReturn:
        self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        # httptools makes an HttpParserError of it, for which uvicorn calls `send_400_response`.
        raise _HeadTooLarge

    def on_headers_complete(self) -> None:
        """Take the end of the head."""
        self._parsed = self._reading_body = True
        hosts = [name for name, _ in self.headers if name == b"host"]
        if len(hosts) != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            # Which site is meant would be anybody's choice (RFC 9112, section 3.2). h11 sees to it by itself.
            raise _HostAmbiguous
        self._end_head()
        before = self.cycle
        HttpToolsProtocol.on_headers_complete(self)
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
        HttpToolsProtocol.on_message_complete(self)
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
        if not self._has_room_to_upgrade():
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
