"""The channel over wsdeco's own protocol: messages come in lists, frames go into the protocol's outbox.

No event dictionaries, no second queue, no task that reads: the protocol calls the channel from `data_received`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, cast

from starlette.requests import HTTPConnection
from starlette.types import Scope

from wsdeco.channels.base import Channel, wake
from wsdeco.channels.data import Data, HeaderItems, encoded_headers, exceeds, payload_estimate, unsendable, wire_size
from wsdeco.channels.extension import wire_options
from wsdeco.channels.packed_request import PackedRequest
from wsdeco.clock import Clock, Deadline
from wsdeco.compiled import mypyc_attr
from wsdeco.config import ConnectionConfig
from wsdeco.reasons import Close, DisconnectReason, Unknown
from wsdeco.wire.contract import ROOMY_OUTBOX, Connection
from wsdeco.wire.handshake import Request
from wsdeco.wire.outgoing import Encoded

__all__ = ["Connection", "DirectChannel"]

_OVERHEAD: Final = 64
"""Bytes that each message before the upgrade counts for besides its own, once `_FREE_OBJECTS` are there."""
_FREE_OBJECTS: Final = 1024


@mypyc_attr(allow_interpreted_subclasses=True)
class DirectChannel(Channel):
    """A channel that is the protocol's receiver."""

    __slots__ = ("_connection", "_early", "_early_size", "_lost", "_parsed", "_reader")

    shortcut: Connection | None

    def __init__(
        self, scope: Scope, connection: Connection, config: ConnectionConfig, clock: Clock | None = None
    ) -> None:
        super().__init__(HTTPConnection(scope), config, clock)
        self._connection = connection
        self._early: list[Data] | None = None
        self._early_size = 0
        self._parsed = connection.request
        self._reader: asyncio.Future[None] | None = None
        self._lost = False
        connection.close_timeout = config.close_timeout

    # What the protocol calls.

    def input_ended(self, reason: Close | Unknown) -> None:
        """Nothing more comes."""
        self.end(reason)

    def connection_lost(self) -> None:
        """The transport is gone."""
        self._lost = True
        wake(self._reader)
        if self.owner is not None:
            self.owner.transport_lost()

    # What the lifecycle calls.

    async def connect(self) -> bool:
        """Take the place of the ASGI cycle."""
        if self._connection.end is not None:
            return False
        self._connection.receiver = self
        return True

    async def read(self) -> None:
        """Wait until the transport is gone: the protocol reads."""
        if self._connection.receiver is self:
            self._reader = self.loop.create_future()
            await self._reader

    def _pause_reading(self) -> None:
        self._connection.pause_reading()

    def _resume_reading(self) -> None:
        super()._resume_reading()
        if self._connection.reading_paused:
            self._connection.resume_reading()

    def _finish(self) -> None:
        self._connection.finish()

    @property
    def last_frame_at(self) -> float:
        """The time of the last frame of any kind that is not the answer to a ping of ours."""
        return self._connection.last_activity

    @property
    def round_trip(self) -> float | None:
        """Seconds from the last ping to its answer; asked once, it is measured from then on."""
        return self._connection.round_trip

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more.

        If the peer has ended its side, what it sent before is still answered: the protocol waits with its part of
        the closing handshake.
        """
        return self._connection.closed or (self.reason is not None and not self.accepted)

    @property
    def lost(self) -> bool:
        """Whether the transport is gone."""
        return self._lost

    def pack_request(self) -> None:
        """Keep the head of the request; the app's middleware is left behind with the end of the call that began it."""
        parsed, self._parsed = cast(Request, self._parsed), None
        addr = self.addr
        try:
            packed = PackedRequest(self.request, parsed, self._connection.app_state, addr if addr.host else None)
        except ValueError:
            return
        self._request = packed
        packed.drop_dead_reference()

    async def accept(self, subprotocol: str | None = None, headers: HeaderItems = ()) -> None:
        """Accept the upgrade; does nothing if it is accepted already."""
        if self.accepted:
            return
        if self.closed:
            raise self.closed_error()
        chosen = self.choose_subprotocol(subprotocol)
        # The connection checks them, as it does for all who have one: nobody splits a response.
        self._connection.accept(chosen, encoded_headers(headers), **wire_options(self.config))
        self.mark_accepted(chosen)
        early, self._early = self._early, None
        for data in early or ():
            self._connection.send_message(data, at_once=True)

    async def refuse(self, status: int, body: str, headers: Mapping[str, str] | None = None) -> None:
        """Send an HTTP response."""
        self._refuse(status, body, headers)

    def _refuse(self, status: int, body: str, headers: Mapping[str, str] | None) -> None:
        self._early = None
        if self._connection.handshake_pending:
            self._connection.refuse(status, encoded_headers(headers or {}), body.encode())

    async def send(self, data: Data) -> None:
        """Write by the end of the loop's turn; wait while the peer does not read."""
        connection = self._connection
        if self.closed:
            raise self.closed_error()
        if not self.accepted:
            wire_size(data)
            await self.accept()
        has_waited = connection.senders_wait
        try:
            if has_waited or not connection.send_message(data):
                await self._send_in_turn(data)
        except UnicodeEncodeError as exc:
            raise unsendable(exc) from None
        if self.message_observer is not None:
            self.message_observer.message_sent(self, payload_estimate(data))
        if connection.write_paused and not has_waited:
            await self._send_in_turn(None)

    def try_send(self, data: Data) -> bool:
        """Send if the peer reads: at once, unless a message waits in the inbox whose reply can share the write."""
        connection = self._connection
        if connection.senders_wait or connection.closed or not self.accepted:
            return False
        try:
            if not (connection.write_message(data) if self._inbox is None else connection.send_message(data)):
                return False
        except UnicodeEncodeError as exc:
            raise unsendable(exc) from None
        if self.message_observer is not None:
            self.message_observer.message_sent(self, payload_estimate(data))
        return True

    async def _send_in_turn(self, data: Data | None) -> None:
        timer = None
        if self.config.send_timeout is not None:
            timer = Deadline(self.clock, self.config.send_timeout, self.abort_slow_consumer)
        try:
            is_sent = await self._connection.send_in_turn(data)
        finally:
            if timer is not None:
                timer.cancel()
        if not is_sent:
            raise self.closed_error()

    @property
    def unsent(self) -> int:
        """Bytes that were sent and that the peer has yet to make room for."""
        return self._connection.unsent + self._early_size

    def send_nowait(self, data: Data) -> bool:
        """Write by the end of the loop's turn, within the bound of the outbox."""
        if self.closed:
            return False
        if exceeds(data, self.config.max_outbox - self._connection.unsent - self._early_size):
            self.drop_message()
            return False
        if self.accepted:
            try:
                self._connection.send_message(data, at_once=True)
            except UnicodeEncodeError as exc:
                raise unsendable(exc) from None
        else:
            if self._early is None:
                self._early = []
            self._early.append(data)
            self._early_size += wire_size(data) + (_OVERHEAD if len(self._early) > _FREE_OBJECTS else 0)
        if self.message_observer is not None:
            self.message_observer.message_sent(self, payload_estimate(data))
        return True

    def send_encoded(self, message: Encoded) -> bool:
        """Do what `send_nowait` does, with a frame that many connections share."""
        connection = self._connection
        if connection.closed or not self.accepted:
            return self.send_nowait(message.data)
        if connection.send_encoded(message, self.config.max_outbox):
            if self.message_observer is not None:
                self.message_observer.message_sent(self, message.size)
            return True
        self.drop_message()
        return False

    def mark_accepted(self, subprotocol: str | None) -> None:
        """Note that the upgrade is being accepted; what waited for it goes out."""
        self._early_size = 0
        if self.config.max_outbox >= ROOMY_OUTBOX:
            self.shortcut = self._connection
        super().mark_accepted(subprotocol)

    def close(self, code: int, text: str, reason: DisconnectReason) -> None:
        """End the channel: a close frame behind what was sent, or an HTTP refusal."""
        if self.reason is not None:
            return
        self.discard_inbox()
        self.end(reason)
        if self.accepted:
            self._connection.close(code, text)
        else:
            self._refuse(*self.refusal())

    async def flushed(self) -> None:
        """Return at once: the protocol writes by the end of the loop's turn, and bounds what comes after."""

    def abort(self) -> None:
        """Drop the transport."""
        self._connection.abort()

    def release(self) -> None:
        """Do nothing: no timer outlives the call that set it."""
