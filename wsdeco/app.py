"""`App`: what the decorators fill and `run` serves. `ws` is the one most programs need."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from typing_extensions import Unpack

from wsdeco.channels.data import Outgoing
from wsdeco.channels.sink import Sink
from wsdeco.config import ConnectionConfig, Limits, make_config
from wsdeco.definition.factory import HandlerFactory, build_factory
from wsdeco.definition.faults import name_of
from wsdeco.definition.paths import check_path, unknown_path
from wsdeco.definition.plan import plan_of
from wsdeco.reasons import RouteError
from wsdeco.rooms.room import Room
from wsdeco.routing.application import Application
from wsdeco.routing.asked import refuse_as_app
from wsdeco.routing.endpoints import HandlerEndpoint
from wsdeco.routing.lifespan import DecoratedLifespan, DecoratedWarning, checked_lifespan, checked_warning
from wsdeco.routing.registry import Registered, RouteInfo, full_name
from wsdeco.routing.routes import SocketRoute

if TYPE_CHECKING:
    from wsdeco.launch import BackgroundServer
    from wsdeco.observe.connections import ConnectionInfo
    from wsdeco.observe.numbers import Stats

__all__ = ["App", "RouteInfo", "ws"]

logger: Final = logging.getLogger("wsdeco")

HandlerClass = TypeVar("HandlerClass", bound=type)
EndpointFunction = TypeVar("EndpointFunction", bound=Callable[..., Any])


class App(Application):
    """Collects handlers and routes in one ASGI app.

    An `App` is an ASGI app itself (`uvicorn module:ws`) and can be mounted in another one. The Starlette app inside
    it is `app`, for middleware and whatever else Starlette offers.

    Attributes:
        app: The Starlette app.
    """

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
            ServerError: The command line names the class as the ASGI app to serve.
            TypeError: An argument has the wrong type, or a keyword names no limit.
            ValueError: A limit is out of its range.
        """
        check_path(path, "@ws.handler('/ws')")
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
        reloaded module or a notebook cell that runs again needs it. Instances that serve connections become instances
        of the new class, if their layout allows that: they keep their attributes, `__init__` is not called again, the
        next message runs the new code, and limits stay as they were when the connection began.

        Args:
            path: A Starlette path.
            cls: The handler class.
            config: The limits.
            factory: Builds the instances, as for `handler`.
            limits: Fields of `ConnectionConfig` by keyword, on top of `config`.

        Raises:
            HandlerError: The class or the factory cannot work as it is written; all faults at once.
            RouteError: The path cannot be routed, or something else is registered there.
            ServerError: The server runs already and was started for smaller messages, or the command line names the
                class as the ASGI app to serve.
            TypeError: An argument has the wrong type, or a keyword names no limit.
            ValueError: A limit is out of its range.
        """
        refuse_as_app(cls, self)
        checked = make_config(config, limits)
        check_path(path)
        built = build_factory(cls, path, factory)
        self._rooms.broadcasts.messages.learn(path, plan_of(cls, checked.codec).dialogue)
        name = name_of(cls)
        endpoint = HandlerEndpoint(built, checked, name, path, self._context, self._rooms.of_route(path))
        route = SocketRoute(path, endpoint, name=cls.__name__)
        for old in self._registry.register(Registered(RouteInfo(path, "ws", name, checked), cls, [route])):
            if full_name(old.target) == full_name(cls) and len(self._context.connections):
                from wsdeco.routing.redefinition import redefine  # noqa: PLC0415 - a reload, or a cell that runs again

                redefine(self._context.connections, endpoint, cast(type, old.target), cls)

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
            ServerError: The command line names the function as the ASGI app to serve.
            TypeError: `methods` is not a list of HTTP methods.
        """
        check_path(path, "@ws.route('/ws')")

        def register(endpoint: EndpointFunction) -> EndpointFunction:
            refuse_as_app(endpoint, self)
            self._add_function(path, endpoint, methods, name)
            return endpoint

        return register

    def lifespan(self, function: DecoratedLifespan) -> DecoratedLifespan:
        """Decorate the start-up and shutdown of the app: an async generator of the Starlette app that yields once.

        What it yields (a mapping, or nothing) becomes the `state` of every request. The part behind the `yield`
        runs after the last `on_disconnect`. A function that returns an async context manager will do as well.

        Raises:
            HandlerError: The function is neither, or cannot be called with the app alone.
        """
        self._lifespan = checked_lifespan(function)
        return function

    def on_drain(self, function: DecoratedWarning) -> DecoratedWarning:
        """Decorate an async function that is called first when the app ends, to warn rooms for instance.

        No handshake is let in any more, and all connections are open still. It may take 5 seconds beyond the
        `drain_delay` of `run`. Servers that close the connections before the end of the lifespan, as uvicorn does, call
        it afterwards: see `drain`. Of several workers whose rooms are one, one calls it, and the others wait for it;
        without a backplane each does. A worker that is replaced does not call it, since the app goes on.

        Raises:
            HandlerError: The function is not async, or cannot be called without arguments.
        """
        self._draining.on_drain = checked_warning(function)
        return function

    # Rooms.

    def room(self, name: str) -> Room:
        """Return the room of this name, a group of connections to broadcast to.

        Args:
            name: Any text of up to 1 KiB in UTF-8, but no path of a route, whose connections `broadcast` reaches.

        Raises:
            RouteError: `name` is the path of a route.
            TypeError: `name` is not a `str`.
            ValueError: `name` is empty, or too long. In `on_connect` that is a 500, as any exception: if peers
                choose the name, `raise HTTPException(404)` before.
        """
        room = Room(name, self._rooms)
        if name in self._registry.room_keys:
            raise RouteError(
                f"the connections of the route {name!r} are in no room of this name: write "
                f"ws.broadcast({name!r}, data), or give the room another name"
            )
        return room

    async def broadcast(self, path: str, data: Outgoing, exclude: Sink | Iterable[Sink] = ()) -> int:
        """Send one message to every connection of a route, as `Room.broadcast` does to the members of a room.

        They are those of a handler, and those that an endpoint of `route` serves by `handle_upgrade`, each from its
        upgrade to its end.

        Args:
            path: The path as it is registered, `"/rooms/{room}"` for instance: all connections of the route. For those
                of one URL let them join a `room`.
            data: The message: `str`, `bytes`, or what the handler writes, if it has messages with types.
            exclude: Who is not to get it: a sink, or several.

        Returns:
            How many connections of this process have taken it.

        Raises:
            BackplaneError: As `Room.broadcast`.
            RouteError: No connections are served on `path`.
            TypeError: An argument has the wrong type.
            ValueError: As `Room.broadcast`.
        """
        return await self._rooms.broadcasts.send(self._room_key(path), data, exclude)

    def broadcast_nowait(self, path: str, data: Outgoing, exclude: Sink | Iterable[Sink] = ()) -> None:
        """Do what `broadcast` does, from synchronous code of any thread, as `Room.broadcast_nowait` does.

        Args:
            path: The path as it is registered.
            data: The message: `str`, `bytes`, or what the handler writes, if it has messages with types.
            exclude: Who is not to get it: a sink, or several.

        Raises:
            BackplaneError: As `Room.broadcast`.
            RouteError: No connections are served on `path`.
            TypeError: An argument has the wrong type.
            ValueError: As `Room.broadcast`.
        """
        self._rooms.broadcasts.send_nowait(self._room_key(path), data, exclude)

    def _room_key(self, path: object) -> str:
        if not isinstance(path, str):
            raise TypeError(
                f"the path of a route comes first, not {path!r}: write broadcast('/ws', data), connections('/ws'), or "
                "room(name).broadcast(data)"
            )
        key = self._registry.room_keys.get(path)
        if key is None:
            raise unknown_path(path, self._registry.room_keys)
        return key

    # Serving.

    def stats(self) -> Stats:
        """Return the numbers of the app at this moment: connections, messages, refusals, failures; from any thread.

        In each worker process of `run` they are those of all workers: of this one as they are, of the others as they
        were a second ago. What a worker has counted stays when it ends. On Windows each has its own.
        They are counted from the start of `run` on; elsewhere from the first call on, or by `App(metrics=...)`. What
        waits, and how long hooks take, is measured from the first call on, or by `App(metrics=...)`, in either case: of
        the CPU time of a small echo counting takes 3 percent, and measuring 10 more.
        """
        from wsdeco.observe.numbers import numbers_of  # noqa: PLC0415 - loaded only if it is asked for

        numbers = numbers_of(self._context)
        numbers.is_detailed = True
        return numbers.taken()

    def connections(self, path: str | None = None) -> list[ConnectionInfo]:
        """Return the connections of this process that are open, with what is known of each; from any thread.

        Their messages are counted as those of `stats`, and round trips are measured from the first call on.

        Args:
            path: The path of a route as it is registered, for its connections alone.

        Raises:
            RouteError: No connections are served on `path`.
            TypeError: `path` is not a `str`.
        """
        from wsdeco.observe.connections import open_connections  # noqa: PLC0415 - loaded only if it is asked for

        return open_connections(self._context, None if path is None else self._room_key(path))

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

        If an event loop runs already (a notebook), the server gets a thread and an event loop of its own, and
        the call returns as soon as it serves; running it again stops that server and starts anew.

        At the top level of a module that is imported, the call does nothing unless `background` is given: a script
        with `ws.run()` in its last line serves when it is started, and is an app when a server imports it
        (`uvicorn script:ws`).

        With `workers` above 1 as many processes share the port. Each imports the script anew, without what stands under
        `if __name__ == "__main__":`, so handlers belong to the top level of a module. One that dies is replaced; all
        end together. `max_connections` counts per process, `max_connections_total` over all of them. With
        `pip install 'wsdeco[cluster]'` and no backplane of your own, rooms reach all of them through a private
        `nats-server`. SIGHUP replaces them one by one with the code of the moment: the new one serves before the old
        one drains, and one that cannot start leaves the old one in place. `worker_timeout` is the seconds after which
        one whose event loop hangs is replaced, `max_connections_per_worker` the connections after which each is; by
        default there is neither. In a program packed by PyInstaller each worker is that program, started again: if it
        reads `sys.argv`, call `multiprocessing.freeze_support()` between the handlers and that. `reload=True` does the
        same as soon as a Python file below the current folder changes (extra `reload`), in one process or several.

        Logging: uvicorn's and wsdeco's from level "warning" on, since the addresses are printed, and a line for each
        connection that is accepted, ends or is refused (logger `wsdeco.access`; `access_log=False` turns it off).
        `log_level="info"` shows HTTP requests as well, `log_format="json"` prints one JSON object a line. A program
        that has configured Python's logging before keeps its handlers. Compression is off unless a
        handler has `compression=True`: it takes 38 to 51 KiB of memory per connection. In the foreground, on Linux, the
        garbage collector runs less often while it serves, unless the program has chosen a higher
        threshold or none.

        Args:
            host: Name or IP address to listen on; `"0.0.0.0"` and `"::"` are all IPv4 and all IPv6 addresses of
                the machine.
            port: TCP port; 0 for any that is free.
            background: Whether to serve in a thread; by default, whether an event loop runs in this one.
            workers: How many processes serve; more than one in the foreground of a script only.
            options: `uds` is the path of a Unix socket to listen on, in the place of `host` and `port`. Its file has
                the permissions `uds_permissions`, by default 0o660 (user and group), takes the place of one that a
                killed server has left, and is removed at the end. X-Forwarded-* of who connects there is trusted,
                unless `proxy_headers=False`. `fd` is the descriptor of a socket that another program has opened; those
                that systemd opens (sd_listen_fds(3)) are served without it, in the place of `host` and `port`.

                The others are those of `uvicorn.Config`, such as `ssl_certfile`, `ssl_keyfile`, `log_level`,
                `access_log`, `forwarded_allow_ips` and `root_path`. With `ssl_ca_certs` clients have to show a
                certificate, unless `ssl_cert_reqs` says otherwise. `timeout_graceful_shutdown` is the seconds that HTTP
                requests, and after them the shutdown part of the lifespan, may take at the end; by default, what the
                `close_timeout` of the routes allows hooks. `drain_timeout` is the seconds over which a server that ends
                tells its clients so (1012), in random order, so that they do not all come back at once; the reason says
                when to, as in `service restart; retry=7`. In the `drain_delay` seconds before that it answers, but
                refuses handshakes with 503 and `Retry-After`, so that a load balancer notices. Both are 0 by default.

        Returns:
            The server in the background, or `None` when the one in the foreground has ended.

        Raises:
            ServerError: The server cannot start (in the background), or serves already (in the foreground).
            SystemExit: The server cannot start (in the foreground): one line on stderr, exit status 1. Or a worker had
                to be killed at the end.
            TypeError: An argument has the wrong type, or an option is unknown or has no meaning here.
            ValueError: An argument is out of its range.
        """
        if background is None and _is_import(inspect.currentframe()):
            logger.info("run() does nothing while its module is imported, since whoever imports it serves the app")
            return None
        served: BackgroundServer | None = _launch().run(
            self, host, port, background=background, workers=workers, **options
        )
        return served

    async def serve(self, host: str = "127.0.0.1", port: int = 8000, **options: Any) -> None:
        """Serve the app in the running event loop, until the task is cancelled or `shut_down` is called.

        Hooks run in this loop, and share its queues, events and connections with the other tasks of the program:
        `asyncio.run(ws.serve(port=8000))`, or `group.create_task(ws.serve())` beside others. At the end every client
        gets 1012, and every `on_disconnect` runs. Without a file descriptor left it says so once a minute, as `run`
        does: until it ends, the exception handler of the loop is one that passes on all other reports.

        Args:
            host: As for `run`.
            port: As for `run`.
            options: As for `run`, but for `background`, `loop` and `workers`.

        Raises:
            ServerError: The server cannot start.
            TypeError: An argument has the wrong type, or an option is unknown or has no meaning here.
            ValueError: An argument is out of its range.
        """
        await _launch().serve(self, host, port, **options)


def _launch() -> ModuleType:
    from wsdeco import launch  # noqa: PLC0415 - uvicorn is loaded only if it serves

    return launch


def _is_import(frame: FrameType | None) -> bool:
    caller = None if frame is None else frame.f_back
    return (
        caller is not None
        and caller.f_code.co_name == "<module>"
        and caller.f_globals.get("__name__", "__main__") != "__main__"
    )


ws: Final = App()
"""The default app."""
