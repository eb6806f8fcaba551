"""The ASGI app below `App`: its routes, its rooms, its connections, its lifespan and its shutdown."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from operator import attrgetter
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import ExceptionHandler, Receive, Scope, Send

from wsdeco.backplanes.choice import backplane_of_environment, checked_backplane, checked_errors
from wsdeco.backplanes.interface import Backplane, PublishErrors
from wsdeco.channels.direct import Connection
from wsdeco.channels.extension import extension_of
from wsdeco.clock import Clock
from wsdeco.connection.hosts import Hosts, checked_hosts
from wsdeco.definition.paths import check_path
from wsdeco.reasons import printable
from wsdeco.rooms.rooms import Rooms
from wsdeco.routing.announcements import EMPTY, MISSING_LIFESPAN, announce_idle, announce_limits
from wsdeco.routing.bodies import MAX_BODY_SIZE, BodyLimitingApp
from wsdeco.routing.draining import Draining
from wsdeco.routing.endpoints import Context, HandlerEndpoint
from wsdeco.routing.functions import endpoint_routes
from wsdeco.routing.lifespan import LifespanFunction, checked_lifespan
from wsdeco.routing.not_found import NotFound, checked_docs
from wsdeco.routing.registry import Registered, Registry, RouteInfo, kind_of
from wsdeco.routing.router import IndexedRouter, first_match

__all__ = ["Application", "context_of", "draining_of", "not_found_of", "registry_of", "rooms_of"]

logger: Final = logging.getLogger("wsdeco")

_PROTOCOL_MODULE: Final = "wsdeco.protocol"
"""Loaded before start-up by a server that uses wsdeco's own WebSocket implementation."""


