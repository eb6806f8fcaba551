"""Handlers in endpoints of one's own: functions under `App.route`, Starlette and FastAPI endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState
from typing_extensions import Unpack

from wsdeco.channels.base import Channel
from wsdeco.channels.rated import channel_types
from wsdeco.clock import Clock
from wsdeco.config import ConnectionConfig, Limits, make_config
from wsdeco.connection.admission import Admission
from wsdeco.connection.hosts import Hosts
from wsdeco.connection.live import LiveConnections
from wsdeco.connection.slots import Slots
from wsdeco.definition.base import Factory
from wsdeco.definition.factory import HandlerFactory, build_factory, class_factory, headers_factory
from wsdeco.definition.faults import name_of
from wsdeco.definition.hooks import HOOK_NAMES
from wsdeco.definition.paths import check_path
from wsdeco.definition.plan import plan_of
from wsdeco.reasons import HandlerError
from wsdeco.rooms.members import Members
from wsdeco.routing.endpoints import Context, HandlerEndpoint, open_channel, serve
from wsdeco.routing.routes import SocketRoute

__all__ = ["WebSocketUpgrade", "handle_socket", "handle_upgrade", "websocket_route"]

_slots: WeakKeyDictionary[Any, dict[tuple[int | None, ...], Slots]] = WeakKeyDictionary()
"""Slots of the endpoints that call `handle_socket` or `handle_upgrade`, by what limits their connections."""


class WebSocketUpgrade(HTTPConnection):
    """A WebSocket handshake that waits for an answer: URL, headers, cookies, path and query parameters of it.

    An endpoint of `App.route` receives it as `upgrade`; `handle_upgrade` accepts it.

    Attributes:
        handled: Whether `handle_upgrade` has been called with it.
        hosts: Says who is refused by listeners on loopback (for `handle_upgrade`).
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, context: Context, room: Members | None = None
    ) -> None:
        super().__init__(scope)
        self._room = room
        self._receive = receive
        self._send = send
        self._context = context
        self.handled: bool = False
        self.hosts: Hosts = context.hosts

    def open_channel(self, config: ConnectionConfig) -> tuple[Channel, LiveConnections]:
        """Return the channel that answers the handshake, and the connections it belongs to (for `handle_upgrade`).

        Raises:
            RuntimeError: It was called before.
        """
        if self.handled:
            raise RuntimeError("this upgrade has been handled already: call handle_upgrade() once per request")
        self.handled = True
        channel = open_channel(self.scope, self._receive, self._send, config, self._context, self._room)
        return channel, self._context.connections


async def handle_upgrade(
    upgrade: WebSocketUpgrade, handler: object, config: ConnectionConfig | None = None, **limits: Unpack[Limits]
) -> None:
    """Serve a handshake with a handler, until the connection has ended.

    Args:
        upgrade: What the endpoint received.
        handler: An instance, or a class that is built as `App.handler` builds it.
        config: The limits. `max_connections`, `max_connections_total` and `max_connections_per_client` count the
            connections of the endpoint that have the same limits.
        limits: Fields of `ConnectionConfig` by keyword, on top of `config`.

    Raises:
        HandlerError: The handler cannot work as it is written.
        RuntimeError: The upgrade was handled before.
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
    factory = _factory_of(handler, upgrade.path_params, checked)
    admission = _admission_of(upgrade.scope, checked, handler, upgrade.hosts)
    channel, connections = upgrade.open_channel(checked)
    await serve(channel, factory, admission, connections)


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
    factory = _factory_of(handler, websocket.path_params, checked)
    accepted = websocket.application_state is WebSocketState.CONNECTED
    clock: Clock | None = websocket.scope.get("wsdeco.clock")
    _, asgi = channel_types(checked)
    channel = asgi(websocket.scope, websocket.receive, websocket.send, checked, clock, accepted=accepted)
    await serve(channel, factory, _admission_of(websocket.scope, checked, handler, Hosts()), LiveConnections())


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
    endpoint = HandlerEndpoint(_route_factory(path, handler), checked, name_of(handler), path, Context())
    return SocketRoute(path, endpoint, name=endpoint.__name__.rpartition(".")[2])


def _admission_of(scope: Scope, config: ConnectionConfig, handler: object, hosts: Hosts) -> Admission:
    endpoint: object = scope.get("endpoint")
    if endpoint is None:
        endpoint = handler if isinstance(handler, type) else type(handler)
    limits = config.max_connections, config.max_connections_total, config.max_connections_per_client
    found = _slots.setdefault(endpoint, {})
    if limits not in found:
        place = f"{getattr(endpoint, '__module__', '')}.{name_of(endpoint)}"
        found[limits] = Slots(limits[0], limits[1], f"{place} {limits}")
    return Admission(name_of(handler), found[limits], config, hosts)


def _route_factory(path: str, handler: object) -> Factory:
    if isinstance(handler, type) and (_has_hooks(handler) or not hasattr(handler, "create")):
        return build_factory(handler, path)
    if _has_hooks(type(handler)) and not callable(handler) and not hasattr(handler, "create"):
        name = name_of(handler)
        raise HandlerError(f"one instance of {name} cannot serve every connection of {path!r}: pass the class {name}")
    return headers_factory(handler)


def _factory_of(handler: object, path_params: Mapping[str, object], config: ConnectionConfig) -> Factory:
    if isinstance(handler, type):
        factory = _generated_factory(handler, tuple((name, type(value)) for name, value in path_params.items()))
        plan_of(handler, config.codec)
        return factory
    if not _has_hooks(type(handler)) and (callable(handler) or hasattr(handler, "create")):
        raise HandlerError(
            f"{name_of(handler)} is neither a handler class nor an instance of one: if it is a factory, call it with "
            "the headers and pass what it returns"
        )
    plan_of(type(handler), config.codec)
    return lambda request: handler


def _has_hooks(cls: type) -> bool:
    return any(hasattr(cls, name) for name in HOOK_NAMES)


@lru_cache(maxsize=256)
def _generated_factory(cls: type, path_params: tuple[tuple[str, type], ...]) -> Factory:
    return class_factory(cls, dict(path_params))
