"""What is registered on which path: one target for each, replaced by the same one again, refused for another."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from starlette.routing import BaseRoute, Router, WebSocketRoute

from wsdeco.config import ConnectionConfig
from wsdeco.definition.paths import path_shape
from wsdeco.definition.signatures import where
from wsdeco.reasons import RouteError, ServerError
from wsdeco.rooms.members import route_key
from wsdeco.routing.endpoints import HandlerEndpoint

__all__ = ["Registered", "Registry", "RouteInfo", "full_name", "kind_of"]


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
    def keys(self) -> list[tuple[str, str]]:
        """What it takes: the shape of its path with each method."""
        shape = path_shape(self.info.path)
        return [(shape, kind) for route in self.routes for kind in _methods(route)]

    @property
    def place(self) -> str:
        """What it is called, and where it stands."""
        return f"{full_name(self.target)} ({_place(self.target)})"


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

    def registered(self) -> list[Registered]:
        """Return the handlers and functions, in the order in which they are matched."""
        registered = {id(route): each for each in list(self._registered.values()) for route in each.routes}
        matched = [registered.get(id(route)) for route in self._router.routes]
        return [each for each in dict.fromkeys(matched) if each is not None]

    def infos(self) -> list[RouteInfo]:
        """Return what is registered, in the order in which it is matched."""
        return [each.info for each in self.registered()]

    def counts(self) -> dict[str, int]:
        """Return how many connections each handler has at this moment, by the path of its route."""
        return {
            each.info.path: endpoint.admission.slots.taken
            for each in self.registered()
            for endpoint in _endpoints(each)
        }

    def register(self, new: Registered) -> list[Registered]:
        """Register, in the place of the same target if it stands on the same path; return what has been replaced.

        Raises:
            RouteError: Something else is registered there.
            ServerError: The server runs already and was started for smaller messages.
        """
        self._check_message_size(new.info)
        standing = (self._registered.get(key) for key in new.keys)
        replaced = [old for old in dict.fromkeys(standing) if old is not None]
        for old in replaced:
            if not _is_same(old.target, new.target):
                raise RouteError(
                    f"path {new.info.path!r} is taken: {old.place} is registered there, so {new.place} cannot be; "
                    "give one of them another path"
                )
        for old in replaced:
            for endpoint, before in zip(_endpoints(new), _endpoints(old), strict=False):
                endpoint.succeed(before)
        # In one step, since a server in another thread may be matching a path at this moment.
        if replaced:
            self._router.routes[:] = self._routes_with(new, replaced)
        else:
            self._router.routes.extend(new.routes)
        for old in replaced:
            for key in old.keys:
                del self._registered[key]
            if old.info.kind != "http":
                del self.room_keys[old.info.path]
        self._registered |= dict.fromkeys(new.keys, new)
        if new.info.kind != "http":
            self.room_keys[new.info.path] = route_key(new.info.path)
        return replaced

    def _routes_with(self, new: Registered, replaced: Iterable[Registered]) -> list[BaseRoute]:
        """Return the routes with those of `new` where the first of the replaced stands."""
        routes = self._router.routes
        gone = {id(route) for old in replaced for route in old.routes}
        left = [route for route in routes if id(route) not in gone]
        position = next((index for index, route in enumerate(routes) if id(route) in gone), len(left))
        return [*left[:position], *new.routes, *left[position:]]

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


def _endpoints(registered: Registered) -> list[HandlerEndpoint]:
    apps = [route.app for route in registered.routes if isinstance(route, WebSocketRoute)]
    return [app for app in apps if isinstance(app, HandlerEndpoint)]


def _methods(route: BaseRoute) -> list[str]:
    return sorted(getattr(route, "methods", None) or {"websocket"})


def _is_same(old: object, new: object) -> bool:
    """Return whether `new` is `old`, made anew.

    One file may be imported under several names: `__main__` if it is run, `__mp_main__` in a process of its own, and
    its own name if a server or another module imports it.
    """
    if full_name(old) == full_name(new):
        return True
    same_name = getattr(old, "__qualname__", None) == getattr(new, "__qualname__", "")
    return same_name and _file_of(old) == _file_of(new) is not None


def _file_of(target: object) -> str | None:
    module = sys.modules.get(getattr(target, "__module__", ""))
    file: str | None = getattr(module, "__file__", None)
    return None if file is None else os.path.realpath(file)


def full_name(target: object) -> str:
    """Return the name of a class or function, with that of its module."""
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', repr(target))}"


def _place(target: object) -> str:
    if not isinstance(target, type):
        return where(target) or "source unknown"
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):
        return "source unknown"
