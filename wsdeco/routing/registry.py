"""What is registered on which path: one target for each, replaced by the same one again, refused for another."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Literal

from starlette.routing import BaseRoute, Router, WebSocketRoute

from wsdeco.config import ConnectionConfig
from wsdeco.definition.paths import path_shape
from wsdeco.definition.signatures import where
from wsdeco.reasons import RouteError, ServerError
from wsdeco.rooms.members import route_key

__all__ = ["Registered", "Registry", "RouteInfo", "kind_of"]


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """One line of the routes of an app.

    Attributes:
        path: The path.
        kind: `"ws"` for a handler, and for a function that takes upgrades only; `"http"` for a function that takes
            none; `"http+ws"` for one that takes both.
        name: The name of the handler or function.
        config: The limits of a handler; `None` for a function.
    """

    path: str
    kind: Literal["ws", "http", "http+ws"]
    name: str
    config: ConnectionConfig | None


@dataclass(frozen=True, eq=False, slots=True)
class Registered:
    """A handler or a function with its routes."""

    info: RouteInfo
    target: object
    routes: list[BaseRoute]

    @property
    def place(self) -> str:
        """What it is called, and where it stands."""
        return f"{_full_name(self.target)} ({_place(self.target)})"


class Registry:
    """The handlers and functions of one app.

    Attributes:
        message_size_cap: The largest message that the server takes, in bytes; `None` if `run` has not started it.
        room_keys: The key of the room of each path that serves connections.
    """

    def __init__(self, router: Router) -> None:
        """Register in the routes of a Starlette router, which may hold others as well."""
        self.message_size_cap: int | None = None
        self.room_keys: dict[str, str] = {}
        self._router = router
        self._registered: dict[tuple[str, str], Registered] = {}

    def infos(self) -> list[RouteInfo]:
        """Return what is registered, in the order in which it is matched."""
        registered = {id(route): each for each in self._registered.values() for route in each.routes}
        matched = [registered.get(id(route)) for route in self._router.routes]
        return [each.info for each in dict.fromkeys(matched) if each is not None]

    def register(self, new: Registered) -> None:
        """Register, in the place of the same target where it stands on the same path.

        Raises:
            RouteError: Something else is registered there.
            ServerError: The server runs already and was started for smaller messages.
        """
        self._check_message_size(new.info)
        shape = path_shape(new.info.path)
        keys = [(shape, kind) for route in new.routes for kind in _methods(route)]
        replaced: list[Registered] = []
        for key in keys:
            old = self._registered.get(key)
            if old is None:
                continue
            if _full_name(old.target) != _full_name(new.target):
                raise RouteError(
                    f"path {new.info.path!r} is taken: {old.place} is registered there, so {new.place} cannot be; "
                    "give one of them another path"
                )
            replaced.append(old)
        routes = self._router.routes
        gone = [route for old in replaced for route in old.routes]
        position = next((index for index, route in enumerate(routes) if route in gone), len(routes))
        left = [route for route in routes if route not in gone]
        # In one step, since a server in another thread may be matching a path at this moment.
        routes[:] = [*left[:position], *new.routes, *left[position:]]
        kept = {key: value for key, value in self._registered.items() if value not in replaced}
        self._registered = kept | dict.fromkeys(keys, new)
        served = (each.info for each in self._registered.values())
        self.room_keys = {info.path: route_key(info.path) for info in served if info.kind != "http"}

    def _check_message_size(self, info: RouteInfo) -> None:
        config, cap = info.config, self.message_size_cap
        if config is not None and cap is not None and config.max_message_size > cap:
            raise ServerError(
                f"max_message_size={config.max_message_size} on {info.path!r} cannot take effect: the server that runs "
                f"was started for messages of up to {cap} bytes; stop it, register the handler, then call run()"
            )


def kind_of(routes: list[BaseRoute]) -> Literal["ws", "http", "http+ws"]:
    """Return what `RouteInfo.kind` says of these routes of one function."""
    if len(routes) > 1:
        return "http+ws"
    return "ws" if isinstance(routes[0], WebSocketRoute) else "http"


def _methods(route: BaseRoute) -> list[str]:
    return sorted(getattr(route, "methods", None) or {"websocket"})


def _full_name(target: object) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', repr(target))}"


def _place(target: object) -> str:
    if not isinstance(target, type):
        return where(target) or "source unknown"
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):
        return "source unknown"
