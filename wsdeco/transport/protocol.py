"""The asyncio protocol that uvicorn loads: `uvicorn app:ws --ws wsdeco.protocol:WebSocketProtocol`.

uvicorn's HTTP class owns the socket until the upgrade; then it makes a `WebSocketProtocol` and replays the request's
head to it. From there on this class moves bytes, and nothing else: it parses the handshake, runs the framing,
coalesces writes, keeps flow control in both directions, pings, and closes. What the bytes mean to the application
is the business of a `Receiver`: the ASGI cycle (`wsdeco.transport.asgi`), or a direct channel that takes its
place (`wsdeco.channels.direct`).

How a connection ends
---------------------
The *input* ends first, once, with a reason in `end`: the peer's close frame, the peer's fault, the end of the stream,
our own `close`, or the loss of the transport. The receiver is told at once, behind the messages before it, and says
`finish` when it has dealt with these; so three good messages in front of a bad frame are all answered before
the close frame goes out. A receiver that takes too long is not waited for. Then the *output* ends: the close frame
is the last to be sent, and what is still unread is read, and dropped, until the peer closes or a deadline runs out,
since closing a socket with unread bytes would reset the connection and destroy what the peer has not read yet. A
deadline stands behind every step, and its last resort is `abort`.

Reading pauses only for a reason: the receiver's inbox is full, or the framing has more to do than fits one turn of
the loop. Writing goes through an outbox that is flushed once per turn of the loop, by one callback for all
connections that were written to.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, cast

from typing_extensions import Unpack
from uvicorn.config import Config
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string, is_ssl
from uvicorn.server import ServerState

from wsdeco.clock import Clock, Deadline
from wsdeco.compiled import mypyc_attr
from wsdeco.config import Compression
from wsdeco.reasons import Close, CloseCode, Unknown, check_close_code, printable
from wsdeco.transport.asgi import AsgiCycle, PeerName, scope_of, task_free_start
from wsdeco.transport.departures import has_vanished
from wsdeco.transport.endings import half_close, say_end
from wsdeco.transport.keepalive import Keepalive
from wsdeco.transport.outgoing import Outgoing
from wsdeco.transport.reads import SmallReads
from wsdeco.transport.shared import shared_of
from wsdeco.wire import handshake
from wsdeco.wire.contract import EXTENSION, NOBODY, Options, Receiver
from wsdeco.wire.deflate import negotiate
from wsdeco.wire.incoming import Framing
from wsdeco.wire.outgoing import encode_ping

__all__ = ["WebSocketProtocol"]

_MAX_EARLY_BYTES: Final = 64 * 1024
"""Bytes kept from a peer that sends frames before its handshake is accepted."""
_CLOSE_TIMEOUT: Final = 10.0
_LAST_WAIT: Final = 1.5
"""Seconds for a peer to go on reading, or to close, when the server stops."""
_ECHO_DELAY: Final = 0.5
"""Seconds that the echo of a peer's close frame may wait for the answers to the messages before it."""
_LINGER: Final = 2.0
"""Seconds for a refused peer to read the refusal and to close."""

_logger = logging.getLogger("uvicorn.error")


