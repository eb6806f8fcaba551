"""The channel that works on any ASGI server, from nothing but `receive` and `send`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast

from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from wsdeco.channels.base import Channel, wake
from wsdeco.channels.data import (
    Data,
    HeaderItems,
    check_sendable,
    encoded_headers,
    exceeds,
    payload_estimate,
    wire_size,
)
from wsdeco.channels.events import GONE, abort_of, disconnect_reason, nothing_more, refusal_done, sent_event
from wsdeco.channels.extension import end_of, extension_of, wire_options
from wsdeco.clock import Clock, Deadline
from wsdeco.config import ConnectionConfig
from wsdeco.reasons import Close, CloseCode, ConnectionClosed, DisconnectReason, Error, Unknown
from wsdeco.wire.handshake import check_headers, check_subprotocol

__all__ = ["AsgiChannel"]

logger: Final = logging.getLogger("wsdeco")

_MESSAGE_OVERHEAD: Final = 128
"""Bytes that each message in the outbox counts for besides its own, once `_FREE_MESSAGES` are there."""
_FREE_MESSAGES: Final = 512
_BURST: Final = 64 * 1024
"""Bytes after which a sender gives the loop to others: the `send` of a server whose peer reads fast never waits."""
_WRITE_OVERHEAD: Final = 2048
"""Bytes that each message counts for in that besides its own: servers take about ten microseconds for one."""
_EVENTS_AT_ONCE: Final = 32
"""Events after which the reader gives the loop to others, for the same reason."""


class _Queued(NamedTuple):
    message: Message | Data
    size: int
    written: asyncio.Future[None] | None


class _ReadingPause(NamedTuple):
    begun: asyncio.Future[None]
    over: asyncio.Future[None]


class AsgiChannel(Channel):
    """A channel over ASGI's `receive` and `send` (specification 2.0 and later).

    One write at a time reaches the server. A `send` that finds no other one in progress writes by itself; the rest
    waits in the outbox, which a task empties that lives only as long as there is something in it.
    """

    __slots__ = (
        "_abort_transport",
        "_broken",
        "_burst",
        "_close_frame",
        "_drained",
        "_extension",
        "_flusher",
        "_given_up",
        "_lost_timer",
        "_outbox",
        "_outbox_size",
        "_pause",
        "_reader",
        "_receive",
        "_receiving",
        "_send",
        "_send_timer",
        "_write_began",
        "_writer",
        "_writing",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        config: ConnectionConfig,
        clock: Clock | None = None,
        *,
        accepted: bool = False,
    ) -> None:
        super().__init__(HTTPConnection(scope), config, clock)
        self._receive = receive
        self._send = send
        self.accepted = accepted
        self._outbox: deque[_Queued] = deque()
        self._outbox_size = 0
        self._writing = False
        self._burst = 0
        self._writer: asyncio.Task[Any] | None = None
        self._given_up = False
        self._write_began = 0.0
        self._send_timer: Deadline | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._close_frame: tuple[int, str] | None = None
        self._broken = False
        self._reader: asyncio.Task[Any] | None = None
        self._receiving = False
        self._drained: asyncio.Future[None] | None = None
        self._pause: _ReadingPause | None = None
        self._lost_timer: Deadline | None = None
        self._extension = extension = extension_of(scope)
        self._abort_transport = abort_of(receive) if extension is None else extension.abort
        if extension is not None:
            # So they hold whatever middleware stands between the wire and the route.
            extension.set_options(close_timeout=config.close_timeout, **wire_options(config))

    async def connect(self) -> bool:
        """Take `websocket.connect` from the server, unless the upgrade was accepted before."""
        if self.accepted:
            return True
        message = await self._receive()
        return bool(message["type"] == "websocket.connect")

    async def read(self) -> None:
        """Read until `websocket.disconnect`."""
        self._reader = asyncio.current_task()
        if self._extension is not None:
            self._extension.tell_departure(self.peer_left)
        events = 0
        while True:
            message = await self._next_event()
            if message["type"] != "websocket.receive":
                await self._take_end(message)
                return
            text: str | None = message.get("text")
            self.deliver(text if text is not None else message["bytes"])
            events += 1
            if self._reading_paused and not self._broken:
                await self._resumed()
            elif not events % _EVENTS_AT_ONCE:
                await asyncio.sleep(0)

    def peer_left(self) -> None:
        """The peer, or the server, has ended the connection, though nobody may receive at present."""
        end = self.unread_end
        stops = isinstance(end, Close) and (end.code, end.by) == (CloseCode.SERVICE_RESTART, "server")
        if stops and self._reading_paused:
            # Nothing more can be sent, whatever the hooks still do, and the process wants to end.
            self.end(end)
        else:
            super().peer_left()

    @property
    def unread_end(self) -> Close | Unknown:
        """How the connection has ended, as far as wsdeco's own protocol tells."""
        return (None if self._extension is None else self._extension.end) or Unknown()

    async def _take_end(self, message: Message) -> None:
        end = end_of(self._extension, message)
        if isinstance(end, Close) and end.by == "server" and end.code == CloseCode.TOO_BIG:
            # wsdeco's protocol waits with its close frame until the messages before have been answered.
            self._put_too_big()
            while self.reason is None:
                await self._resumed()
        else:
            self.end(end or disconnect_reason(message))

    def deliver(self, data: Data) -> None:
        """Put a message that has arrived into the inbox; one that is too big ends the connection in its turn."""
        self._last_frame_at = self.clock.time()
        if self.reason is not None or not exceeds(data, self.config.max_message_size):
            self.messages_received([data])
            return
        if self.message_observer is not None:
            self.message_observer.messages_received(self, [data])
        self._put_too_big()

    async def _resumed(self) -> None:
        self._drained = self.loop.create_future()
        try:
            await self._drained
        finally:
            self._drained = None

    def _resume_reading(self) -> None:
        super()._resume_reading()
        wake(self._drained)

    async def _next_event(self) -> Message:
        while True:
            self._receiving = True
            try:
                return await self._receive()
            except asyncio.CancelledError:
                if self._pause is None or self._pause.begun.done():
                    raise
                self._pause.begun.set_result(None)
                if cast("asyncio.Task[Any]", self._reader).uncancel():
                    raise
                await self._pause.over
            finally:
                self._receiving = False

    async def accept(self, subprotocol: str | None = None, headers: HeaderItems = ()) -> None:
        """Accept the upgrade; does nothing if it is accepted already."""
        if not self.accepted:
            await self._write(self._accept_message(subprotocol, headers))

    def _accept_message(self, subprotocol: str | None = None, headers: HeaderItems = ()) -> Message:
        if self.closed:
            raise self.closed_error()
        chosen = self.choose_subprotocol(subprotocol)
        if subprotocol is not None:
            check_subprotocol(subprotocol, self.request.scope.get("subprotocols") or ())
        # Not all servers check what they send.
        items = check_headers(encoded_headers(headers))
        self.mark_accepted(chosen)
        return {"type": "websocket.accept", "subprotocol": chosen, "headers": items}

    async def refuse(self, status: int, body: str, headers: Mapping[str, str] | None = None) -> None:
        """Send an HTTP response; a server without the denial extension of ASGI turns it into a bare 403."""
        payload = body.encode()
        fields = {"content-type": "text/plain; charset=utf-8"}
        fields |= {name.lower(): value for name, value in (headers or {}).items()}
        fields.pop("content-length", None)
        items = [*check_headers(encoded_headers(fields)), (b"content-length", str(len(payload)).encode())]
        self.end(Error(f"the handshake was refused with HTTP {status}"))
        self._discard_outbox()
        if "websocket.http.response" not in (self.request.scope.get("extensions") or {}):
            await self._write({"type": "websocket.close", "code": CloseCode.POLICY})
            return
        await self._write({"type": "websocket.http.response.start", "status": status, "headers": items})
        await self._write({"type": "websocket.http.response.body", "body": payload})
        await refusal_done()

    async def send(self, data: Data) -> None:
        """Write at once, or behind what waits already."""
        if self.closed:
            raise self.closed_error()
        # Each server fails in a way of its own if UTF-8 cannot carry a text.
        check_sendable(data)
        if self._writing or self._outbox:
            await self._write_in_turn(data)
        elif self.accepted:
            await self._write(sent_event(data))
        else:
            await self._write(self._accept_message(), sent_event(data))
        if self.message_observer is not None:
            self.message_observer.message_sent(self, payload_estimate(data))
        self._burst += len(data) + _WRITE_OVERHEAD
        if self._burst >= _BURST:
            self._burst = 0
            await asyncio.sleep(0)

    async def _write_in_turn(self, data: Data) -> None:
        if not self.accepted:
            self._outbox.appendleft(_Queued(self._accept_message(), 0, None))
        written = self.loop.create_future()
        queued = _Queued(data, 0, written)
        self._outbox.append(queued)
        self._flush_soon()
        try:
            await written
        except asyncio.CancelledError:
            # A sender that was cancelled leaves nothing behind.
            with suppress(ValueError):
                self._outbox.remove(queued)
            raise
        finally:
            # The traceback of an exception raised here holds this frame.
            del written, queued

    @property
    def unsent(self) -> int:
        """Bytes that wait in the outbox: what the server holds, it does not show."""
        return self._outbox_size

    def send_nowait(self, data: Data) -> bool:
        """Leave the message to the task that empties the outbox."""
        if self.closed:
            return False
        size = wire_size(data)
        if self._outbox_size + size > self.config.max_outbox:
            self.drop_message()
            return False
        held = size + (_MESSAGE_OVERHEAD if len(self._outbox) >= _FREE_MESSAGES else 0)
        self._outbox.append(_Queued(data, held, None))
        self._outbox_size += held
        if self.message_observer is not None:
            self.message_observer.message_sent(self, size)
        if self.accepted:
            self._flush_soon()
        return True

    def close(self, code: int, text: str, reason: DisconnectReason) -> None:
        """End the channel and have the close frame written behind what waits."""
        if self.reason is not None:
            return
        self._close_frame = (code, text)
        if not self.accepted:
            self._discard_outbox()
        self.discard_inbox()
        self._flush_soon()
        self.end(reason)

    async def flushed(self) -> None:
        """Wait for the task that empties the outbox."""
        if self._flusher is not None:
            await asyncio.wait((self._flusher,))

    def abort(self) -> None:
        """Drop the transport if the server lets it be reached (uvicorn), and give up what waits."""
        self._break()
        if self._flusher is not None:
            self._flusher.cancel()
        if self._abort_transport is not None:
            self._abort_transport()
        elif self._writer is not None and self._writer is not self._flusher:
            # The server goes on with this write as long as the peer lives, but the sender stops waiting for it.
            self._given_up = True
            self._writer.cancel()

    def release(self) -> None:
        """Cancel the timers, and let go of what is the server's.

        Its task keeps the exception that has cancelled it; and granian keeps a refused connection open as long as
        anybody has its `send`, such as a log that keeps the traceback of what has failed here.
        """
        self._reader = None
        self._receive = self._send = nothing_more
        if self._extension is not None:
            self._extension.tell_departure(None)
        for timer in (self._send_timer, self._lost_timer):
            if timer is not None:
                timer.cancel()

    @property
    def last_frame_at(self) -> float:
        """The time of the last frame, as far as the server shows frames: wsdeco's own shows all of them."""
        return super().last_frame_at if self._extension is None else self._extension.last_activity

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more: ended, or the server has said that the peer is gone."""
        return self._broken or self.reason is not None

    async def _write(self, *messages: Message) -> None:
        self._writing = True
        self._writer = asyncio.current_task()
        self._write_began = self.clock.time()
        if self._send_timer is None and self.config.send_timeout is not None:
            self._send_timer = Deadline(self.clock, self.config.send_timeout, self._check_send)
        try:
            for message in messages:
                await self._send(message)
        except asyncio.CancelledError as exc:
            if not self._given_up or cast("asyncio.Task[Any]", self._writer).uncancel():
                raise
            raise self.closed_error() from exc
        except Exception as exc:
            if not isinstance(exc, GONE):
                logger.exception("the server's send() failed for %s", self.addr)
            self._writer = None
            self._break()
            # The event that says why the peer has gone may be waiting to be read.
            await asyncio.sleep(0)
            raise self.closed_error() from exc
        finally:
            self._writing = False
            self._writer = None
            if self._outbox or self._close_frame is not None:
                self._flush_soon()

    def _check_send(self) -> None:
        self._send_timer = None
        timeout = self.config.send_timeout
        if not self._writing or timeout is None:
            return
        left = self._write_began + timeout - self.clock.time()
        if left > 0:
            self._send_timer = Deadline(self.clock, left, self._check_send)
        else:
            self.abort_slow_consumer()

    def close_slow_consumer(self) -> None:
        """Close a peer that reads too slowly with 1013, in the place of what waits for it."""
        self._discard_outbox()
        super().close_slow_consumer()

    def _flush_soon(self) -> None:
        if self._flusher is None and not self._writing and not self._broken:
            self._flusher = self.loop.create_task(self._flush())

    async def _flush(self) -> None:
        written_messages = 0
        try:
            while self._outbox:
                message, size, written = self._outbox.popleft()
                if written is not None and written.done():
                    continue
                if isinstance(message, str | bytes):
                    message = sent_event(message)
                try:
                    await self._write(message)
                finally:
                    self._outbox_size -= size
                    if written is not None and not written.done():
                        self._settle(written)
                written_messages += 1
                if self._outbox and not written_messages % _EVENTS_AT_ONCE:
                    await asyncio.sleep(0)
            await self._write_close()
        except ConnectionClosed:
            pass
        finally:
            self._flusher = None

    def _settle(self, written: asyncio.Future[None]) -> None:
        if self._broken:
            written.set_exception(self.closed_error())
        else:
            written.set_result(None)

    async def _write_close(self) -> None:
        if self._close_frame is None:
            return
        (code, text), self._close_frame = self._close_frame, None
        if self.accepted:
            await self._write_close_frame(code, text)
        else:
            await self.refuse(*self.refusal())

    async def _write_close_frame(self, code: int, text: str) -> None:
        # granian holds a close back while a receive() is under way, and that ends only when the peer sends something.
        pause = self._pause = _ReadingPause(self.loop.create_future(), self.loop.create_future())
        if self._receiving:
            cast("asyncio.Task[Any]", self._reader).cancel()
            await pause.begun
        try:
            await self._write({"type": "websocket.close", "code": code, "reason": text})
        finally:
            wake(pause.over)

    def _break(self) -> None:
        self._broken = True
        self._close_frame = None
        self._discard_outbox()
        # A peer that is gone is read to its end, to learn why it went.
        self._resume_reading()
        if self.reason is None and self._lost_timer is None:
            # Servers that have failed a connection on their own account may never say so.
            self._lost_timer = Deadline(self.clock, self.config.close_timeout, self._end_lost)

    def _end_lost(self) -> None:
        self.end(Unknown())

    def _discard_outbox(self) -> None:
        for queued in self._outbox:
            if queued.written is not None and not queued.written.done():
                queued.written.set_exception(self.closed_error())
        self._outbox.clear()
        self._outbox_size = 0
