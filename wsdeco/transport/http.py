"""uvicorn's HTTP class with bounds: what owns a socket from accept to the upgrade, if `run` owns the server.

uvicorn's own has no timer before the first request, no cap on what a head may hold, and drops what arrives behind a
request for an upgrade in the same segment. Here

- one deadline runs from accept to the end of the first head, however its bytes come. It ends there, since the
  lifecycle bounds what follows by itself. The next head of a connection that is kept alive has its deadline from its
  first byte; uvicorn has a timer for the time before;
- a head has at most 64 KiB and 128 lines, else the answer is 431;
- a body that brings less than 500 bytes a second, for ten seconds, ends its connection;
- so does a peer that takes less than that of a response, for a minute;
- a response in many pieces takes turns with everything else in the event loop;
- of requests that are sent without waiting for responses few are parsed, and the others wait as bytes;
- what follows the head of an upgrade reaches the WebSocket protocol;
- a request that asks for another upgrade is an ordinary one, with its body (RFC 9110, section 7.8);
- a handshake that is the first thing on its connection, and comes in one piece, is parsed once: it goes straight to
  wsdeco's WebSocket protocol, and uvicorn's class is not even set up. Whatever is unusual about a request leaves it
  to uvicorn;
- an upgrade that fails ends the connection, and what was sent behind it is never a request.

What both of uvicorn's HTTP classes lack is here; what differs is in `h11_impl` and `httptools_impl`, named as in
uvicorn. What is relied on of uvicorn's classes is written beside it. None of it has changed since uvicorn 0.35, and the
tests of this module fail should it change.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final, cast

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from wsdeco.clock import Clock
from wsdeco.transport.deadlines import Deadlines, HttpDeadlines
from wsdeco.transport.endings import half_close, say_end
from wsdeco.transport.protocol import WebSocketProtocol
from wsdeco.transport.shared import shared_of
from wsdeco.transport.turns import in_turns
from wsdeco.wire.handshake import read_handshake, refusal_response

__all__ = ["TOO_LARGE", "BoundedHttpProtocol", "head_size"]

_LEAST_RATE: Final = 500
"""Bytes a second that a body has to bring, as with Apache's `RequestReadTimeout`, and that peers read of a response."""
_REQUEST_LINE: Final = len(b"GET  HTTP/1.1\r\n")
"""Bytes of a request line around its target."""
_HEADER_LINE: Final = len(b": \r\n")
"""Bytes of a header line around its name and value."""

TOO_LARGE: Final = "The request head is too large."
"""What a peer is told with 431."""


