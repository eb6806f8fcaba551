"""From an ASGI scope to a running connection: slot, origin, channel, lifecycle; and the helpers for own endpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState
from typing_extensions import Unpack

from wsdeco.channels.asgi import AsgiChannel
from wsdeco.channels.base import Channel
from wsdeco.channels.direct import DirectChannel, DirectConnection, direct_connection
from wsdeco.clock import Clock
from wsdeco.config import ConnectionConfig, Limits, make_config
from wsdeco.connection.admission import Slots
from wsdeco.connection.lifecycle import Lifecycle
from wsdeco.connection.live import LiveConnections
from wsdeco.definition.base import Factory, hooks_of
from wsdeco.definition.factory import HandlerFactory, build_factory, class_factory, headers_factory
from wsdeco.definition.hooks import HOOK_NAMES
from wsdeco.definition.paths import check_path
from wsdeco.origins import origin_allowed
from wsdeco.reasons import Close, CloseCode, ConnectionClosed, HandlerError, printable
from wsdeco.rooms.members import Members
from wsdeco.routing.routes import SocketRoute

__all__ = [
    "Context",
    "HandlerEndpoint",
    "WebSocketUpgrade",
    "handle_socket",
    "handle_upgrade",
    "websocket_route",
]

logger = logging.getLogger("wsdeco")

_slots: WeakKeyDictionary[Any, dict[tuple[int | None, int | None], Slots]] = WeakKeyDictionary()
"""Slots of the endpoints that call `handle_socket` or `handle_upgrade`, by what limits their connections."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the endpoints of one app share."""

    connections: LiveConnections = field(default_factory=LiveConnections)
    clock: Clock | None = None


class HandlerEndpoint:
    """The ASGI endpoint of one handler class on one path.

    Attributes:
        config: The limits of its connections.
        room: What its connections are members of from the upgrade on.
        slots: The slots of the route.
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
        self.slots = Slots(config.max_connections, config.max_connections_total, f"{name} {path}")
        self.__name__ = name
        self._factory = factory
        self._context = context
        # Made once, and not for each connection.
        self._over = self._connection_over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket connection."""
        channel = _open_channel(scope, receive, send, self.config, self._context.clock, self.room)
        await _serve(channel, self._factory, self.__name__, self.slots, self._context.connections)

    def start_connection(self, scope: Scope, connection: DirectConnection) -> bool:
        """Begin with one WebSocket connection, unless it has to be turned away; return whether it has begun."""
        connections = self._context.connections
        if connections.closing or not _is_origin_allowed(scope, self.config) or not self.slots.take():
            return False
        try:
            channel = DirectChannel(scope, connection, self.config, self._context.clock)
            channel.route_room = self.room
            connection.consumer = channel
            begun = Lifecycle(channel, self._factory, self.__name__)
            begun.start(self._over)
        except BaseException:
            self.slots.give_back()
            raise
        connections.add(begun)
        return True

    def _connection_over(self, connection: Lifecycle) -> None:
        self._context.connections.discard(connection)
        self.slots.give_back()


