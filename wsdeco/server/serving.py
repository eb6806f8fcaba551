"""One uvicorn server whose end is bounded in time, whatever its hooks do, and which is the only one of its app."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from operator import call
from typing import Any, Final, Protocol, cast

import uvicorn

from wsdeco.clock import running_loop, whole_seconds
from wsdeco.config import DEFAULT_CONFIG
from wsdeco.origins import is_loopback
from wsdeco.reasons import ServerError
from wsdeco.routing.application import Application, context_of, draining_of, not_found_of, registry_of
from wsdeco.routing.lifespan import WarningFunction
from wsdeco.server.descriptors import Descriptors
from wsdeco.server.listen import Listeners, inherit, inherit_activated, listen, listen_on
from wsdeco.server.neighbours import Neighbours
from wsdeco.server.own import OwnOptions
from wsdeco.server.proxies import trust_local_peers
from wsdeco.server.threads import HookThreads

__all__ = [
    "ANYIO_THREAD",
    "LEFTOVERS",
    "MARGIN",
    "POLLING",
    "TLS_TIMEOUT",
    "Parent",
    "Server",
    "join_threads",
    "server_of",
]

logger: Final = logging.getLogger("wsdeco")

LEFTOVERS: Final = 1.0
"""Seconds that cancelled tasks, generators and threads of hooks get, each in turn, after everything else."""

MARGIN: Final = 1.0
"""Seconds that an end may take beyond the sum of its deadlines."""

POLLING: Final = 0.5
"""Seconds that uvicorn's shutdown spends between its steps, whose ends it polls for."""

_UNANSWERED: Final = 0.2
"""Seconds for the closing handshakes if the caller blocks an event loop, which clients may be in."""

TLS_TIMEOUT: Final = 10.0
"""Seconds for the TLS handshake: as many as for the head of a request, whose deadline it is a part of."""

_ARRIVING: Final = 0.25
"""Seconds in which the handshakes of connections arrive that have been accepted already."""

_TICK: Final = 0.1
"""Seconds between two ticks, as in uvicorn's loop."""

_ACCEPTED_AT_ONCE: Final = 64
"""Connections that asyncio accepts without a turn for those it has.

Without a descriptor left (`wsdeco.server.descriptors`) it accepts again after a second at the earliest
(asyncio.constants.ACCEPT_RETRY_DELAY, of the whole process, so not ours to change); uvloop does at once.
"""

ANYIO_THREAD: Final = "AnyIO worker thread"
"""Name of the threads in which Starlette runs endpoints that are plain functions."""

_serving: Final[dict[Application, Server]] = {}
_serving_lock: Final = threading.Lock()


class Parent(Protocol):
    """What a worker process knows of its parent.

    Attributes:
        listeners: The sockets that the parent has opened.
    """

    listeners: Listeners

    def obey(self, server: Server, end: Callable[[], None]) -> None:
        """Do what the parent says, from now on, in a thread; `end` ends the server."""

    async def warn(self, function: WarningFunction) -> None:
        """Call what warns the clients of the app, unless another worker does it for all."""

    def ready(self) -> None:
        """Tell that the worker serves."""

    def ending(self, seconds: float) -> None:
        """Tell that the worker ends, and how long that may take."""


