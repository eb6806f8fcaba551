"""The ASGI endpoint of a handler: admission, channel, lifecycle."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from wsdeco.channels.base import Channel
from wsdeco.channels.direct import Connection
from wsdeco.channels.extension import extension_of
from wsdeco.channels.observer import Observer, Observers
from wsdeco.channels.rated import channel_types
from wsdeco.clock import Clock
from wsdeco.config import ConnectionConfig
from wsdeco.connection.admission import Admission, Ticket
from wsdeco.connection.answers import LATE_REFUSAL
from wsdeco.connection.hosts import Hosts
from wsdeco.connection.lifecycle import Lifecycle
from wsdeco.connection.live import LiveConnections
from wsdeco.connection.reading import ReadingLifecycle
from wsdeco.connection.refusals import Refusal
from wsdeco.connection.slots import Slots
from wsdeco.definition.base import Factory
from wsdeco.reasons import CloseCode, ConnectionClosed
from wsdeco.rooms.members import Members

__all__ = ["Context", "HandlerEndpoint", "open_channel", "serve"]

logger: Final = logging.getLogger("wsdeco")

_FOREIGN: Final = frozenset({"origin", "host"})
"""Causes of refusals that a foreign page is not told in a way that it could read."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class Context:
    """What the endpoints of one app share.

    Attributes:
        connections: All that live.
        clock: The clock of their deadlines; `None` for the event loop.
        observer: Who watches all of them; `None` if nobody does.
        hosts: Says who is refused by listeners on loopback.
        census: Returns how many rooms of the app have members in this process, and how many these are.
    """

    connections: LiveConnections = field(default_factory=LiveConnections)
    clock: Clock | None = None
    observer: Observer | None = None
    hosts: Hosts = field(default_factory=Hosts)
    census: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def observe(self, observer: Observer) -> None:
        """Let `observer` watch the connections that begin from now on, besides those that watch already."""
        self.observer = observer if self.observer is None else Observers(self.observer, observer)


class HandlerEndpoint:
    """The ASGI endpoint of one handler class on one path.

    Attributes:
        admission: Decides who is let in.
        config: The limits of its connections.
        room: What its connections are members of from the upgrade on.
    """

    def __init__(
        self,
        factory: Factory,
        config: ConnectionConfig,
        name: str,
        path: str,
        context: Context,
        room: Members | None = None,
    ) -> None:
        self.config = config
        self.room = room
        self.__name__ = name
        self._factory = factory
        self._context = context
        self._channel_type = channel_types(config)[0]
        # One object for all connections.
        self._over = context.connections.discard
        self._admit_to(Slots(config.max_connections, config.max_connections_total, f"{name} {path}"))

    def _admit_to(self, slots: Slots) -> None:
        self.admission: Admission = Admission(self.__name__, slots, self.config, self._context.hosts)

    def succeed(self, old: HandlerEndpoint) -> None:
        """Count the connections of the endpoint whose place this one takes among its own."""
        slots, new = old.admission.slots, self.admission.slots
        # What all workers count goes on only as it began: each place that is given back was taken.
        if (slots.name, slots.total) == (new.name, new.total):
            slots.limit = new.limit
            self._admit_to(slots)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket connection."""
        channel = open_channel(scope, receive, send, self.config, self._context, self.room)
        await serve(channel, self._factory, self.admission, self._context.connections)

    def start_connection(self, scope: Scope, connection: Connection) -> bool:
        """Begin with one WebSocket connection, unless it has to be turned away; return whether it has begun."""
        context = self._context
        if context.connections.closing:
            return False
        ticket = self.admission.admit(scope)
        if isinstance(ticket, Refusal):
            # The app is called next, and answers it.
            return False
        try:
            channel = self._channel_type(scope, connection, self.config, context.clock)
            channel.route_room = self.room
            channel.watch(context.observer)
            connection.receiver = channel
            begun = Lifecycle(channel, self._factory, self.__name__)
            begun.start(self._over)
        except BaseException:
            ticket.give_back()
            raise
        context.connections.add(begun, ticket)
        return True

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return how a handshake is turned away at this moment, if it is.

        Args:
            scope: The handshake, or a plain request with the same headers.
        """
        connections = self._context.connections
        answer = _closing(connections) if connections.closing else self.admission.admit(scope)
        if isinstance(answer, Refusal):
            return answer
        answer.give_back()
        return None


def open_channel(
    scope: Scope, receive: Receive, send: Send, config: ConnectionConfig, context: Context, room: Members | None
) -> Channel:
    """Return the channel of a handshake that waits for an answer: direct, if nothing on the way sees the messages."""
    extension = extension_of(scope)
    connection = None if extension is None else extension.yield_connection(receive, send)
    # A test may bring a clock for this connection alone.
    clock: Clock | None = scope.get("wsdeco.clock", context.clock)
    direct, asgi = channel_types(config)
    channel: Channel
    if connection is None:
        channel = asgi(scope, receive, send, config, clock)
    else:
        channel = direct(scope, connection, config, clock)
    channel.route_room = room
    channel.watch(context.observer)
    return channel


async def serve(channel: Channel, factory: Factory, admission: Admission, connections: LiveConnections) -> None:
    """Serve a connection with what `factory` builds, if it is let in; return when everything about it has ended."""
    # Nothing is awaited before this, so that the slot comes first.
    ticket = _closing(connections) if connections.closing else admission.admit(channel.request.scope)
    if isinstance(ticket, Refusal):
        if isinstance(ticket.failure, HTTPException | WebSocketException):
            # `client` refuses, and the answer is what it would be if `__init__` did.
            await _run(channel, _raising(ticket.failure), admission.name, connections, None)
        else:
            await _turn_away(channel, ticket, admission.name)
        return
    await _run(channel, factory, admission.name, connections, ticket)


async def _run(
    channel: Channel, factory: Factory, name: str, connections: LiveConnections, ticket: Ticket | None
) -> None:
    connection = ReadingLifecycle(channel, factory, name)
    connections.add(connection, ticket)
    try:
        await connection.run()
    finally:
        connections.discard(connection)


def _raising(exc: HTTPException | WebSocketException) -> Factory:
    def make(_connection: HTTPConnection) -> NoReturn:
        raise exc

    return make


def _closing(connections: LiveConnections) -> Refusal:
    return Refusal("shutdown", 503, CloseCode.SERVICE_RESTART, retry_after=connections.retry_after)


async def _turn_away(channel: Channel, refusal: Refusal, name: str) -> None:
    if refusal.advice is not None:
        logger.warning("%s refused: %s", channel.addr, refusal.advice)
    if refusal.failure is not None:
        logger.error("client of %s failed for %s", name, channel.addr, exc_info=refusal.failure)
    if channel.observer is not None:
        # The access log has a line for it.
        channel.observer.refused(channel.request.scope, refusal.status, refusal.cause)
    else:
        logger.info("%s refused with %d at %s: %s", channel.addr, refusal.status, name, refusal.cause)
    text = refusal.phrase.lower()
    try:
        if not await channel.connect():
            return
        if channel.accepted:
            channel.close_by_server(refusal.code, text)
            await channel.flushed()
        elif channel.config.refuse_after_upgrade and refusal.cause not in _FOREIGN:
            await channel.refuse_after_upgrade(LATE_REFUSAL + refusal.status, text)
            await channel.flushed()
        else:
            await channel.refuse(refusal.status, refusal.phrase, refusal.headers)
    except ConnectionClosed:
        pass
    finally:
        channel.release()
