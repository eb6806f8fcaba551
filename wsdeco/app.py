"""`App`: the registry of the decorators, and the ASGI app they fill. `ws` is the one most programs need."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Match, WebSocketRoute
from starlette.types import ExceptionHandler, Receive, Scope, Send
from typing_extensions import Unpack

from wsdeco.backplanes.interface import Backplane, PublishErrors
from wsdeco.channel import Sink
from wsdeco.clock import Clock
from wsdeco.config import ConnectionConfig, Limits, make_config
from wsdeco.direct import DirectConnection, is_direct
from wsdeco.factory import HandlerFactory, build_factory
from wsdeco.paths import SocketRoute, check_path, path_shape, unknown_path
from wsdeco.reasons import BackplaneError, HandlerError, RouteError, ServerError
from wsdeco.rooms import Room, Rooms, route_key
from wsdeco.routes import answer_not_found, endpoint_routes
from wsdeco.signatures import bindable, signature_of, where
from wsdeco.upgrade import Context, HandlerEndpoint

if TYPE_CHECKING:
    from wsdeco.server.launch import BackgroundServer

__all__ = ["BACKPLANE_VARIABLE", "App", "RouteInfo", "ws"]

logger = logging.getLogger("wsdeco")

_SERVERS_MAX_SIZE: Final = 16 * 1024 * 1024
"""Largest message that uvicorn and hypercorn take by default, in bytes."""

_PROTOCOL_MODULE: Final = "wsdeco.protocol"
"""Loaded before start-up by a server that uses wsdeco's own WebSocket implementation."""

BACKPLANE_VARIABLE: Final = "WSDECO_BACKPLANE"
"""Names the backplane of an app that names none, in the environment."""

HandlerClass = TypeVar("HandlerClass", bound=type)
EndpointFunction = TypeVar("EndpointFunction", bound=Callable[..., Any])

LifespanFunction: TypeAlias = Callable[[Starlette], AsyncIterator[Any] | AbstractAsyncContextManager[Any]]
"""Start-up and shutdown: an async generator function, or one that returns an async context manager."""

DecoratedLifespan = TypeVar("DecoratedLifespan", bound=LifespanFunction)


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
class _Registered:
    info: RouteInfo
    target: object
    routes: list[BaseRoute]

    @property
    def place(self) -> str:
        return f"{_full_name(self.target)} ({_place(self.target)})"