def head_size(target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the bytes of the head of a request, without the white space that a peer may add."""
    return _REQUEST_LINE + len(target) + sum([len(name) + len(value) + _HEADER_LINE for name, value in headers])


class _Flow(FlowControl):
    """Reads nothing while requests wait, whatever an app that asks for a body wants.

    Attributes:
        holding: Requests wait behind the one that is answered.
    """

    holding = False

    def resume_reading(self) -> None:
        if self.read_paused and not self.holding:
            super().resume_reading()


class BoundedHttpProtocol(asyncio.Protocol, ABC):
    """What both of uvicorn's HTTP classes lack.

    Attributes:
        clock: Time and timers, set by a subclass; the event loop's, if it is `None`.
    """

    clock: Clock | None = None

    # Attributes of both of uvicorn's HTTP classes, which log, count and answer with them.
    transport: asyncio.Transport
    app: ASGIApp
    cycle: Any = None
    """The newest request with its response, or `None`; `shutdown` sets its `keep_alive` as we do."""

    _flow: _Flow
    _deadlines: HttpDeadlines
    _head: Deadlines
    """Where the deadline for the next head is, or will be."""
    _awaits_head = False
    """It may be there."""
    _body: Deadlines
    """Where the deadline for a body is, or will be."""
    _awaits_body = False
    _body_size = 0
    """Bytes of a body since its deadline began."""
    _response: Deadlines
    """Where the deadline for a response that is not read is, or will be."""
    _unread = 0
    """Bytes of a response that the system had not taken when its deadline began."""
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
        shared = shared_of(server_state, _loop)
        self.loop: asyncio.AbstractEventLoop = shared.loop
        # With TLS the transport comes later, behind the TLS handshake, which the deadline includes.
        self._deadlines = shared.http_deadlines(self.clock)
        self._accepted_at = self._deadlines.clock.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a transport, and start the deadline."""
        self.transport = cast(asyncio.Transport, transport)
        # The socket cannot tell it any more once the peer has reset the connection.
        self._peer_name = transport.get_extra_info("peername")
        self.connections.add(self)
        self._head = self._deadlines.first_heads(self._accepted_at)
        self._body = self._deadlines.bodies
        self._response = self._deadlines.responses
        self._await_head()

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
            self.app = in_turns(self.app)
            self._flow = cast(Any, self).flow = _Flow(transport)
        self._take_http(data)

    @abstractmethod
    def _take_http(self, data: bytes) -> None:
        """Take bytes that are not those of a handshake in one piece."""

    def _take_handshake(self, data: bytes) -> bool:
        protocol_class: Any = self.config.ws_protocol_class
        # An abstract base class takes its time to say what is a subclass of it.
        if protocol_class is not WebSocketProtocol and (
            protocol_class is None or not issubclass(protocol_class, WebSocketProtocol)
        ):
            return False
        found = read_handshake(data)
        if found is None:
            return False
        request, early = found
        self.connections.discard(self)
        self._end_head()
        protocol = protocol_class(self.config, self.server_state, self.app_state, self.loop)
        protocol.connection_made(self.transport)
        protocol.start(request, early, self._peer_name)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the loss of the transport."""
        say_end(self.transport)
        self._end_head()
        self._body.discard(self)
        self._response.discard(self)
        self._deadlines.lingering.discard(self)
        if self._silent:
            self.connections.discard(self)
        else:
            super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Stop writing: the peer does not read what there is."""
        cast(Any, super()).pause_writing()
        self._await_reader()

    def shutdown(self) -> None:
        """End the connection because the server stops."""
        waits = self._response.discard(self)
        self._response = self._deadlines.last_responses
        if self._silent:
            self.transport.close()
        else:
            cast(Any, super()).shutdown()
            awaits_body = self._body.discard(self)
            self._body = self._deadlines.last_bodies
            if awaits_body:
                self._await_body()
        if waits or self._closes_tls:
            self._await_reader()

    def _await_head(self) -> None:
        self._awaits_head = True
        self._head.add(self)

    def _end_head(self) -> None:
        self._awaits_head = False
        self._head.discard(self)
        self._head = self._deadlines.heads

    def _await_body(self, size: int = 0) -> None:
        self._awaits_body = True
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

    def _await_reader(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._response.discard(self)
        self._response.add(self)

    def expire_response(self) -> None:
        """End a connection whose peer does not read the response, or hardly."""
        left = self.transport.get_write_buffer_size()
        if not (left or self._closes_tls) or (self._answering and not self._flow.write_paused):
            # It has read; what is there now has been written since.
            return
        if self._unread - left >= self._response.seconds * _LEAST_RATE:
            self._await_reader()
        else:
            self.transport.abort()

    @property
    def _closes_tls(self) -> bool:
        # Such a close() waits for the peer, and nobody tells for how much of what has been encrypted.
        return self.transport.is_closing() and not self.transport.can_write_eof()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """End a connection whose peer breaks HTTP. uvicorn calls it for whatever its parser raises.

        Args:
            msg: The body of the response.
        """
        status = self._status
        message = TOO_LARGE if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE else msg
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

    def _may_upgrade(self, version: str) -> bool:
        """Return whether a WebSocket may begin, behind the responses before it; otherwise the connection ends."""
        if self._answering:
            # Both would write to the transport at once.
            self._end_after_response()
            return False
        if self._flow.write_paused:
            # What the peer does not read of them would be held beside all that a WebSocket may hold.
            self._deaf = True
            self._end_head()
            self.transport.close()
            return False
        if version != "1.1":
            self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "A WebSocket handshake needs HTTP/1.1.")
            return False
        return True

    def _pass_on(self, early: bytes) -> None:
        # uvicorn has handed the transport to the WebSocket protocol, by `set_protocol`.
        self._response.discard(self)
        receive: Callable[[bytes], None] | None = getattr(self.transport.get_protocol(), "data_received", None)
        if early and receive is not None and not self.transport.is_closing():
            receive(early)
