"""The channel that works on any ASGI server, from nothing but `receive` and `send`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, cast

from starlette.types import Message, Receive, Scope, Send

from wsdeco.channels.base import wake
from wsdeco.channels.data import (
    Data,
    HeaderItems,
    check_sendable,
    encoded_headers,
    payload_estimate,
    wire_size,
)
from wsdeco.channels.events import GONE, abort_of, nothing_more, refusal_done, sent_event
from wsdeco.channels.extension import wire_options
from wsdeco.channels.receiving import ReceivingChannel
from wsdeco.clock import Clock, Deadline
from wsdeco.config import ConnectionConfig
from wsdeco.reasons import CloseCode, ConnectionClosed, DisconnectReason, Error, Unknown
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


class AsgiChannel(ReceivingChannel):
    """A channel over ASGI's `receive` and `send` (specification 2.0 and later): the half that sends.

    One write at a time reaches the server. A `send` that finds no other one in progress writes by itself; the rest
    waits in the outbox, which a task empties that lives only as long as there is something in it.
    """

    __slots__ = (
        "_abort_transport",
        "_burst",
        "_close_frame",
        "_flusher",
        "_given_up",
        "_lost_timer",
        "_outbox",
        "_outbox_size",
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
        super().__init__(scope, receive, config, clock)
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
        self._lost_timer: Deadline | None = None
        extension = self._extension
        self._abort_transport = abort_of(receive) if extension is None else extension.connection.abort
        if extension is not None:
            # So they hold whatever middleware stands between the wire and the route.
            extension.set_options(close_timeout=config.close_timeout, **wire_options(config))

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
        if self._broken or self.reason is not None:
            raise self.closed_error()
        # Each server fails in a way of its own if UTF-8 cannot carry a text.
        if isinstance(data, str) and not data.isascii():
            check_sendable(data)
        if self._writing or self._outbox:
            await self._write_in_turn(data)
        elif self.accepted:
            # As `_write` does, without its frame.
            self._write_begins()
            try:
                await self._send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
            except BaseException as exc:
                await self._write_failed(exc)
                raise
            finally:
                self._write_over()
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
        """Cancel the timers as well."""
        super().release()
        self._send = nothing_more
        for timer in (self._send_timer, self._lost_timer):
            if timer is not None:
                timer.cancel()

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more: ended, or the server has said that the peer is gone."""
        return self._broken or self.reason is not None

    async def _write(self, *messages: Message) -> None:
        self._write_begins()
        try:
            for message in messages:
                await self._send(message)
        except BaseException as exc:
            await self._write_failed(exc)
            raise
        finally:
            self._write_over()

    def _write_begins(self) -> None:
        self._writing = True
        if self._abort_transport is None:
            # Otherwise nobody has to be cancelled; and Python 3.11 asks the kernel for the process first.
            self._writer = asyncio.current_task()
        timeout = self.config.send_timeout
        if timeout is not None:
            self._write_began = self.clock.time()
            if self._send_timer is None:
                self._send_timer = Deadline(self.clock, timeout, self._check_send)

    async def _write_failed(self, exc: BaseException) -> None:
        """Raise what a sender gets, unless that is `exc`."""
        if isinstance(exc, asyncio.CancelledError):
            if self._given_up and not cast("asyncio.Task[Any]", self._writer).uncancel():
                raise self.closed_error() from exc
        elif isinstance(exc, Exception):
            if not isinstance(exc, GONE):
                logger.error("the server's send() failed for %s", self.addr, exc_info=exc)
            self._writer = None
            self._break()
            # The event that says why the peer has gone may be waiting to be read.
            await asyncio.sleep(0)
            raise self.closed_error() from exc

    def _write_over(self) -> None:
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
        if not self.accepted:
            await self.refuse(*self.refusal())
            return
        # granian holds a close back while a receive() is under way, and that ends only when the peer sends something.
        over = await self._pause_receiving()
        try:
            await self._write({"type": "websocket.close", "code": code, "reason": text})
        finally:
            wake(over)

    def _break(self) -> None:
        self._broken = True
        self._close_frame = None
        self._discard_outbox()
        # A peer that is gone is read to its end, to learn why it went.
        self._resume_reading()
        if self.reason is None and self._lost_timer is None:
            # Servers that have failed a connection on their own account may never say so.
            self._lost_timer = Deadline(self.clock, self.config.close_timeout, partial(self.end, Unknown()))

    def _discard_outbox(self) -> None:
        for queued in self._outbox:
            if queued.written is not None and not queued.written.done():
                queued.written.set_exception(self.closed_error())
        self._outbox.clear()
        self._outbox_size = 0