@mypyc_attr(allow_interpreted_subclasses=True)
class WebSocketProtocol(Outgoing):
    """One connection, from the replayed handshake to the loss of the transport.

    Args:
        config: uvicorn's configuration.
        server_state: What uvicorn's connections share.
        app_state: The lifespan's state, copied into the scope.
        _loop: The event loop; the running one, if not given.
        clock: Time and timers; the event loop's, if not given.

    Attributes:
        app_state: The lifespan's state.
        config: uvicorn's configuration.
        receiver: Who takes what arrives; to be replaced before the handshake is accepted.
        request: The handshake, while it waits to be accepted or refused.
        scope: The ASGI scope, until the handshake is accepted or refused.
        end: Why nothing more comes from the peer; `None` while something may come.
        reading_paused: The receiver has asked not to be given more.
        last_activity: When the last frame arrived that is not the answer to a ping of ours, by the clock.
        heard: A byte arrived since the last keepalive ping.
        close_timeout: Seconds for each step of the closing handshake.
    """

    __slots__ = (
        "_buffer",
        "_clock",
        "_deadline",
        "_keepalive",
        "_server_state",
        "_transport_paused",
        "app_state",
        "close_timeout",
        "config",
        "end",
        "heard",
        "last_activity",
        "reading_paused",
        "receiver",
        "request",
        "scope",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self.config: Config = config
        self._server_state = server_state
        self.app_state: dict[str, Any] = app_state
        shared = shared_of(server_state, _loop)
        super().__init__(shared)
        self._clock: Clock = shared.loop if clock is None else clock
        self._buffer: bytearray | None = bytearray()
        self.request: handshake.Request | None = None
        self._transport_paused = False
        self._deadline: Deadline | None = None
        self._keepalive: Keepalive | None = None
        self.receiver: Receiver = NOBODY
        self.scope: dict[str, Any] | None = None
        self.end: Close | Unknown | None = None
        self.reading_paused: bool = False
        self.heard: bool = False
        self.last_activity: float = self._clock.time()
        self.close_timeout: float = _CLOSE_TIMEOUT

    # What asyncio and uvicorn call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, which uvicorn's HTTP class owned until now."""
        super().connection_made(transport)
        # A transport says once that it is full: if it has, uvicorn's flow control knows it, and nobody else will.
        owner: Any = self.transport.get_protocol()
        self.transport.set_protocol(cast(Any, self))
        if hasattr(owner, "flow") and owner.flow.write_paused:
            self.pause_writing()
        self._server_state.connections.add(cast(Any, self))

    def data_received(self, data: bytes) -> None:
        """Take bytes from the peer."""
        framing = self._framing
        if framing is None:
            self._receive_before_open(data)
            return
        self.heard = True
        messages = framing.receive(data)
        if messages and self.end is None:
            self.last_activity = self._clock.time()
            self.receiver.messages_received(messages)
        if framing.noticed:
            self._notice(framing)

    def eof_received(self) -> bool:
        """Take the end of the peer's stream, and keep the other direction open for answers, unless TLS forbids it."""
        if self._framing is None or self._framing.ended is not None or self.end is not None:
            return False
        self._shared.end(self._input_over)
        return not is_ssl(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the loss of the transport, however it came."""
        say_end(self.transport)
        # uvicorn's `limit_max_requests` counts it as a request.
        self._server_state.total_requests += 1
        self._server_state.connections.discard(cast(Any, self))
        self._shared.departures.discard(self)
        self._stop_timers()
        self._end_sending()
        self._buffer = None
        self._outbox = None
        self._outbox_size = 0
        self._let_send()
        self._shared.end(self._tell_loss)

    def _tell_loss(self) -> None:
        framing = self._framing
        self._tell_end(Unknown() if framing is None or framing.ended is None else framing.ended)
        receiver, self.receiver = self.receiver, NOBODY
        receiver.connection_lost()

    def shutdown(self) -> None:
        """End the connection because the server stops: 1012, or HTTP 503 before the upgrade.

        From now on a peer that neither reads nor closes is waited for a short time.
        """
        self._shared.end(self._shut_down)

    def _shut_down(self) -> None:
        if self.closed:
            self._hurry()
        elif self._framing is not None:
            self.close(CloseCode.SERVICE_RESTART)
        elif self.request is not None:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, body=b"The server is restarting.")
        else:
            self._end_output(self.transport.close)

    # The handshake.

    def _receive_before_open(self, data: bytes) -> None:
        buffer = self._buffer
        if buffer is None:
            return
        searched = len(buffer)
        buffer += data
        if self.request is not None:
            if len(buffer) > _MAX_EARLY_BYTES:
                self.pause_reading()
            return
        head = handshake.take_head(buffer, searched)
        if head is None:
            return
        try:
            self.request = handshake.parse_request(head)
        except handshake.Refusal as refusal:
            _logger.info("WebSocket handshake refused: %d %s", refusal.status, refusal.message)
            self._write_refusal(refusal.status, refusal.headers, refusal.message.encode())
            return
        self._start_app(self.request, self.transport.get_extra_info("peername"))

    def start(self, request: handshake.Request, early: bytes, peer_name: PeerName) -> None:
        """Begin with a handshake that was parsed before.

        Args:
            request: The handshake.
            early: The bytes behind it.
            peer_name: What the transport called the peer.
        """
        self.request = request
        self._start_app(request, peer_name)
        if early:
            self.data_received(early)

    def _start_app(self, request: handshake.Request, peer_name: PeerName) -> None:
        state = self._server_state
        limit = self.config.limit_concurrency
        if limit is not None and (len(state.connections) > limit or len(state.tasks) >= limit):
            _logger.warning("Exceeded concurrency limit.")
            self._write_refusal(HTTPStatus.SERVICE_UNAVAILABLE, (), b"The server is full.")
            return
        scope = self.scope = scope_of(request, self.transport, peer_name, self.config, self.app_state)
        start = self._shared.task_free_start
        if start is None:
            start = self._shared.task_free_start = task_free_start(self.config)
        if start(scope, self):
            return
        cycle = AsgiCycle(self)
        scope["extensions"][EXTENSION] = cycle
        self.receiver = cycle
        cycle.start(scope, state.tasks, self.config)

    def accept(
        self, subprotocol: str | None = None, headers: handshake.Headers = (), **options: Unpack[Options]
    ) -> None:
        """Accept the handshake; messages come from now on, also those that came with the request.

        Args:
            subprotocol: One of the subprotocols that the peer offers.
            headers: Further headers of the response.
            options: By default uvicorn's: `ws_max_size` for `max_message_size`, `ws_per_message_deflate` for
                `compression`, and `ws_ping_interval` with `ws_ping_timeout` for `keepalive`.

        Raises:
            ValueError: The subprotocol is not offered, or a header cannot be sent.
        """
        request = self._pending_request()
        sent = [*self._server_state.default_headers, *handshake.check_acceptance(request, subprotocol, headers)]
        deflate = None
        compression = options.get("compression", self.config.ws_per_message_deflate)
        if compression:
            agreed = negotiate(
                request.extensions, compression if isinstance(compression, Compression) else Compression()
            )
            if agreed is not None:
                sent.append((b"Sec-WebSocket-Extensions", agreed[0].encode()))
                deflate = agreed[1]
        self._log_outcome("[accepted]")
        if options.get("small_reads"):
            self.transport.set_protocol(SmallReads(cast(Any, self), self._shared.small_buffer))
        self._framing = Framing(options.get("max_message_size", self.config.ws_max_size), deflate=deflate)
        self._framing.hold_pongs = self.write_paused
        self.send(handshake.accept_response(request.key, sent))
        self.set_keepalive(*options.get("keepalive", (self.config.ws_ping_interval, self.config.ws_ping_timeout)))
        early, self._buffer = self._buffer, None
        self.request = self.scope = None
        self.last_activity = self._clock.time()
        if self.reading_paused:
            self.resume_reading()
        if early:
            self.data_received(bytes(early))

    @property
    def handshake_pending(self) -> bool:
        """Whether the handshake waits to be accepted or refused."""
        return self.request is not None and not self.closed

    def refuse(self, status: int, headers: handshake.Headers = (), body: bytes = b"") -> None:
        """Refuse the handshake with an HTTP response; the connection closes.

        Args:
            status: An HTTP status from 200 to 599.
            headers: Headers of the response.
            body: The body of the response.

        Raises:
            ValueError: The status is no answer to a handshake, or a header cannot be sent.
        """
        self._pending_request()
        checked = handshake.check_refusal(status, headers)
        self._log_outcome(str(status))
        self._write_refusal(status, checked, body)

    def _pending_request(self) -> handshake.Request:
        if self.request is None or self.closed:
            raise RuntimeError("the handshake has been accepted or refused before, or the peer has gone")
        return self.request

    def _log_outcome(self, what: str) -> None:
        if _logger.isEnabledFor(logging.INFO):
            scope = cast(Any, self.scope)
            path = printable(get_path_with_query_string(scope))
            _logger.info('%s - "WebSocket %s" %s', printable(get_client_addr(scope)), path, what)

    def _write_refusal(self, status: int, headers: handshake.Headers, body: bytes) -> None:
        response = handshake.refusal_response(status, headers, body, default_headers=self._server_state.default_headers)
        self._buffer = self.request = self.scope = None
        self.send(response)
        self._end_output(self._half_close, _LINGER)
        self._tell_end(Unknown())

    # Receiving.

    def _notice(self, framing: Framing) -> None:
        if framing.unread:
            self._set_reading()
            self._shared.wait(self)
        pongs, active = framing.notice()
        if active:
            self.last_activity = self._clock.time()
        if pongs and not self.closed:
            self.send(pongs)
        if self._keepalive is not None and framing.ping_payload is None:
            self._keepalive.answered(self)
        if framing.ended is not None:
            self._shared.end(self._input_over)

    def _input_over(self) -> None:
        ended = cast(Framing, self._framing).ended
        if cast(Any, self) not in self._server_state.connections:
            # The transport was lost meanwhile, and `connection_lost` tells that.
            return
        if self.closed:
            self._end_output(self.transport.close)
        elif ended is None:
            self._end_input(Unknown(), self.close_timeout)
        else:
            self._end_input(ended, _ECHO_DELAY if ended.by == "client" else self.close_timeout)

    def _end_input(self, reason: Close | Unknown, patience: float) -> None:
        self._stop_timers()
        self._set_deadline(patience, self.finish)
        self._tell_end(reason)

    def _tell_end(self, reason: Close | Unknown) -> None:
        if self.end is None:
            self.end = reason
            self.receiver.input_ended(reason)

    @property
    def is_reading(self) -> bool:
        """Whether bytes that arrive are read at once."""
        return not self._transport_paused

    def has_vanished(self, seconds: float) -> bool:
        """Return whether the peer's system, in `seconds`, has not even acknowledged what was sent to it."""
        return has_vanished(self.transport, seconds)

    def pause_reading(self) -> None:
        """Give the receiver no more, until `resume_reading`."""
        self.reading_paused = True
        self._set_reading()
        self._shared.departures.watch(self)

    def peer_left(self) -> None:
        """The peer has ended its side, behind what waits to be read."""
        if self.reading_paused and self.end is None:
            self.receiver.peer_left()

    def resume_reading(self) -> None:
        """Give the receiver more again."""
        self.reading_paused = False
        if self._framing is not None and self._framing.unread:
            self._shared.wait(self)
        else:
            self._set_reading()

    def _read_on(self) -> None:
        framing = self._framing
        if framing is not None and framing.unread and not self.reading_paused:
            self.data_received(b"")
            self._set_reading()

    def _set_reading(self) -> None:
        pause = self.reading_paused or (self._framing is not None and self._framing.unread)
        if pause is not self._transport_paused and not self.transport.is_closing():
            self._transport_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _lose(self) -> None:
        self._end_output(self.transport.close)

    def go_on(self) -> None:
        """Do what has waited for a turn of the loop."""
        self._read_on()
        if not self.write_paused:
            self._let_send()

    # Keepalive.

    @property
    def round_trip(self) -> float | None:
        """Seconds from the last ping to its answer; asked once, it is measured from then on."""
        return None if self._keepalive is None else self._keepalive.round_trip(self)

    def set_keepalive(self, interval: float | None, timeout: float | None) -> None:
        """Ping an open connection from now on.

        Args:
            interval: Seconds between two pings; `None` for no pings.
            timeout: Seconds for an answer, past which the connection ends; `None` for no judgement.
        """
        if self._keepalive is not None:
            self._keepalive.discard(self)
            self._keepalive = None
        if interval and not self.closed and self.end is None:
            self._keepalive = self._shared.keepalive(self._clock, interval, timeout)
            self._keepalive.add(self)

    def ping(self, payload: bytes) -> None:
        """Send a ping; its answer does not count as activity.

        Raises:
            ValueError: `payload` is longer than 125 bytes.
        """
        frame = encode_ping(payload)
        cast(Framing, self._framing).ping_payload = payload
        self.send(frame)

    def send_keepalive_ping(self) -> None:
        """Send a ping with a payload of its own."""
        self.ping(random.getrandbits(32).to_bytes(4, "big"))

    def lose_keepalive(self) -> None:
        """End the connection: its peer has gone without a word."""
        _logger.debug("WebSocket keepalive ping timeout")
        self.send(cast(Framing, self._framing).close(CloseCode.INTERNAL_ERROR, "keepalive ping timeout"))
        self._tell_end(Unknown())
        self._end_output(self.transport.close, _LINGER)

    # Closing.

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Start the closing handshake; if the peer was first, finish it. Nothing more can be sent afterwards.

        Args:
            code: The close code.
            reason: The text behind the code, cut to the 123 bytes that fit.

        Raises:
            ValueError: The code may not be sent, or the reason cannot be encoded.
        """
        framing = self._framing
        if self.closed or framing is None:
            return
        if self.end is not None:
            self.finish()
            return
        self.send(framing.close(check_close_code(code), reason))
        self._shut_output()
        self._set_deadline(self.close_timeout, self.abort)
        if code == CloseCode.SERVICE_RESTART:
            # Hooks can send nothing more, and the process is about to end.
            self._hurry()
        self._tell_end(Close(code, reason, by="server"))
        self.resume_reading()

    def finish(self) -> None:
        """Answer the end of the input, now that all messages before it have been dealt with."""
        end = self.end
        if self.closed or end is None or self._framing is None:
            return
        if isinstance(end, Unknown):
            self._end_output(self.transport.close)
            return
        self.send(self._framing.close(end.code, end.reason))
        self._end_output(self.transport.close if end.by == "client" else self._half_close)

    def abort(self) -> None:
        """Drop the connection, with all that has not been sent."""
        self._outbox = None
        self._outbox_size = 0
        self._shut_output()
        self.transport.abort()

    def _end_output(self, shut: Callable[[], None], patience: float | None = None) -> None:
        self._shut_output()
        self._set_deadline(self.close_timeout if patience is None else patience, self.abort)
        if not self.transport.is_closing():
            shut()

    def _shut_output(self) -> None:
        self._end_sending()
        self.flush(even_if_paused=True)
        self._stop_timers()
        self._let_send()

    def _half_close(self) -> None:
        if half_close(self.transport):
            self.reading_paused = False
            self._set_reading()

    def _hurry(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._await_close(self.unsent, self._clock.time() + self.close_timeout)

    def _await_close(self, unsent: int, until: float) -> None:
        self._set_deadline(min(_LAST_WAIT, self.close_timeout), lambda: self._judge_close(unsent, until))

    def _judge_close(self, unsent: int, until: float) -> None:
        left = self.unsent
        if left < unsent and self._clock.time() < until:
            # The peer reads, though slowly: it gets all of it.
            self._await_close(left, until)
        else:
            self.abort()

    def _set_deadline(self, seconds: float, action: Callable[[], object]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = Deadline(self._clock, seconds, action)

    def _stop_timers(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._keepalive is not None:
            self._keepalive.discard(self)
            self._keepalive = None
