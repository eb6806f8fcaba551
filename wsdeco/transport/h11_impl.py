"""uvicorn's HTTP class on h11, with the bounds of `wsdeco.transport.http`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, TypeAlias

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from wsdeco.transport.http import TOO_LARGE, BoundedHttpProtocol, head_size
from wsdeco.wire.handshake import MAX_HEAD_LINES, MAX_HEAD_SIZE

__all__ = ["BoundedH11Protocol"]

_EMPTY_LINE: Final = b"\r\n"

_H11Event: TypeAlias = "type[h11.NEED_DATA | h11.PAUSED] | h11.Event"


class _H11Connection(h11.Connection):
    """Checks requests before uvicorn sees them.

    Attributes:
        fault: The HTTP status for what the peer did wrong.
        asked_to_upgrade: The newest request has an `Upgrade` header.
        paused: What has arrived waits for the response to the newest request.
    """

    fault: HTTPStatus = HTTPStatus.BAD_REQUEST
    asked_to_upgrade: bool = False
    paused: bool = False

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
        self.asked_to_upgrade |= b"upgrade" in dict(request.headers)
        if len(request.headers) >= MAX_HEAD_LINES or head_size(request.target, request.headers) > MAX_HEAD_SIZE:
            raise h11.RemoteProtocolError(TOO_LARGE, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)


class BoundedH11Protocol(BoundedHttpProtocol, H11Protocol):
    """uvicorn's class on h11, with bounds."""

    conn: _H11Connection

    def _take_http(self, data: bytes) -> None:
        if not isinstance(self.conn, _H11Connection):
            # uvicorn's parser has taken no bytes yet.
            self.conn = _H11Connection(h11.SERVER, MAX_HEAD_SIZE + len(_EMPTY_LINE))
        if self.conn.their_state is h11.IDLE:
            self._await_head()
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
        if self.transport.get_protocol() is not self:
            # It was an upgrade, and has no body.
            return
        flow.holding = self.conn.paused
        if self.conn.their_state is not h11.SEND_BODY:
            self._body.discard(self)
        elif not self._deaf:
            self._await_body()
        if self.conn.asked_to_upgrade and self.cycle is not None:
            # A task writes the response, unless the WebSocket protocol does, so it has not begun.
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """Take the end of a response. uvicorn calls it."""
        H11Protocol.on_response_complete(self)
        # The next request may have been an upgrade.
        if self.transport.get_protocol() is self and self.transport.get_write_buffer_size():
            self._await_reader()

    def send_400_response(self, msg: str) -> None:
        """End a connection whose peer breaks HTTP."""
        self._status = self.conn.fault
        super().send_400_response(msg)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection to the WebSocket protocol. uvicorn calls it instead of the app."""
        if not self._may_upgrade(event.http_version.decode()):
            return
        self._end_head()
        super().handle_websocket_upgrade(event)
        early, _ = self.conn.trailing_data
        self._pass_on(early)