class Application:
    """The ASGI app that a server calls, and that `App` fills.

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
        max_body_size: int | None = MAX_BODY_SIZE,
        docs: str | None = "auto",
        metrics: str | None = None,
        health: str | None = None,
        traces: bool = False,
        allowed_hosts: Iterable[str] = (),
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
                loop serves the app; if there is none, rooms live in this process alone.
            publish_errors: Whether a broadcast that cannot be published to other processes raises `BackplaneError`
                (`"raise"`), or is only counted (`"count"`). Members in this process get it in either case.
            max_body_size: Bytes that the body of an HTTP request may have, else the answer is 413; `None` for any
                number. Starlette counts them from 1.6 on; with an older one there is no limit.
            docs: Path of the console, a page that connects to the handlers, with the AsyncAPI document of the app in
                `asyncapi.json` beside it. `"auto"` is `/docs` if `run` listens on loopback, for browsers of the
                same machine; `None` turns it off. A route of the app's own on that path wins.
            metrics: Path of the numbers of the app as Prometheus text, such as `"/metrics"` (extra `metrics`).
            traces: Trace handshakes, calls of hooks, and broadcasts to other processes through the API of OpenTelemetry
                (extra `otel`). A small echo takes 1.7 times the CPU time if the SDK keeps one trace of a hundred,
                and 3.3 times if it keeps all.
            health: Path that answers 200, and 503 as soon as the app shuts down, such as `"/health"`.
            allowed_hosts: Further names of this machine, without a port, such as `["myapp.test"]`; `["*"]` for every
                name. A server that listens on loopback answers 403 to who reaches it directly under another name than
                `localhost`: DNS rebinding makes the page of any site seem one of its own. A reverse proxy on the same
                machine, whose port is another one, passes on every name.

        Raises:
            BackplaneError: The client library of the backplane is not installed.
            HandlerError: `lifespan` cannot work as it is written.
            ImportError: `metrics` or `traces` needs a library that is not installed.
            RouteError: `docs`, `metrics` or `health` is no path.
            TypeError: `backplane` is neither a URL nor a backplane, or `allowed_hosts` is no list of strings.
            ValueError: The URL of the backplane cannot be used, `publish_errors` is neither, `max_body_size` cannot
                hold, or `allowed_hosts` holds what is no host name.
        """
        self._rooms = Rooms(
            checked_backplane(backplane), checked_errors(publish_errors), backplane_of_environment, clock
        )
        self._context = Context(clock=clock, hosts=Hosts(checked_hosts(allowed_hosts)), census=self._rooms.census)
        self._draining = Draining(self._context)
        self._lifespan = None if lifespan is None else checked_lifespan(lifespan)
        self._limits_announced = False
        self._idle_announced = False
        self.app: BodyLimitingApp = BodyLimitingApp(
            debug=debug, middleware=middleware, exception_handlers=exception_handlers
        )
        self.app.limit_bodies(max_body_size)
        router = self.app.router = IndexedRouter(lifespan=self._run_lifespan)
        self._registry = Registry(router)
        self._not_found = router.default = NotFound(router, self._registry, checked_docs(docs))
        if metrics is not None or health is not None:
            self._add_pages(metrics, health)
        if traces:
            self._trace()

    def _trace(self) -> None:
        from wsdeco.observe.traces import trace_connections  # noqa: PLC0415 - loaded only if it is asked for

        self._rooms.propagator = trace_connections(self._context)

    def _add_pages(self, metrics: str | None, health: str | None) -> None:
        from wsdeco.observe.pages import pages  # noqa: PLC0415 - loaded only if it is asked for

        for path, page in pages(self._context, metrics, health):
            check_path(path)
            self._add_function(path, page)

    def _add_function(
        self, path: str, function: Callable[..., Any], methods: Collection[str] | None = None, name: str | None = None
    ) -> None:
        routes = endpoint_routes(path, function, methods, name, self._context, self._rooms.of_route(path))
        called = getattr(function, "__name__", type(function).__name__)
        self._registry.register(Registered(RouteInfo(path, kind_of(routes), called, None), function, routes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if not self._limits_announced and scope["type"] != "lifespan":
            self._announce_limits()
            if self._lifespan is not None:
                logger.warning(MISSING_LIFESPAN)
        endpoint = None
        if scope["type"] == "websocket":
            if not self._idle_announced and extension_of(scope) is None:
                self._announce_idle()
            endpoint = self._handler_endpoint(scope)
        if endpoint is not None:
            await endpoint(scope, receive, send)
            return
        if self._not_found.on_loopback and scope["type"] == "http":
            refusal = self._context.hosts.refusal(scope)
            if refusal is not None:
                logger.warning("a request was refused: %s", refusal.advice)
                await PlainTextResponse(refusal.phrase, refusal.status)(scope, receive, send)
                return
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            # Servers log what the app raises as an error, with its traceback.
            logger.info(
                "a client left in the middle of its request: %s", printable(f"{scope['method']} {scope['path']}")
            )

    def start_connection(self, scope: Scope, connection: Connection) -> bool:
        """Begin with a connection of wsdeco's own protocol; return whether that could be done without being called.

        The protocol asks before it calls the app, if nothing that wants to see the messages is around it.
        """
        if not self._limits_announced:
            return False
        try:
            endpoint = self._handler_endpoint(scope)
        except Exception as exc:
            # A route that is not ours has raised. The app is called next, raises it again, and the peer gets an answer.
            logger.debug("a route failed to match", exc_info=exc)
            return False
        return endpoint is not None and endpoint.start_connection(scope, connection)

    def _handler_endpoint(self, scope: Scope) -> HandlerEndpoint | None:
        # Between here and the endpoint of a handler Starlette's own layers have nothing to do, and cost most of a
        # handshake and of the memory of a connection.
        if self.app.user_middleware:
            return None
        router = self.app.router
        routes = router.candidates(scope) if isinstance(router, IndexedRouter) else router.routes
        route, child_scope = first_match(routes, scope)
        if not isinstance(route, WebSocketRoute) or not isinstance(route.app, HandlerEndpoint):
            return None
        scope.update(child_scope)
        scope["app"] = self.app
        scope["router"] = router
        return route.app

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes of the Starlette app, which finds the URLs of a mounted app by them."""
        return self.app.routes

    @property
    def route_infos(self) -> list[RouteInfo]:
        """What is registered, in the order in which it is matched."""
        return self._registry.infos()

    @property
    def docs(self) -> str | None:
        """Path of the console, `"auto"`, or `None` for none; it can be set."""
        return self._not_found.docs

    @docs.setter
    def docs(self, docs: str | None) -> None:
        self._not_found.docs = checked_docs(docs)

    @property
    def backplane(self) -> Backplane | None:
        """What carries broadcasts to other processes, with its `state` and its `counters`; `None` without one.

        One that the environment names is there as soon as an event loop serves the app. In worker processes without a
        broker it is one that reaches nobody, and counts what the others do not get.
        """
        return self._rooms.backplane

    @property
    def is_closing(self) -> bool:
        """Whether the app shuts down: every handshake is refused from then on."""
        return self._context.connections.closing

    @property
    def shutdown_time(self) -> float:
        """Seconds that `shut_down` would take at most, with the connections of this moment."""
        return self._context.connections.shutdown_time

    async def drain(self, seconds: float = 0.0, delay: float = 0.0) -> None:
        """Do what comes before `shut_down`: let load balancers notice, warn, and tell the clients one by one.

        From the first moment on, new handshakes get 503 with `Retry-After`, and so do requests for the health of the
        app. The function under `on_drain` is called. When `delay` is over, the clients get 1012 in random order, evenly
        over `seconds`; the reason says when to come back, as in `service restart; retry=7`. `run` does this at its end
        if it has `drain_timeout` or `drain_delay`. Under another server call it before that server ends, in what
        answers the load balancer or the `preStop` hook, for instance: servers close all connections at once.

        Args:
            seconds: How long that takes; with 0 nobody is told before `shut_down`.
            delay: Seconds before it.
        """
        await self._draining.run(seconds, delay)

    async def shut_down(self) -> None:
        """Close every connection with 1012, refuse new ones, and return when the last `on_disconnect` has run.

        What `on_drain` has is called first, unless `drain` has called it.
        Rooms are let go of as well. Servers do this at their end; call it if one does not. Bounded by the
        `close_timeout` of each route.
        """
        await self._end_connections()
        await self._rooms.close()

    async def _end_connections(self) -> None:
        if not self._draining.has_begun:
            await self.drain()
        await self._context.connections.shut_down()

    @asynccontextmanager
    async def _run_lifespan(self, app: Starlette) -> AsyncGenerator[Any]:
        self._context.connections.open()
        self._draining.has_begun = False
        self._rooms.start()
        if not self._limits_announced:
            self._announce_limits()
            if _PROTOCOL_MODULE not in sys.modules:
                self._announce_idle()
        try:
            async with nullcontext() if self._lifespan is None else self._lifespan(app) as state:
                if not self.app.routes:
                    logger.warning(EMPTY)
                yield state
                await self._end_connections()
        finally:
            await self._rooms.close()

    def _announce_limits(self) -> None:
        self._limits_announced = True
        if self._registry.message_size_cap is None:
            announce_limits(self.route_infos)

    def _announce_idle(self) -> None:
        self._idle_announced = True
        announce_idle(self.route_infos)


# What a server asks of an application, and a user need not see.


context_of: Final[Callable[[Application], Context]] = attrgetter("_context")
"""Returns what its endpoints share, which takes an observer of all connections."""

draining_of: Final[Callable[[Application], Draining]] = attrgetter("_draining")
"""Returns what drains the connections."""

registry_of: Final[Callable[[Application], Registry]] = attrgetter("_registry")
"""Returns what is registered, whose `message_size_cap` a server sets."""

not_found_of: Final[Callable[[Application], NotFound]] = attrgetter("_not_found")
"""Returns what answers if no route matches, which a server tells that it listens on loopback."""

rooms_of: Final[Callable[[Application], Rooms]] = attrgetter("_rooms")
"""Returns the rooms, whose backplane a server may choose."""