class WebSocketUpgrade(HTTPConnection):
    """A WebSocket handshake that waits for an answer: URL, headers, cookies, path and query parameters of it.

    An endpoint of `App.route` receives it as `upgrade`; `handle_upgrade` accepts it.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, context: Context, room: Members | None = None
    ) -> None:
        super().__init__(scope)
        self._room = room
        self._receive = receive
        self._send = send
        self._context = context
        self._handled = False

    @property
    def handled(self) -> bool:
        """Whether `handle_upgrade` has been called with it."""
        return self._handled

    def open_channel(self, config: ConnectionConfig) -> tuple[Channel, LiveConnections]:
        """Return the channel that answers the handshake, and the connections it belongs to (for `handle_upgrade`).

        Raises:
            RuntimeError: It has been called before.
        """
        if self._handled:
            raise RuntimeError("this upgrade has been handled already: call handle_upgrade() once per request")
        self._handled = True
        channel = _open_channel(self.scope, self._receive, self._send, config, self._context.clock, self._room)
        return channel, self._context.connections


async def handle_upgrade(
    upgrade: WebSocketUpgrade, handler: object, config: ConnectionConfig | None = None, **limits: Unpack[Limits]
) -> None:
    """Serve a handshake with a handler, until the connection has ended.

    Args:
        upgrade: What the endpoint received.
        handler: An instance, or a class that is built as `App.handler` builds it.
        config: The limits. `max_connections` and `max_connections_total` count the connections of the endpoint that
            have the same limits.
        limits: Fields of `ConnectionConfig` by keyword, on top of `config`.

    Raises:
        HandlerError: The handler cannot work as it is written.
        RuntimeError: The upgrade has been handled before.
        TypeError: An argument has the wrong type.
        ValueError: A limit is out of its range.
    """
    if not isinstance(upgrade, WebSocketUpgrade):
        found = type(upgrade).__name__
        raise TypeError(
            f"handle_upgrade() takes the WebSocketUpgrade of an @ws.route endpoint, not {found}: "
            "where it is None the request is plain HTTP; for a Starlette WebSocket use handle_socket()"
        )
    checked = make_config(config, limits)
    factory = _factory_of(handler, upgrade.path_params)
    slots = _slots_of(upgrade.scope, checked, handler)
    channel, connections = upgrade.open_channel(checked)
    await _serve(channel, factory, _name_of(handler), slots, connections)


async def handle_socket(
    websocket: WebSocket, handler: object, config: ConnectionConfig | None = None, **limits: Unpack[Limits]
) -> None:
    """Serve a Starlette or FastAPI WebSocket with a handler, until the connection has ended.

    Args:
        websocket: The WebSocket of the endpoint, accepted or not.
        handler: An instance, or a class that is built as `App.handler` builds it.
        config: The limits. `max_connections` and `max_connections_total` count the connections of the endpoint that
            have the same limits; over them the handshake is refused, or an accepted WebSocket closed with 1013.
        limits: Fields of `ConnectionConfig` by keyword, on top of `config`.

    Raises:
        HandlerError: The handler cannot work as it is written.
        RuntimeError: The WebSocket has ended already.
        TypeError: An argument has the wrong type.
        ValueError: A limit is out of its range.
    """
    if not isinstance(websocket, WebSocket):
        hint = ": for an @ws.route endpoint use handle_upgrade()" if isinstance(websocket, HTTPConnection) else ""
        raise TypeError(f"handle_socket() takes a Starlette WebSocket, not {type(websocket).__name__}{hint}")
    if WebSocketState.DISCONNECTED in (websocket.client_state, websocket.application_state):
        raise RuntimeError("this WebSocket has ended already: call handle_socket() once, while it is open")
    checked = make_config(config, limits)
    factory = _factory_of(handler, websocket.path_params)
    accepted = websocket.application_state is WebSocketState.CONNECTED
    channel = AsgiChannel(websocket.scope, websocket.receive, websocket.send, checked, accepted=accepted)
    slots = _slots_of(websocket.scope, checked, handler)
    await _serve(channel, factory, _name_of(handler), slots, LiveConnections())


def websocket_route(
    path: str, handler: type[object] | HandlerFactory, config: ConnectionConfig | None = None, **limits: Unpack[Limits]
) -> WebSocketRoute:
    """Return a Starlette route that serves a handler, for the `routes` of a Starlette or FastAPI app.

    Args:
        path: A Starlette path, such as `/rooms/{room}`.
        handler: A handler class, or a factory: a callable of the headers, or an object with `create(headers)`.
        config: The limits.
        limits: Fields of `ConnectionConfig` by keyword, on top of `config`.

    Raises:
        HandlerError: The handler or factory cannot work as it is written.
        RouteError: The path cannot be routed.
        TypeError: An argument has the wrong type.
        ValueError: A limit is out of its range.
    """
    checked = make_config(config, limits)
    check_path(path)
    endpoint = HandlerEndpoint(_route_factory(path, handler), checked, _name_of(handler), path, Context())
    return SocketRoute(path, endpoint, name=endpoint.__name__.rpartition(".")[2])


def _open_channel(
    scope: Scope,
    receive: Receive,
    send: Send,
    config: ConnectionConfig,
    clock: Clock | None,
    room: Members | None,
) -> Channel:
    connection = direct_connection(scope, receive, send)
    channel: Channel
    if connection is None:
        channel = AsgiChannel(scope, receive, send, config, clock)
    else:
        channel = DirectChannel(scope, connection, config, clock)
    channel.route_room = room
    return channel


async def _serve(channel: Channel, factory: Factory, name: str, slots: Slots, connections: LiveConnections) -> None:
    if not await _take_slot(channel, slots, name):
        return
    try:
        if await _let_in(channel, name, connections):
            connection = Lifecycle(channel, factory, name)
            connections.add(connection)
            try:
                await connection.run()
            finally:
                connections.discard(connection)
    finally:
        slots.give_back()


async def _take_slot(channel: Channel, slots: Slots, name: str) -> bool:
    # Without an await in front: the slot comes first.
    if slots.take():
        return True
    await _turn_away(channel, 503, f"{name} is full", CloseCode.TRY_AGAIN_LATER, {"Retry-After": "1"})
    return False


async def _let_in(channel: Channel, name: str, connections: LiveConnections) -> bool:
    if connections.closing:
        await _turn_away(channel, 503, f"{name} shuts down", CloseCode.SERVICE_RESTART, {"Retry-After": "1"})
    elif not _is_origin_allowed(channel.request.scope, channel.config):
        _log_origin(channel)
        await _turn_away(channel, 403, f"origin not allowed at {name}", CloseCode.POLICY)
    else:
        return True
    return False


async def _turn_away(
    channel: Channel, status: int, why: str, code: int, headers: Mapping[str, str] | None = None
) -> None:
    phrase = HTTPStatus(status).phrase
    logger.info("%s refused with %d: %s", channel.addr, status, why)
    try:
        if not await channel.connect():
            return
        if channel.accepted:
            channel.close(code, phrase.lower(), Close(code, phrase.lower(), by="server"))
            await channel.flushed()
        else:
            await channel.refuse(status, phrase, headers)
    except ConnectionClosed:
        pass
    finally:
        channel.release()


def _is_origin_allowed(scope: Scope, config: ConnectionConfig) -> bool:
    origins = _values(scope, b"origin")
    return not origins or origin_allowed(origins, _host_of(scope), scope["scheme"], config.allowed_origins)


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _host_of(scope: Scope) -> str | None:
    return next(iter(_values(scope, b"host")), None)


def _log_origin(channel: Channel) -> None:
    scope = channel.request.scope
    logger.warning(
        "%s refused: origin %s is not that of %s://%s; if its pages may connect, set allowed_origins=[...], and "
        "behind a proxy that ends TLS let the server trust its X-Forwarded-Proto",
        channel.addr,
        printable(", ".join(_values(scope, b"origin"))),
        scope["scheme"],
        printable(_host_of(scope) or ""),
    )


def _slots_of(scope: Scope, config: ConnectionConfig, handler: object) -> Slots:
    endpoint: object = scope.get("endpoint")
    if endpoint is None:
        endpoint = handler if isinstance(handler, type) else type(handler)
    limits = config.max_connections, config.max_connections_total
    found = _slots.setdefault(endpoint, {})
    if limits not in found:
        place = f"{getattr(endpoint, '__module__', '')}.{_name_of(endpoint)}"
        found[limits] = Slots(*limits, f"{place} {limits}")
    return found[limits]


def _name_of(handler: object) -> str:
    named = handler if hasattr(handler, "__qualname__") else type(handler)
    return str(getattr(named, "__qualname__", named)).rpartition("<locals>.")[2]


def _route_factory(path: str, handler: object) -> Factory:
    if isinstance(handler, type) and (_has_hooks(handler) or not hasattr(handler, "create")):
        return build_factory(handler, path)
    if _has_hooks(type(handler)) and not callable(handler) and not hasattr(handler, "create"):
        name = _name_of(handler)
        raise HandlerError(f"one instance of {name} cannot serve every connection of {path!r}: pass the class {name}")
    return headers_factory(handler)


def _factory_of(handler: object, path_params: Mapping[str, object]) -> Factory:
    if isinstance(handler, type):
        return _generated_factory(handler, tuple((name, type(value)) for name, value in path_params.items()))
    if not _has_hooks(type(handler)) and (callable(handler) or hasattr(handler, "create")):
        raise HandlerError(
            f"{_name_of(handler)} is neither a handler class nor an instance of one: if it is a factory, call it with "
            "the headers and pass what it returns"
        )
    hooks_of(type(handler))
    return lambda request: handler


def _has_hooks(cls: type) -> bool:
    return any(hasattr(cls, name) for name in HOOK_NAMES)


@lru_cache(maxsize=256)
def _generated_factory(cls: type, path_params: tuple[tuple[str, type], ...]) -> Factory:
    return class_factory(cls, dict(path_params))
