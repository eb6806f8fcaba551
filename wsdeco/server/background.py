"""A server in a thread, beside an event loop that runs already, as in a notebook."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from contextlib import ExitStack
from html import escape
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from wsdeco.reasons import ServerError
from wsdeco.routing.application import Application, registry_of
from wsdeco.server.banner import print_banner
from wsdeco.server.options import make_server
from wsdeco.server.serving import Server, join_threads, server_of
from wsdeco.server.termination import ended_by_signals

__all__ = ["BackgroundServer", "run_in_background"]

logger: Final = logging.getLogger("wsdeco")

T = TypeVar("T")


def run_in_background(app: Application, host: str, port: int, options: dict[str, Any]) -> BackgroundServer:
    """Serve `app` in a thread; return as soon as it serves.

    Raises:
        ServerError: It cannot start.
    """
    before = server_of(app)
    if before is not None:
        # Before anything else fails: that would not help the caller.
        before.check_replaceable()
    server = make_server(app, host, port, options)
    with ExitStack() as held:
        # The server that runs is ended only once it is known that this one can take its place.
        if not _has_place(before, server, port):
            server.listen()
        held.enter_context(server.claimed())
        held.enter_context(ended_by_signals(server))
        try:
            if not server.listeners.sockets:
                server.listen()
            handle = BackgroundServer(server, held)
        except ServerError as exc:
            if before is None:
                raise
            raise ServerError(
                f"{exc}; nothing serves this app now, as the server at {before.http_url} has ended to make way: mend "
                "what has failed, and call run() again"
            ) from exc.__cause__
    print_banner(server, "Runs in the background: stop() of what run() returned ends it.")
    return handle


def _has_place(current: Server | None, server: Server, port: int) -> bool:
    if current is None or server.own.fd is not None:
        return False
    path = server.own.uds
    return current.listeners.port == port if path is None else current.own.uds == path


class BackgroundServer:
    """A server in a thread with an event loop of its own, as `App.run` returns it.

    As a context manager it is stopped at the end of the block; without `stop`, when the interpreter ends.
    """

    def __init__(self, server: Server, held: ExitStack) -> None:
        """Start `server`; return as soon as it serves. What is `held` until its end moves to its thread.

        Raises:
            ServerError: It cannot start.
        """
        self._server = server
        self._served = threading.Event()
        self._failure: BaseException | None = None
        self._held = held.pop_all()
        self._thread = threading.Thread(target=self._serve, name=f"wsdeco {server.http_url}", daemon=True)
        server.thread = self._thread
        server.on_start = self._served.set
        try:
            self._thread.start()
            self._served.wait()
        except RuntimeError as exc:
            self._held.close()
            raise ServerError(f"the server cannot start: {exc}") from exc
        except BaseException:
            # Ctrl-C, for one.
            server.end()
            raise
        if self._failure is not None:
            self._thread.join()
            raise ServerError(f"the server cannot start: {self._failure}") from self._failure

    @property
    def url(self) -> str:
        """The address of WebSocket connections, without a path: `ws://127.0.0.1:8000`, or `unix:/run/chat/ws.sock`."""
        return self._server.ws_url

    @property
    def http_url(self) -> str:
        """The address of plain HTTP requests, without a path: `http://127.0.0.1:8000`, or `unix:/run/chat/ws.sock`."""
        return self._server.http_url

    @property
    def port(self) -> int:
        """The TCP port; 0 for a Unix socket."""
        return self._server.listeners.port

    @property
    def running(self) -> bool:
        """Whether it serves, or still ends."""
        return not self._server.ended.is_set()

    def stop(self, timeout: float | None = None) -> None:
        """Close every connection with 1012; return when every `on_disconnect` has run and the server has ended.

        Any thread may call it, several times as well. In a thread with a running event loop it blocks that loop;
        if clients of the server live in that loop, use `await asyncio.to_thread(server.stop)`, as they could
        not answer the closing handshake until `close_timeout` is over.

        Args:
            timeout: Seconds to wait at most; by default, the sum of the deadlines that the server has at its end.

        Raises:
            ServerError: It has not ended in time, or a hook of the server is the caller.
        """
        self._server.end(timeout)
        self._thread.join()

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the event loop of the server, and return what it returns.

        For synchronous code beside the server: `server.call(ws.broadcast("/chat", "hello"))` in a cell of a notebook,
        or in a thread. The caller waits; in a thread with a running event loop that loop does not go on meanwhile.

        Args:
            work: The coroutine.
            timeout: Seconds to wait at most; then the coroutine is cancelled. By default as long as it takes.

        Raises:
            ServerError: The server has ended, or the caller is one of its hooks.
            TimeoutError: It took longer than `timeout`.
            TypeError: `work` is no coroutine.
        """
        if not asyncio.iscoroutine(work):
            raise TypeError(
                f"call() takes a coroutine, not {type(work).__name__}: call the async function, as in "
                'server.call(ws.broadcast("/chat", "hello"))'
            )
        try:
            result = asyncio.run_coroutine_threadsafe(work, self._loop_of_others())
        except BaseException:
            # Otherwise Python warns that the coroutine was never awaited.
            work.close()
            raise
        try:
            return result.result(timeout)
        except CancelledError:
            raise ServerError(f"the server at {self.http_url} has ended meanwhile") from None
        finally:
            result.cancel()

    def _loop_of_others(self) -> asyncio.AbstractEventLoop:
        loop = self._server.loop
        if loop is None or loop.is_closed() or not self.running:
            raise ServerError(f"the server at {self.http_url} has ended: start it again with run()")
        if threading.current_thread() is self._thread:
            raise ServerError("a hook of the server is in its event loop already: await the coroutine there")
        return loop

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running; stop() ends it" if self.running else "stopped"
        return f"<BackgroundServer {self.url} {state}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the addresses, the routes as links, and how many connections each has."""
        rows: list[str] = []
        counts = registry_of(self._server.app).counts()
        is_web = not self._server.listeners.path
        for info in self._server.app.route_infos:
            link = f"{self.http_url}{info.path}"
            path = (
                f'<a href="{escape(link)}">{escape(info.path)}</a>'
                if is_web and "{" not in info.path
                else escape(info.path)
            )
            count = f"{counts[info.path]} connections" if info.path in counts else ""
            rows.append(f"<tr><td>{info.kind}</td><td>{path}</td><td>{escape(info.name)}</td><td>{count}</td></tr>")
        state = "running" if self.running else "stopped"
        return f"<p>{escape(self.url)}: {state}</p><table>{''.join(rows)}</table>"

    def _serve(self) -> None:
        # A daemon thread would be cut off at the end of the interpreter, in the middle of its work.
        atexit.register(self._stop_at_exit)
        try:
            self._server.run()
            join_threads(self._server.thread_prefix)
        except BaseException as exc:
            self._failure = exc
            if self._served.is_set():
                logger.exception("the server at %s has failed", self.http_url)
        finally:
            atexit.unregister(self._stop_at_exit)
            self._held.close()
            self._served.set()

    def _stop_at_exit(self) -> None:
        try:
            self.stop()
        except ServerError as exc:
            logger.warning("%s", exc)
