"""One uvicorn server whose end is bounded in time, whatever its hooks do, and the signals that end it."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import logging
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

import uvicorn

from wsdeco.app import App
from wsdeco.config import DEFAULT_CONFIG
from wsdeco.listen import Listeners, listen
from wsdeco.reasons import ServerError

__all__ = [
    "ANYIO_WORKER",
    "ENDING_SIGNALS",
    "Server",
    "collect_garbage_rarely",
    "end_on_signals",
    "end_process",
    "join_workers",
    "say",
]

logger = logging.getLogger("wsdeco")

_LEFTOVERS: Final = 1.0
"""Seconds that cancelled tasks, generators and threads of hooks get, each in turn, after everything else."""

_MARGIN: Final = 1.0
"""Seconds that an end may take beyond the sum of its deadlines."""

_POLLING: Final = 0.5
"""Seconds that uvicorn's shutdown spends between its steps, whose ends it polls for."""

_NOTICE: Final = 1.0
"""Seconds after which an end that a signal has begun says why the process is still there."""

_REPEAT: Final = 0.3
"""Seconds in which a second signal is the same as the first."""

_ACCEPTED_AT_ONCE: Final = 64
"""Connections that asyncio accepts without a turn for those it has."""

_FLUSH: Final = 0.5
"""Seconds that buffered output gets when the process is ended by force."""

_YOUNGEST: Final = 20_000
"""Objects made and not gone after which the garbage collector has a look."""

_STDERR: Final = 2
"""The descriptor of standard error."""

ENDING_SIGNALS: Final[list[signal.Signals]] = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
]
"""What ends a server: Ctrl-C, `kill`, and Ctrl-Break on Windows."""

ANYIO_WORKER: Final = "AnyIO worker thread"
"""Name of the threads in which Starlette runs endpoints that are plain functions."""


