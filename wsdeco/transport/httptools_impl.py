"""uvicorn's HTTP class on httptools, with the bounds of `wsdeco.transport.http`."""

from __future__ import annotations

import sys
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Final, NoReturn, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from wsdeco.transport.http import TOO_LARGE, BoundedHttpProtocol, head_size
from wsdeco.wire.handshake import MAX_HEAD_LINES, MAX_HEAD_SIZE

__all__ = ["BoundedHttpToolsProtocol"]

_PIECE: Final = 1024
"""Bytes that are parsed at once outside of a body: up to 57 requests, each of which takes about 6 KiB of memory."""
_PIECE_OF_BODY: Final = 4096
"""Bytes of a body that are parsed at once: its end may be among them, with requests behind it."""

_ENDLESS_SIZE: Final = MAX_HEAD_SIZE + len(b"\r\n")
"""Bytes in which a head has come with its empty line, or is too large."""

_DOUBTFUL_SIZE: Final = MAX_HEAD_SIZE - 2 * _PIECE
"""Bytes of a head without its first and last piece, up to which nobody need count them."""

_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
"""Header fields by which the end of a body is found."""


class _BadHead(Exception):
    """httptools makes an HttpParserError of it, for which uvicorn calls `send_400_response`."""


class BoundedHttpToolsProtocol(BoundedHttpProtocol, HttpToolsProtocol):
    """uvicorn's class on httptools, with bounds. What begins with `on_` is called by httptools."""

    parser: httptools.HttpRequestParser
    _data = b""
    _start = 0
    _end = 0
    """Where the piece of the data that the parser has just now starts and ends."""
    _held = b""
    """What has arrived behind requests that wait."""
    _reading_body = False
    _head_complete = False
    """What has arrived holds the end of a head, or some of a body."""
    _body_follows = False
    """The parser takes the body for another protocol."""
    _is_last = False
    _parsed = False
    """The piece holds the end of a head, some of a body, or its end."""
    _unparsed_size = 0
    """Bytes of the pieces since the last one of which that is true."""

    def _take_http(self, data: bytes) -> None:
        if self._held:
            # These bytes were read before reading was paused.
            self._held += data
            return
        self._head_complete = self._reading_body
        self._data = data
        end = self._end = 0
        while end < len(data) and not self._deaf:
            if self.pipeline:
                self._held = data[end:]
                break
            start = self._start = end
            end = self._end = start + (_PIECE_OF_BODY if self._reading_body else _PIECE)
            self._parsed = False
            HttpToolsProtocol.data_received(self, data[start:end])
            if self._parsed:
                self._unparsed_size = 0
            else:
                self._count_unparsed(min(end, len(data)) - start)
            # An upgrade takes all that is left.
            end = self._end
        self._data = b""
        self._flow.holding = bool(self.pipeline)
        if self._deaf:
            return
        if self._reading_body:
            self._await_body(len(data))
        elif not self._head_complete:
            self._await_head()

    def _count_unparsed(self, size: int) -> None:
        # The parser keeps what it has of a line, and uvicorn each header that is complete.
        self._unparsed_size += size
        if self._deaf:
            return
        if self._unparsed_size >= _ENDLESS_SIZE or len(self.headers or ()) >= MAX_HEAD_LINES:
            self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.send_400_response(TOO_LARGE)

    def on_response_complete(self) -> None:
        """Go on with what waits. uvicorn calls it at the end of a response."""
        HttpToolsProtocol.on_response_complete(self)
        if self.transport.get_write_buffer_size():
            self._await_reader()
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

    def on_headers_complete(self) -> None:
        """Take the end of the head."""
        self._parsed = self._reading_body = self._head_complete = True
        headers = self.headers
        is_doubtful = self._unparsed_size > _DOUBTFUL_SIZE
        if len(headers) >= MAX_HEAD_LINES or (is_doubtful and head_size(self.url, headers) > MAX_HEAD_SIZE):
            self._overflow()
        fields = dict(headers)
        if b"host" not in fields:
            is_ambiguous = self.parser.get_http_version() == "1.1"
        else:
            is_ambiguous = len(fields) < len(headers) and sum(name == b"host" for name, _ in headers) > 1
        if is_ambiguous:
            # It is open which site is meant (RFC 9112, section 3.2). h11 refuses such a request by itself.
            raise _BadHead
        if self._awaits_head:
            self._end_head()
        before = self.cycle
        HttpToolsProtocol.on_headers_complete(self)
        if self.cycle is not before and self.parser.should_upgrade():
            # An upgrade to another protocol than WebSocket: the app answers as if there were none.
            self.cycle.keep_alive = False
            self._body_follows = not _FRAMING.isdisjoint(fields)
            if not self._body_follows:
                self._end_after_response()

    def _overflow(self) -> NoReturn:
        self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        raise _BadHead

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._parsed = True
        HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        if self._body_follows:
            return
        if len(self.headers) >= MAX_HEAD_LINES:
            # uvicorn puts trailers behind the headers.
            self._overflow()
        self._parsed = True
        self._reading_body = False
        if self._awaits_body:
            self._awaits_body = False
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
        found = SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
        self.parser = httptools.HttpRequestParser(found)
        framing = b"".join(b"%s: %s\r\n" % pair for pair in self.headers if pair[0] in _FRAMING)
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % framing)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to the WebSocket protocol. uvicorn calls it when it handles HttpParserUpgrade."""
        if not self._may_upgrade(self.scope["http_version"]):
            return
        (parsed,) = cast(Exception, sys.exception()).args
        early = self._data[self._start + parsed :]
        self._end = len(self._data)
        super().handle_websocket_upgrade()
        self._pass_on(early)
        # The parser refers back to its owner: a cycle, which only the garbage collector would free.
        self.parser = cast(Any, None)
