"""wsdeco: a decorator turns a plain class into a WebSocket endpoint."""

from wsdeco.app import App, RouteInfo, ws
from wsdeco.backplanes.interface import Backplane, BackplaneCounters, BackplaneState, PublishErrors
from wsdeco.channels.data import Address
from wsdeco.channels.sink import Sink
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

__all__ = [
    "Address",
    "App",
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

_end_with_parent()