class Server(uvicorn.Server):
    """A uvicorn server for one app.

    Attributes:
        app: The app.
        listeners: Where it listens, or will.
        thread: The thread whose event loop serves.
        on_start: Called in that thread as soon as it serves.
        on_end: Called in another one when a signal has begun its end, with the seconds that may take at most.
        ended: Set when it has ended, or could not start.
    """

    def __init__(self, app: App, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.app = app
        self.listeners = Listeners(config.host, config.port, [])
        self.thread = threading.current_thread()
        self.on_start: Callable[[], None] = lambda: None
        self.on_end: Callable[[float], None] | None = None
        self.ended = threading.Event()
        self._grace = config.timeout_graceful_shutdown

    @property
    def http_url(self) -> str:
        """The address of plain HTTP requests."""
        return f"http{self._address}"

    @property
    def ws_url(self) -> str:
        """The address of WebSocket connections."""
        return f"ws{self._address}"

    @property
    def _address(self) -> str:
        return f"{'s' if self.config.is_ssl else ''}://{self.listeners.host}:{self.listeners.port}"

    @property
    def worker_name(self) -> str:
        """How the names of the threads begin in which hooks run what blocks, as with `asyncio.to_thread`."""
        return f"wsdeco-{self.listeners.port}-worker"

    @property
    def grace(self) -> float:
        """Seconds that requests in progress, and then the shutdown part of the lifespan, get at the end."""
        if self._grace is not None:
            return self._grace
        configs = [info.config for info in self.app.route_infos if info.config is not None]
        if len(self.app.app.routes) > len(configs):
            # Functions and mounted apps: what connections they may accept is not known.
            configs.append(DEFAULT_CONFIG)
        return 2 * (max((config.close_timeout for config in configs), default=0.0) + _MARGIN)

    @property
    def time_to_end(self) -> float:
        """Seconds in which the server ends, unless something blocks its event loop."""
        connections, grace = self.app.shutdown_time, self.grace
        return _whole_seconds(max(connections, grace)) + grace + _POLLING + 3 * _LEFTOVERS + _MARGIN

    def listen(self) -> None:
        """Open the sockets.

        Raises:
            ServerError: That is not possible.
        """
        self.listeners = listen(self.config.host, self.config.port, self.config.backlog)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve in a new event loop of this thread until the end.

        Raises:
            ServerError: The start-up part of the lifespan has failed.
        """
        loop = _new_event_loop(self.config.loop)
        workers = ThreadPoolExecutor(thread_name_prefix=self.worker_name)
        loop.set_default_executor(workers)
        try:
            self._serve_in(loop, self.listeners.sockets if sockets is None else sockets)
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
            loop.close()

    def _serve_in(self, loop: asyncio.AbstractEventLoop, sockets: list[socket.socket]) -> None:
        serving = loop.create_task(self.serve(sockets))
        try:
            loop.run_until_complete(serving)
        except (SystemExit, KeyboardInterrupt):
            # Another task asks for the end of the process: that comes after the end of the connections.
            self.should_exit = True
            loop.run_until_complete(serving)
            raise
        finally:
            loop.run_until_complete(_end_tasks())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Run the start-up part of the lifespan, then accept connections."""
        backlog = self.config.backlog
        # As often as this asyncio goes on accepting, and reports each failure, when no descriptor is left.
        self.config.backlog = min(backlog, _ACCEPTED_AT_ONCE)
        try:
            await super().startup(sockets)
        except SystemExit:
            raise ServerError("the lifespan of the app has failed, as the log says") from None
        for listener in sockets or ():
            listener.listen(backlog)
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the connections of the app, then requests in progress and other connections, then the lifespan."""
        loop = asyncio.get_running_loop()
        grace = self.grace
        grace_over = loop.time() + grace
        for server in self.servers:
            server.close()
        await self.app.shut_down()
        self.config.timeout_graceful_shutdown = _whole_seconds(grace_over - loop.time())
        patience = asyncio.timeout(self.config.timeout_graceful_shutdown + grace + _POLLING)
        with suppress(TimeoutError):
            async with patience:
                await super().shutdown(sockets)
        if patience.expired():
            logger.error("the lifespan has not ended within %g s and is cancelled", grace)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone: `end_on_signals` is there from before the start until after the end."""
        yield

    def check_replaceable(self) -> None:
        """Refuse to make way for another server of the same app.

        Raises:
            ServerError: It serves in the foreground.
        """
        if self.thread is threading.main_thread():
            raise ServerError(
                f"this app is served at {self.http_url} already: end that server first (Ctrl-C), or serve another App()"
            )

    def end(self, timeout: float | None = None) -> None:
        """End the server, from another thread; return when it has ended.

        Raises:
            ServerError: It has not ended in time, or the caller is one of its hooks.
        """
        if threading.current_thread() is self.thread:
            raise ServerError(
                f"a hook cannot stop or restart the server at {self.http_url}, since that waits for the hook: "
                "do it from another thread"
            )
        self.should_exit = True
        limit = self.time_to_end if timeout is None else timeout
        if not self.ended.wait(limit):
            raise ServerError(
                f"the server at {self.http_url} has not ended within {limit:g} s; if it does not, a hook blocks its "
                "event loop: use `await asyncio.sleep(...)`, or `await asyncio.to_thread(...)` for what blocks"
            )


def _whole_seconds(seconds: float) -> int:
    # uvicorn's deadline is one, and 0 would end what is about to end by itself.
    return max(0, math.floor(seconds)) + 1


def _new_event_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind != "asyncio":
        with suppress(ImportError):
            loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
            return loop
    return asyncio.new_event_loop()


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=_LEFTOVERS)
        if left:
            logger.error("%d tasks ignore cancellation and are given up", len(left))
    closing = asyncio.create_task(asyncio.get_running_loop().shutdown_asyncgens())
    await asyncio.wait((closing,), timeout=_LEFTOVERS)


