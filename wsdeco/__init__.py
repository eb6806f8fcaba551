"""wsdeco: a decorator turns a plain class into a WebSocket endpoint."""

import logging as _logging
from typing import TYPE_CHECKING as _TYPE_CHECKING

from wsdeco.app import App, RouteInfo, ws
from wsdeco.backplanes.interface import Backplane, BackplaneCounters, BackplaneState, PublishErrors
from wsdeco.channels.data import Address
from wsdeco.channels.sink import Sink
from wsdeco.compiled import COMPILED
from wsdeco.config import Compression, ConnectionConfig
from wsdeco.definition.base import WebSocketHandler
from wsdeco.reasons import (
    BackplaneError,
    Close,
    ConnectionClosed,
    DisconnectReason,
    Error,
    HandlerError,
    HandlerWarning,
    RouteError,
    ServerError,
    Timeout,
    Unknown,
    WsdecoError,
)
from wsdeco.rooms.control import RoomCount
from wsdeco.rooms.room import Room
from wsdeco.routing.upgrade import WebSocketUpgrade, handle_socket, handle_upgrade, websocket_route
from wsdeco.server.orphans import end_with_parent as _end_with_parent
from wsdeco.tracebacks import PRINTABLE_TRACEBACKS as _PRINTABLE_TRACEBACKS

if _TYPE_CHECKING:
    from wsdeco.server.background import BackgroundServer

__all__ = [
    "COMPILED",
    "Address",
    "App",
    "BackgroundServer",
    "Backplane",
    "BackplaneCounters",
    "BackplaneError",
    "BackplaneState",
    "Close",
    "Compression",
    "ConnectionClosed",
    "ConnectionConfig",
    "DisconnectReason",
    "Error",
    "HandlerError",
    "HandlerWarning",
    "PublishErrors",
    "Room",
    "RoomCount",
    "RouteError",
    "RouteInfo",
    "ServerError",
    "Sink",
    "Timeout",
    "Unknown",
    "WebSocketHandler",
    "WebSocketUpgrade",
    "WsdecoError",
    "handle_socket",
    "handle_upgrade",
    "websocket_route",
    "ws",
]

__version__ = "0.1.0"

_logging.getLogger("wsdeco").addFilter(_PRINTABLE_TRACEBACKS)
_end_with_parent()


def __getattr__(name: str) -> type:
    # It needs uvicorn, which an application under another server may not have to load.
    if name == "BackgroundServer":
        from wsdeco.server.background import BackgroundServer  # noqa: PLC0415 - as said above

        return BackgroundServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