class Server(uvicorn.Server):
    """A uvicorn server for one app.

    Attributes:
        app: The app.
        listeners: Where it listens, or will.
        own: The options that uvicorn does not have.
        thread: The thread whose event loop serves.
        loop: That event loop; `None` before it is made.
        on_start: Called in that thread as soon as it serves.
        ticks: Each is called in that thread ten times a second.
        parent: The parent of this worker process, which gets the signals of the terminal; `None` if it is none.
        is_replaced: Another process has taken its place, and the clients; set before its end is asked for.
        ended: Set when it has ended, or could not start.
        should_exit: Whether its end has been asked for, as of every server of uvicorn.
        servers: What accepts connections, likewise.
        descriptors: What says that no file descriptor is left for clients.
    """

    should_exit: bool
    servers: list[asyncio.Server]

    def __init__(self, app: Application, config: uvicorn.Config, own: OwnOptions | None = None) -> None:
        super().__init__(config)
        self.app = app
        self.listeners: Listeners = Listeners(config.host, config.port, [])
        self.own: OwnOptions = own or OwnOptions()
        self.thread: threading.Thread = threading.current_thread()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.on_start: Callable[[], None] = lambda: None
        self.ticks: list[Callable[[], None]] = []
        self.parent: Parent | None = None
        self.is_replaced = False
        self.ended: threading.Event = threading.Event()
        self._grace = config.timeout_graceful_shutdown
        self.descriptors: Descriptors = Descriptors()
        self._neighbours = Neighbours([], asyncio.Protocol, {}, self.descriptors)

    @property
    def http_url(self) -> str:
        """The address of plain HTTP requests."""
        return self.listeners.url("https" if self.config.is_ssl else "http")

    @property
    def ws_url(self) -> str:
        """The address of WebSocket connections."""
        return self.listeners.url("wss" if self.config.is_ssl else "ws")

    @property
    def thread_prefix(self) -> str:
        """How the names of the threads begin in which hooks run what blocks, as with `asyncio.to_thread`."""
        return f"wsdeco-{self.listeners.path or self.listeners.port}-worker"

    @property
    def grace(self) -> float:
        """Seconds that requests in progress, and then the shutdown part of the lifespan, get at the end."""
        if self._grace is not None:
            return self._grace
        configs = [info.config for info in self.app.route_infos if info.config is not None]
        if len(self.app.app.routes) > len(configs):
            # Functions and mounted apps: what connections they may accept is not known.
            configs.append(DEFAULT_CONFIG)
        return 2 * (max((config.close_timeout for config in configs), default=0.0) + MARGIN)

    @property
    def time_to_end(self) -> float:
        """Seconds in which the server ends, unless something blocks its event loop."""
        connections, grace = self.app.shutdown_time, self.grace
        drain = draining_of(self.app).time(self.own.drain_timeout, self.own.drain_delay)
        return drain + whole_seconds(max(connections, grace)) + grace + POLLING + 3 * LEFTOVERS + MARGIN

    def listen(self, processes: int = 1) -> None:
        """Open the sockets, or take over those that another program has opened.

        Args:
            processes: How many processes are to accept clients.

        Raises:
            ServerError: That is not possible.
        """
        own, config = self.own, self.config
        if own.uds is not None:
            self.listeners = listen_on(own.uds, own.permissions, config.backlog)
        elif own.fd is not None:
            self.listeners = inherit(own.fd)
        else:
            self.listeners = inherit_activated() or listen(config.host, config.port, config.backlog, processes)
        self._note_place()

    def _note_place(self) -> None:
        if _serving.get(self.app) is not self:
            # Another one serves still, and may go on.
            return
        if self.listeners.sockets:
            on_loopback = self.listeners.are_on_loopback
        else:
            on_loopback = self.own.uds is None and is_loopback(self.config.host.lower())
        not_found_of(self.app).on_loopback = on_loopback

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve in a new event loop of this thread until the end.

        Raises:
            ServerError: The start-up part of the lifespan has failed.
        """
        loop = self.loop = _new_event_loop(self.config.loop)
        loop.set_exception_handler(self.descriptors.take_exception)
        threads = HookThreads(self.thread_prefix)
        loop.set_default_executor(threads)
        try:
            self._serve_in(loop, self.listeners.sockets if sockets is None else sockets)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            loop.close()

    def _serve_in(self, loop: asyncio.AbstractEventLoop, sockets: list[socket.socket]) -> None:
        serving = loop.create_task(self.serve(sockets))
        try:
            loop.run_until_complete(serving)
        except (SystemExit, KeyboardInterrupt):
            # A task asks for the end of the process. The connections end first.
            self.should_exit = True
            loop.run_until_complete(serving)
            raise
        finally:
            loop.run_until_complete(_end_tasks())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Run the start-up part of the lifespan, then accept connections."""
        config = self.config
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise ServerError("the lifespan of the app has failed, as the log says")
        protocol = partial(
            cast("Callable[..., asyncio.Protocol]", config.http_protocol_class),
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        loop = asyncio.get_running_loop()
        self._note_place()
        if self.listeners.are_local:
            trust_local_peers(config)
        tls: dict[str, Any] = {}
        if config.ssl is not None:
            # uvicorn leaves the default of asyncio, a minute.
            tls = {"ssl": config.ssl, "ssl_handshake_timeout": TLS_TIMEOUT}
        self.servers = []
        for listener in sockets or ():
            # As often as this asyncio goes on accepting, and reports each failure, when no descriptor is left.
            at_once = min(config.backlog, _ACCEPTED_AT_ONCE)
            self.servers.append(await loop.create_server(protocol, sock=listener, backlog=at_once, **tls))
            listener.listen(config.backlog)
        self._neighbours = Neighbours(self.listeners.others, protocol, tls, self.descriptors)
        self.started = True
        self.on_start()

    async def on_tick(self, counter: int) -> bool:
        """Do what has to be done now and then; return whether to end."""
        self.descriptors.look()
        self._neighbours.look()
        for tick in self.ticks:
            try:
                tick()
            except Exception:
                # A tick that fails must not end the connections.
                logger.exception("what is done now and then has failed: %s", tick)
        return await super().on_tick(counter)

    async def main_loop(self) -> None:
        """Serve until the end is asked for, then drain; what has to be done now and then is done meanwhile."""
        await super().main_loop()
        delay = self.own.drain_delay
        if self.is_replaced:
            # Other processes accept from now on; this one answers what it has accepted already.
            delay = _ARRIVING
            self._stop_accepting()
        warn = call if self.parent is None else self.parent.warn
        draining = draining_of(self.app)
        drain = asyncio.create_task(
            draining.run(self.own.drain_timeout, delay, is_replaced=self.is_replaced, warn=warn)
        )
        counter = 0
        while not (await asyncio.wait((drain,), timeout=_TICK))[0]:
            counter += 1
            await self.on_tick(counter)
        await drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the connections of the app, then requests in progress and other connections, then the lifespan."""
        loop = asyncio.get_running_loop()
        grace = self.grace
        grace_over = loop.time() + grace
        self.listeners.refuse()
        self._stop_accepting()
        await self.app.shut_down()
        # 0 would cut off what is about to end by itself.
        self.config.timeout_graceful_shutdown = whole_seconds(grace_over - loop.time())
        patience = asyncio.timeout(self.config.timeout_graceful_shutdown + grace + POLLING)
        with suppress(TimeoutError):
            async with patience:
                await super().shutdown(sockets)
        if patience.expired():
            logger.error("the lifespan has not ended within %g s and is cancelled", grace)

    def _stop_accepting(self) -> None:
        self._neighbours.close()
        for server in self.servers:
            server.close()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone: `foreground` handles those of the main thread, and other threads get none."""
        yield

    @contextmanager
    def claimed(self) -> Generator[None]:
        """Be the one server of the app in the block, after the end of the one before; behind it close the sockets.

        Raises:
            ServerError: That one serves in the foreground, or does not end.
        """
        try:
            self._claim()
            yield
        finally:
            self._release()

    def _claim(self) -> None:
        while True:
            with _serving_lock:
                current = _serving.setdefault(self.app, self)
                if current is self:
                    registry_of(self.app).message_size_cap = self.config.ws_max_size
                    self._note_place()
                    return
            current.check_replaceable()
            current.end()

    def _release(self) -> None:
        self.listeners.remove()
        with _serving_lock:
            if _serving.get(self.app) is self:
                del _serving[self.app]
                registry_of(self.app).message_size_cap = None
                not_found_of(self.app).on_loopback = False
        self.ended.set()

    def check_replaceable(self) -> None:
        """Refuse to make way for another server of the same app.

        Raises:
            ServerError: It serves in the foreground, or the caller is one of its hooks.
        """
        if self.thread is threading.main_thread():
            raise ServerError(
                f"this app is served at {self.http_url} already: end that server first (Ctrl-C), or serve another App()"
            )
        self._check_caller()

    def _check_caller(self) -> None:
        if threading.current_thread() is self.thread:
            raise ServerError(
                f"a hook cannot stop or restart the server at {self.http_url}, since that waits for the hook: "
                "do it from another thread"
            )

    def end(self, timeout: float | None = None) -> None:
        """End the server, from another thread; return when it has ended.

        Raises:
            ServerError: It has not ended in time, or the caller is one of its hooks.
        """
        self._check_caller()
        if running_loop() is not None:
            # Clients in that loop, which waits here, cannot answer.
            context_of(self.app).connections.closing_time = _UNANSWERED
        self.should_exit = True
        limit = self.time_to_end if timeout is None else timeout
        if not self.ended.wait(limit):
            raise ServerError(
                f"the server at {self.http_url} has not ended within {limit:g} s; if it does not, a hook blocks its "
                "event loop: use `await asyncio.sleep(...)`, or `await asyncio.to_thread(...)` for what blocks"
            )


def server_of(app: Application) -> Server | None:
    """Return the server of `app` in this process, if there is one."""
    return _serving.get(app)


def _new_event_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind != "asyncio":
        with suppress(ImportError):
            import uvloop  # noqa: PLC0415 - not on every platform

            return uvloop.new_event_loop()
    return asyncio.new_event_loop()


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=LEFTOVERS)
        if left:
            logger.error("%d tasks ignore cancellation and are given up", len(left))
    closing = asyncio.create_task(asyncio.get_running_loop().shutdown_asyncgens())
    await asyncio.wait((closing,), timeout=LEFTOVERS)


def join_threads(*names: str) -> list[str]:
    """Wait a moment for the threads whose names begin with one of `names`; return which still run."""
    end = time.monotonic() + LEFTOVERS
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(names)]
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    return [thread.name for thread in threads if thread.is_alive()]