@contextmanager
def collect_garbage_rarely() -> Generator[None]:
    """Have the garbage collector look for cycles less often, in a process that does nothing but serve.

    What one turn of the loop makes for thousands of messages is gone with the next. But the collector counts what has
    been made, and would look at all connections again and again: a fifth of the time at 10,000 of them. A program that
    has chosen a higher threshold, or switched the collector off, keeps that.
    """
    youngest, *older = before = gc.get_threshold()
    if 0 < youngest < _YOUNGEST:
        gc.set_threshold(_YOUNGEST, *older)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def join_workers(*names: str) -> list[str]:
    """Wait a moment for the threads whose names begin with one of `names`; return which still run."""
    end = time.monotonic() + _LEFTOVERS
    workers = [thread for thread in threading.enumerate() if thread.name.startswith(names)]
    for thread in workers:
        thread.join(max(0, end - time.monotonic()))
    return [thread.name for thread in workers if thread.is_alive()]


@contextmanager
def end_on_signals(server: Server) -> Generator[Callable[[], None]]:
    """Let a first SIGINT or SIGTERM end `server`, and a second one, or an end that takes too long, the process.

    The context is what does the same as a first signal, for any thread. A server that has `on_end` is a worker process:
    its parent gets the signals of the terminal, tells it to end, and is the one to lose patience.
    """
    # Putting into a SimpleQueue is safe in a signal handler, whatever the handler has interrupted.
    received: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def end() -> None:
        server.should_exit = True
        received.put(True)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if server.on_end is None or number == signal.SIGTERM:
            end()

    watchdog = threading.Thread(target=_watch, args=(server, received), name="wsdeco-watchdog", daemon=True)
    watchdog.start()
    previous = {number: signal.signal(number, on_signal) for number in ENDING_SIGNALS}
    try:
        yield end
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        received.put(False)
        watchdog.join()


def _watch(server: Server, received: queue.SimpleQueue[bool]) -> None:
    # A thread, because a hook may block the event loop and with it everything else that could notice.
    if not received.get():
        return
    limit = server.time_to_end
    is_over = _wait_for_end(server, received, limit)
    if is_over is None:
        with suppress(OSError):
            faulthandler.dump_traceback(_STDERR)
        end_process(f"the server has not ended within {limit:g} s, a hook blocks its event loop: the process ends", 1)
    elif not is_over:
        end_process("a second signal ends the process at once; not every on_disconnect has run", 1)


def _wait_for_end(server: Server, received: queue.SimpleQueue[bool], limit: float) -> bool | None:
    # Whether it has come; False is a second signal before that, and None neither within the limit.
    if server.on_end is not None:
        server.on_end(limit)
        over = time.monotonic() + limit
        while (signalled := _receive(received, max(0, over - time.monotonic()))) is True:
            pass
    else:
        # One Ctrl-C may come twice: from the terminal, and from a program around this one that passes it on.
        repeated_until = time.monotonic() + _REPEAT
        while (signalled := _receive(received, min(_NOTICE, limit))) is True and time.monotonic() < repeated_until:
            pass
        if signalled is None:
            say(
                f"waiting up to {limit:.0f} s for connections, hooks and requests; another Ctrl-C ends the process at "
                "once"
            )
            signalled = _receive(received, max(0, limit - _NOTICE))
    return None if signalled is None else not signalled


def _receive(received: queue.SimpleQueue[bool], timeout: float) -> bool | None:
    try:
        return received.get(timeout=timeout)
    except queue.Empty:
        return None


def end_process(line: str, status: int) -> None:
    """Say why, and end the process without waiting for any thread."""
    try:
        say(line)
    finally:
        os._exit(status)


def say(line: str) -> None:
    """Write a line to stderr, unless nobody reads it soon."""
    # What a stuck thread holds may be the lock of a buffer, or the end of a full pipe.
    writer = threading.Thread(target=_write, args=(line,), daemon=True)
    writer.start()
    writer.join(_FLUSH)


def _write(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a log may be what a stuck thread holds
    print(end="", flush=True)  # noqa: T201 - flush() of a stdout that may not exist