class App:
    """Collects handlers and routes in one ASGI app.

    An `App` is an ASGI app itself (`uvicorn module:ws`) and can be mounted in another one. The Starlette app inside
    it is `app`, for middleware and whatever else Starlette offers.

    Attributes:
        app: The Starlette app.
    """

    def __init__(
        self,
        *,
        lifespan: LifespanFunction | None = None,
        middleware: Sequence[Middleware] = (),
        exception_handlers: Mapping[Any, ExceptionHandler] | None = None,
        debug: bool = False,
        clock: Clock | None = None,
        backplane: str | Backplane | None = None,
        publish_errors: PublishErrors = "count",
    ) -> None:
        """Make an app without routes.

        Args:
            lifespan: Start-up and shutdown, as the decorator `lifespan` takes it.
            middleware: Starlette middleware, the outermost first.
            exception_handlers: Starlette's exception handlers, for HTTP routes.
            debug: Show tracebacks of HTTP routes to the client.
            clock: What every deadline reads; by default the event loop. Tests pass one they advance.
            backplane: Carries broadcasts to the same rooms in other processes: the URL of a NATS or Redis server, such
                as `nats://127.0.0.1:4222` or `redis://127.0.0.1:6379`, or an object with the methods of `Backplane`.
                By default, the URL in the environment variable `WSDECO_BACKPLANE`, which is read as soon as an event
                loop serves the app; where there is none, rooms live in this process alone.
            publish_errors: Whether a broadcast that cannot be published to other processes raises `BackplaneError`
                (`"raise"`), or is only counted (`"count"`). Members in this process get it in either case.

        Raises:
            BackplaneError: The client library of the backplane is not installed.
            HandlerError: `lifespan` cannot work as it is written.
            TypeError: `backplane` is neither a URL nor a backplane.
            ValueError: The URL of the backplane cannot be used, or `publish_errors` is neither.
        """
        self._context = Context(clock=clock)
        self._lifespan = None if lifespan is None else _checked_lifespan(lifespan)
        self._registered: dict[tuple[str, str], _Registered] = {}
        self._rooms = Rooms(_checked_backplane(backplane), _checked_errors(publish_errors), _backplane_of_environment)
        self._room_keys: dict[str, str] = {}
        self._known_routes: list[BaseRoute] = []
        self._endpoints: dict[str, HandlerEndpoint] = {}
        self._message_size_cap: int | None = None
        self._limits_announced = False
        self._idle_announced = False
        self.app = Starlette(
            debug=debug, middleware=middleware, exception_handlers=exception_handlers, lifespan=self._run_lifespan
        )
        self.app.router.default = answer_not_found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if not self._limits_announced and scope["type"] != "lifespan":
            self._announce_limits()
            self._announce_missing_lifespan()
        endpoint = None
        if scope["type"] == "websocket":
            if not self._idle_announced and not is_direct(scope):
                self._announce_idle()
            endpoint = self._handler_endpoint(scope)
        if endpoint is None:
            await self.app(scope, receive, send)
        else:
            await endpoint(scope, receive, send)

    def start_connection(self, scope: Scope, connection: DirectConnection) -> bool:
        """Begin with a connection of wsdeco's own protocol; return whether that could be done without being called.

        The protocol asks before it calls the app, where nothing that wants to see the messages is around it.
        """
        if not self._limits_announced:
            return False
        try:
            endpoint = self._handler_endpoint(scope)
        except Exception as exc:
            # From a route of somebody else. It comes again, and is answered, when the app is called.
            logger.debug("a route failed to match", exc_info=exc)
            return False
        return endpoint is not None and endpoint.start_connection(scope, connection)

    def _handler_endpoint(self, scope: Scope) -> HandlerEndpoint | None:
        # Between here and the endpoint of a handler Starlette's own layers have nothing to do, and cost most of a
        # handshake and of the memory of a connection.
        if self.app.user_middleware:
            return None
        router = self.app.router
        if router.routes != self._known_routes:
            self._known_routes = router.routes.copy()
            self._endpoints = {}
        path: str = scope["path"]
        endpoint = self._endpoints.get(path)
        if endpoint is not None and not scope.get("root_path") and not scope.get("path_params"):
            scope["endpoint"] = endpoint
            scope["path_params"] = {}
        else:
            route, child_scope = _first_match(router.routes, scope)
            if not isinstance(route, WebSocketRoute) or not isinstance(route.app, HandlerEndpoint):
                return None
            endpoint = route.app
            scope.update(child_scope)
            if route.path == path and not child_scope["path_params"]:
                # Whoever asks for it is answered the same; and no peer chooses what is kept.
                self._endpoints[path] = endpoint
        scope["app"] = self.app
        scope["router"] = router
        return endpoint

    # Registering.

    def handler(
        self,
        path: str,
        *,
        config: ConnectionConfig | None = None,
        factory: HandlerFactory | None = None,
        **limits: Unpack[Limits],
    ) -> Callable[[HandlerClass], HandlerClass]:
        """Decorate a class whose instances serve the WebSocket connections of `path`, one each.

        The class is returned unchanged; to serve several paths, stack the decorator.

        Args:
            path: A Starlette path, such as `/rooms/{room}` or `/n/{n:int}`.
            config: The limits.
            factory: Builds the instances: a callable of the headers, or an object with `create(headers)`. By
                default `__init__` receives `headers`, `query_params`, `request` and path parameters by name.
            limits: Fields of `ConnectionConfig` by keyword, on top of `config`.

        Raises:
            HandlerError: The class or the factory cannot work as it is written; all faults at once.
            RouteError: The path cannot be routed, or something else is registered there.
            TypeError: An argument has the wrong type, or a keyword names no limit.
            ValueError: A limit is out of its range.
        """
        _check_decorated_path("handler", path)
        checked = make_config(config, limits)

        def register(cls: HandlerClass) -> HandlerClass:
            self.add(path, cls, config=checked, factory=factory)
            return cls

        return register

    def add(
        self,
        path: str,
        cls: type,
        *,
        config: ConnectionConfig | None = None,
        factory: HandlerFactory | None = None,
        **limits: Unpack[Limits],
    ) -> None:
        """Do what `handler` does, without the syntax of a decorator.

        A class of the same module and name takes the place of the one registered before on the same path, as a
        reloaded module or a notebook cell that runs again needs it; connections that live keep their handler.

        Args:
            path: A Starlette path.
            cls: The handler class.
            config: The limits.
            factory: Builds the instances, as for `handler`.
            limits: Fields of `ConnectionConfig` by keyword, on top of `config`.

        Raises:
            HandlerError: The class or the factory cannot work as it is written; all faults at once.
            RouteError: The path cannot be routed, or something else is registered there.
            ServerError: The server runs already and was started for smaller messages.
            TypeError: An argument has the wrong type, or a keyword names no limit.
            ValueError: A limit is out of its range.
        """
        checked = make_config(config, limits)
        check_path(path)
        built = build_factory(cls, path, factory)
        self._check_message_size(path, checked)
        name = cls.__qualname__.rpartition("<locals>.")[2]
        endpoint = HandlerEndpoint(built, checked, name, path, self._context, self._rooms.of_route(path))
        route = SocketRoute(path, endpoint, name=cls.__name__)
        self._register(_Registered(RouteInfo(path, "ws", endpoint.__name__, checked), cls, [route]))

    def route(
        self, path: str, *, methods: Collection[str] | None = None, name: str | None = None
    ) -> Callable[[EndpointFunction], EndpointFunction]:
        """Decorate a function that answers plain HTTP requests, WebSocket handshakes, or both, on `path`.

        Parameters are filled by name: `request`, `headers`, `query_params`, path parameters, and `upgrade`, which
        is a `WebSocketUpgrade` for a handshake and `None` for plain HTTP. A response answers either; a handshake is
        accepted by `await handle_upgrade(upgrade, handler)`. A plain `def` runs in a thread.

        Args:
            path: A Starlette path.
            methods: HTTP methods; by default GET (and HEAD).
            name: Name of the route, for `url_path_for`; by default that of the function.

        Raises:
            HandlerError: The function cannot work as it is written, or is a class.
            RouteError: The path cannot be routed, or something else is registered there.
            TypeError: `methods` is not a list of HTTP methods.
        """
        _check_decorated_path("route", path)

        def register(endpoint: EndpointFunction) -> EndpointFunction:
            routes = endpoint_routes(path, endpoint, methods, name, self._context, self._rooms.of_route(path))
            called = getattr(endpoint, "__name__", type(endpoint).__name__)
            self._register(_Registered(RouteInfo(path, _kind(routes), called, None), endpoint, routes))
            return endpoint

        return register

    def lifespan(self, function: DecoratedLifespan) -> DecoratedLifespan:
        """Decorate the start-up and shutdown of the app: an async generator of the Starlette app that yields once.

        What it yields (a mapping, or nothing) becomes the `state` of every request. The part behind the `yield`
        runs after the last `on_disconnect`. A function that returns an async context manager will do as well.

        Raises:
            HandlerError: The function is neither, or cannot be called with the app alone.
        """
        self._lifespan = _checked_lifespan(function)
        return function

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes of the Starlette app, which finds the URLs of a mounted app by them."""
        return self.app.routes

    @property
    def route_infos(self) -> list[RouteInfo]:
        """What is registered, in the order in which it is matched."""
        registered = {id(route): each for each in self._registered.values() for route in each.routes}
        matched = [registered.get(id(route)) for route in self.app.router.routes]
        return [each.info for each in dict.fromkeys(matched) if each is not None]

    def _register(self, new: _Registered) -> None:
        shape = path_shape(new.info.path)
        keys = [(shape, kind) for route in new.routes for kind in _kinds(route)]
        replaced: list[_Registered] = []
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
        routes = self.app.router.routes
        gone = [route for old in replaced for route in old.routes]
        position = next((index for index, route in enumerate(routes) if route in gone), len(routes))
        left = [route for route in routes if route not in gone]
        # In one step, since a server in another thread may be matching a path at this moment.
        routes[:] = [*left[:position], *new.routes, *left[position:]]
        kept = {key: value for key, value in self._registered.items() if value not in replaced}
        self._registered = kept | dict.fromkeys(keys, new)
        served = (each.info for each in self._registered.values())
        self._room_keys = {info.path: route_key(info.path) for info in served if info.kind != "http"}

    def _check_message_size(self, path: str, config: ConnectionConfig) -> None:
        cap = self._message_size_cap
        if cap is not None and config.max_message_size > cap:
            raise ServerError(
                f"max_message_size={config.max_message_size} on {path!r} cannot take effect: the server that runs was "
                f"started for messages of up to {cap} bytes; stop it, register the handler, then call run()"
            )

    # Rooms.

    @property
    def backplane(self) -> Backplane | None:
        """What carries broadcasts to other processes, with its `state` and its `counters`; `None` without one.

        That of the environment variable is there as soon as an event loop serves the app. In worker processes without a
        broker it is one that reaches nobody, and counts what the others do not get.
        """
        return self._rooms.backplane

    def find_backplane(self) -> None:
        """Look for the backplane of the environment now, and not when an event loop serves the app.

        Raises:
            BackplaneError: It names none that can be used.
        """
        self._rooms.find_backplane()

    def carry_rooms(self, backplane: Backplane) -> None:
        """Use `backplane`, before any event loop serves the app."""
        self._rooms.backplane = backplane

    def room(self, name: str) -> Room:
        """Return the room of this name, a group of connections to broadcast to.

        Args:
            name: Any text.

        Raises:
            TypeError: `name` is not a `str`.
            ValueError: `name` is empty.
        """
        return Room(name, self._rooms)

    async def broadcast(self, path: str, data: str | bytes, exclude: Sink | Iterable[Sink] = ()) -> int:
        """Send one message to every connection of a route, as `Room.broadcast` does to the members of a room.

        They are those of a handler, and those that an endpoint of `route` serves by `handle_upgrade`, each from its
        upgrade to its end.

        Args:
            path: The path as it is registered, `"/rooms/{room}"` for instance: all connections of the route. For those
                of one URL let them join a `room`.
            data: The message.
            exclude: Who is not to get it: a sink, or several.

        Returns:
            How many connections of this process have taken it.

        Raises:
            BackplaneError: As `Room.broadcast`.
            RouteError: No connections are served on `path`.
            TypeError: An argument has the wrong type.
            ValueError: As `Room.broadcast`.
        """
        return await self._rooms.broadcast(self._room_key(path), data, exclude)

    def broadcast_nowait(self, path: str, data: str | bytes, exclude: Sink | Iterable[Sink] = ()) -> None:
        """Do what `broadcast` does, from synchronous code of any thread, as `Room.broadcast_nowait` does.

        Args:
            path: The path as it is registered.
            data: The message.
            exclude: Who is not to get it: a sink, or several.

        Raises:
            BackplaneError: As `Room.broadcast`.
            RouteError: No connections are served on `path`.
            TypeError: An argument has the wrong type.
            ValueError: As `Room.broadcast`.
        """
        self._rooms.broadcast_nowait(self._room_key(path), data, exclude)

    def _room_key(self, path: object) -> str:
        if not isinstance(path, str):
            raise TypeError(
                f"broadcast() takes the path of a route first, not {path!r}: write broadcast('/ws', data), or "
                "room(name).broadcast(data)"
            )
        key = self._room_keys.get(path)
        if key is None:
            raise unknown_path(path, self._room_keys)
        return key

    # Serving.

    def run(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        background: bool | None = None,
        workers: int = 1,
        **options: Any,
    ) -> BackgroundServer | None:
        """Serve the app on `host` and `port` until Ctrl-C or SIGTERM, with every `on_disconnect` run at the end.

        Where an event loop runs already (a notebook), the server gets a thread and an event loop of its own, and
        the call returns as soon as it serves; running it again stops that server and starts anew.

        At the top level of a module that is imported, the call does nothing unless `background` is given: a script
        with `ws.run()` in its last line serves when it is started, and is an app when a server imports it
        (`uvicorn script:ws`).

        With `workers` above 1 as many processes share the port. Each imports the script anew, without what stands under
        `if __name__ == "__main__":`, so handlers belong to the top level of a module. One that dies is replaced; all
        end together. `max_connections` counts per process, `max_connections_total` over all of them. With
        `pip install 'wsdeco[cluster]'` and no backplane of your own, rooms reach all of them through a private
        `nats-server`.

        Logging: uvicorn's from level "warning" on, since the addresses are printed; `log_level="info"` shows each
        request and connection as well. Compression (`ws_per_message_deflate=True`) is off: it takes about 34 KiB
        of memory per connection. In the foreground the garbage collector runs less often while it serves
        (`gc.set_threshold`), unless the program has chosen a higher threshold or none.

        Args:
            host: Name or IP address to listen on; `"0.0.0.0"` and `"::"` are all IPv4 and all IPv6 addresses of
                the machine.
            port: TCP port; 0 for any that is free.
            background: Whether to serve in a thread; by default, whether an event loop runs in this one.
            workers: How many processes serve; more than one in the foreground of a script only.
            options: Those of `uvicorn.Config`, such as `ssl_certfile`, `ssl_keyfile`, `log_level`, `access_log`,
                `forwarded_allow_ips` and `root_path`. `timeout_graceful_shutdown` is the seconds that HTTP
                requests, and after them the shutdown part of the lifespan, may take at the end; by default, what
                the `close_timeout` of the routes allows hooks.

        Returns:
            The server in the background, or `None` when the one in the foreground has ended.

        Raises:
            ServerError: The server cannot start (in the background), or serves already (in the foreground).
            SystemExit: The server cannot start (in the foreground): one line on stderr, exit status 1. Or a worker had
                to be killed at the end.
            TypeError: An argument has the wrong type, or an option is unknown or has no meaning here.
            ValueError: An argument is out of its range.
        """
        from wsdeco.server import launch  # noqa: PLC0415 - uvicorn is loaded only where it serves

        if background is None and _is_import(inspect.currentframe()):
            logger.info("run() does nothing while its module is imported, since whoever imports it serves the app")
            return None
        return launch.run(self, host, port, background=background, workers=workers, **options)

    def cap_message_size(self, size: int | None) -> None:
        """Note the largest message that the server takes, in bytes; `None` where none of `run` serves."""
        self._message_size_cap = size

    @property
    def shutdown_time(self) -> float:
        """Seconds that `shut_down` would take at most, with the connections of this moment."""
        return self._context.connections.shutdown_time

    async def shut_down(self) -> None:
        """Close every connection with 1012, refuse new ones, and return when the last `on_disconnect` has run.

        Rooms are let go of as well. Servers do this at their end; call it where one does not. Bounded by the
        `close_timeout` of each route.
        """
        await self._context.connections.shut_down()
        await self._rooms.close()

    @asynccontextmanager
    async def _run_lifespan(self, app: Starlette) -> AsyncGenerator[Any]:
        self._context.connections.open()
        self._rooms.start()
        if not self._limits_announced:
            self._announce_limits()
            if _PROTOCOL_MODULE not in sys.modules:
                self._announce_idle()
        try:
            async with nullcontext() if self._lifespan is None else self._lifespan(app) as state:
                yield state
                await self._context.connections.shut_down()
        finally:
            await self._rooms.close()

    def _announce_limits(self) -> None:
        self._limits_announced = True
        large = [info.path for info in self.route_infos if info.config is not None and self._is_large(info.config)]
        if large:
            logger.warning(
                "max_message_size on %s is above what servers take by default: raise the server's own limit too "
                "(uvicorn: --ws-max-size)",
                ", ".join(large),
            )
        shared = [
            info.path for info in self.route_infos if info.config is not None and info.config.max_connections_total
        ]
        if shared and self._message_size_cap is None:
            logger.warning(
                "max_connections_total on %s counts the connections of this process only, since this server does not "
                "count over several: `wsdeco run app.py --workers 4` does",
                ", ".join(shared),
            )

    def _announce_idle(self) -> None:
        self._idle_announced = True
        idle = [
            info.path for info in self.route_infos if info.config is not None and info.config.idle_timeout is not None
        ]
        if idle:
            logger.warning(
                "idle_timeout on %s counts messages only: this server does not show pings to the app "
                "(uvicorn does with --ws wsdeco.protocol:WebSocketProtocol)",
                ", ".join(idle),
            )

    def _announce_missing_lifespan(self) -> None:
        if self._lifespan is not None:
            logger.warning(
                "the lifespan of this app has not run: nothing runs that of a mounted app, so enter it in the lifespan "
                "of the app around it with `async with ws.app.router.lifespan_context(ws.app): yield`"
            )

    def _is_large(self, config: ConnectionConfig) -> bool:
        return self._message_size_cap is None and config.max_message_size > _SERVERS_MAX_SIZE


def _first_match(routes: Iterable[BaseRoute], scope: Scope) -> tuple[BaseRoute | None, Scope]:
    for route in routes:
        match, child_scope = route.matches(scope)
        if match is Match.FULL:
            return route, child_scope
    return None, {}


def _is_import(frame: FrameType | None) -> bool:
    caller = None if frame is None else frame.f_back
    return (
        caller is not None
        and caller.f_code.co_name == "<module>"
        and caller.f_globals.get("__name__", "__main__") != "__main__"
    )


def _checked_backplane(backplane: object) -> Backplane | None:
    if isinstance(backplane, str):
        return _open_backplane(backplane)
    methods = ("start", "subscribe", "unsubscribe", "publish_nowait", "drained", "close")
    missing = [name for name in methods if not callable(getattr(backplane, name, None))]
    if backplane is not None and missing:
        raise TypeError(
            "backplane must be a URL such as 'nats://127.0.0.1:4222', or an object with the methods of "
            f"wsdeco.Backplane: {type(backplane).__name__} has no {', '.join(missing)}"
        )
    return cast("Backplane | None", backplane)


def _backplane_of_environment() -> Backplane | None:
    url = os.environ.get(BACKPLANE_VARIABLE)
    if not url:
        return None
    try:
        return _open_backplane(url)
    except (BackplaneError, ValueError) as exc:
        raise BackplaneError(f"the environment variable {BACKPLANE_VARIABLE} names no backplane to use: {exc}") from exc


def _open_backplane(url: str) -> Backplane:
    from wsdeco.backplanes import urls  # noqa: PLC0415 - loaded only where there are other processes

    return urls.open_backplane(url)


def _checked_errors(publish_errors: object) -> PublishErrors:
    if publish_errors not in ("count", "raise"):
        raise ValueError(f"publish_errors must be 'count' or 'raise', not {publish_errors!r}")
    return publish_errors


def _check_decorated_path(decorator: str, path: object) -> None:
    if not isinstance(path, str):
        raise RouteError(f"@ws.{decorator} takes the path first, not {path!r}: write @ws.{decorator}('/ws')")
    check_path(path)


def _checked_lifespan(function: object) -> Callable[[Starlette], AbstractAsyncContextManager[Any]]:
    signature = signature_of(function)
    innermost: Any = inspect.unwrap(function) if callable(function) else None
    if not callable(function) or inspect.iscoroutinefunction(innermost) or inspect.isgeneratorfunction(innermost):
        fault = "is no async generator"
    elif signature is not None and not bindable(signature, 1):
        fault = "cannot be called with the app alone"
    else:
        opens: Any = asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function
        return cast("Callable[[Starlette], AbstractAsyncContextManager[Any]]", opens)
    name = getattr(function, "__qualname__", repr(function)).rpartition("<locals>.")[2]
    raise HandlerError(
        f"{name} {fault}, and @ws.lifespan takes an async generator of the app: write `async def {name}(app):` with "
        "one `yield`"
    )


def _kind(routes: list[BaseRoute]) -> Literal["ws", "http", "http+ws"]:
    if len(routes) > 1:
        return "http+ws"
    return "ws" if isinstance(routes[0], WebSocketRoute) else "http"


def _kinds(route: BaseRoute) -> list[str]:
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


ws = App()
"""The default app."""
