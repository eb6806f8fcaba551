"""`App.run`: serve in the foreground until a signal, or in a thread where an event loop runs already."""

from __future__ import annotations

import asyncio
import atexit
import difflib
import inspect
import logging
import pickle
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import uvicorn
from uvicorn.config import LOG_LEVELS

from wsdeco.app import App, RouteInfo
from wsdeco.cluster import choose_backplane, use_backplane
from wsdeco.config import DEFAULT_CONFIG, ConnectionConfig
from wsdeco.connections import Slots
from wsdeco.listen import Listeners, check_address
from wsdeco.loading import Reference, describe_failure, is_loading, reference_to
from wsdeco.reasons import BackplaneError, ServerError
from wsdeco.serving import ANYIO_WORKER, Server, collect_garbage_rarely, end_on_signals, end_process, join_workers
from wsdeco.supervisor import Link, Supervisor
from wsdeco.totals import NoShare, Totals, has_locks, no_locks

__all__ = ["BackgroundServer", "check_options", "run", "run_in_foreground"]

logger = logging.getLogger("wsdeco")

_WEBSOCKET_PROTOCOL: Final = "wsdeco.protocol:WebSocketProtocol"
"""Which of uvicorn's WebSocket implementations serves."""

_HTTP_PROTOCOL: Final = "wsdeco.http:HttpProtocol"
"""Which of uvicorn's HTTP implementations serves: what owns a connection until it is upgraded."""

_UVICORN_MAX_SIZE: Final = 16 * 1024 * 1024
"""Largest message, in bytes, where functions and mounted apps have limits of their own."""

_COMMAND_LINE: Final = (
    "write `uvicorn module:ws --ws wsdeco.protocol:WebSocketProtocol --{}` in a shell, with the name of your module"
)

_OTHERWISE: Final[dict[str, str]] = {
    "app": "the app is the one that run() is called on",
    "factory": "the app is the one that run() is called on",
    "interface": "the app is the one that run() is called on",
    "fd": _COMMAND_LINE.format("fd 3"),
    "uds": _COMMAND_LINE.format("uds ws.sock"),
    "reload": _COMMAND_LINE.format("reload"),
    "reload_delay": _COMMAND_LINE.format("reload --reload-delay 1"),
    "reload_dirs": _COMMAND_LINE.format("reload --reload-dir src"),
    "reload_excludes": _COMMAND_LINE.format("reload --reload-exclude tests"),
    "reload_includes": _COMMAND_LINE.format("reload --reload-include '*.html'"),
    "timeout_worker_healthcheck": "a worker is replaced when its process ends, and asked for nothing before",
    "http": "run() chooses the HTTP implementation; for another, " + _COMMAND_LINE.format("http h11"),
    "http2": "WebSocket connections need HTTP/1.1; for HTTP/2, put a proxy in front",
    "h11_max_incomplete_event_size": "the head of a request has 64 KiB at most",
    "lifespan": "decorate start-up and shutdown with @ws.lifespan",
    "ws": "run() chooses the WebSocket implementation; for another, write `uvicorn module:ws --ws wsproto` in a shell",
    "ws_max_queue": "set max_inbox=... on the handler",
}
"""Options of uvicorn that have no meaning here, and what to write instead."""

_DURATIONS: Final = (("h", 3600), ("min", 60), ("s", 1))
_SIZES: Final = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))

_serving: Final[dict[App, Server]] = {}
_serving_lock: Final = threading.Lock()


def run(
    app: App, host: str, port: int, /, *, background: bool | None, workers: int, **options: Any
) -> BackgroundServer | None:
    """Do what `App.run` says."""
    if is_loading():
        return None
    if _in_event_loop() if background is None else background:
        check_options(host, port, workers, options)
        if workers > 1:
            raise ServerError(
                "workers serve in the foreground of a script, not in a thread or a notebook: leave out workers, or "
                "write the app into a file, app.py for instance, and `wsdeco run app.py --workers 4` in a shell"
            )
        return _run_in_background(app, host, port, options)
    run_in_foreground(app, None, host, port, workers=workers, **options)
    return None


def run_in_foreground(
    app: App, reference: Reference | None, host: str, port: int, /, *, workers: int, **options: Any
) -> None:
    """Do what `App.run` says of the foreground.

    Args:
        app: The app.
        reference: Where worker processes find it; `None` for where the script that runs has it.
        host: As for `App.run`.
        port: As for `App.run`.
        workers: As for `App.run`.
        options: As for `App.run`.

    Raises:
        SystemExit: The server cannot start: one line on stderr, exit status 1. Or workers could not be ended in time.
        TypeError: As `check_options`.
        ValueError: As `check_options`.
    """
    check_options(host, port, workers, options)
    _check_foreground(app)
    try:
        if workers > 1:
            _run_workers(app, reference or reference_to(app), host, port, workers, options)
        else:
            _run_in_foreground(app, host, port, options)
    except ServerError as exc:
        if hasattr(sys, "ps1"):
            # It would end the interpreter that somebody is typing into.
            raise
        raise SystemExit(str(exc)) from None


class BackgroundServer:
    """A server in a thread with an event loop of its own, as `App.run` returns it.

    As a context manager it is stopped at the end of the block; without `stop`, when the interpreter ends.
    """

    def __init__(self, server: Server) -> None:
        """Start `server`; return as soon as it serves.

        Raises:
            ServerError: It cannot start.
        """
        self._server = server
        self._served = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name=f"wsdeco {server.http_url}", daemon=True)
        server.thread = self._thread
        server.on_start = self._served.set
        try:
            self._thread.start()
            self._served.wait()
        except RuntimeError as exc:
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
        """The address of WebSocket connections, without a path, such as `ws://127.0.0.1:8000`."""
        return self._server.ws_url

    @property
    def http_url(self) -> str:
        """The address of plain HTTP requests, without a path, such as `http://127.0.0.1:8000`."""
        return self._server.http_url

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._server.listeners.port

    @property
    def running(self) -> bool:
        """Whether it serves, or still ends."""
        return not self._server.ended.is_set()

    def stop(self, timeout: float | None = None) -> None:
        """Close every connection with 1012; return when every `on_disconnect` has run and the server has ended.

        Any thread may call it, several times as well. In a thread with a running event loop it blocks that loop;
        where clients of the server live in that loop, use `await asyncio.to_thread(server.stop)`, as they could
        not answer the closing handshake until `close_timeout` is over.

        Args:
            timeout: Seconds to wait at most; by default, the sum of the deadlines that the server has at its end.

        Raises:
            ServerError: It has not ended in time, or a hook of the server is the caller.
        """
        self._server.end(timeout)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running; stop() ends it" if self.running else "stopped"
        return f"<BackgroundServer {self.url} {state}>"

    def _serve(self) -> None:
        # A daemon thread ends with the interpreter, in the middle of whatever it does.
        atexit.register(self._stop_at_exit)
        try:
            self._server.run()
            join_workers(self._server.worker_name)
        except BaseException as exc:
            self._failure = exc
            if self._served.is_set():
                logger.exception("the server at %s has failed", self.http_url)
        finally:
            atexit.unregister(self._stop_at_exit)
            _release(self._server)
            self._served.set()

    def _stop_at_exit(self) -> None:
        try:
            self.stop()
        except ServerError as exc:
            logger.warning("%s", exc)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _check_foreground(app: App) -> None:
    current = _serving.get(app)
    if current is not None:
        current.check_replaceable()
    if _in_event_loop():
        raise ServerError("an event loop runs in this thread: leave out background=False, or call run() outside of it")
    if threading.current_thread() is not threading.main_thread():
        raise ServerError(
            "run() in the foreground needs the main thread, where signals such as Ctrl-C arrive: "
            "write run(background=True), which brings a thread of its own"
        )


def _run_in_foreground(app: App, host: str, port: int, options: dict[str, Any]) -> None:
    server = _make_server(app, host, port, options)
    server.on_start = lambda: _print_banner(server, "Press Ctrl-C to stop.")
    _serve_in_main_thread(server)


def _serve_in_main_thread(server: Server, link: Link | None = None) -> None:
    _claim(server)
    with ExitStack() as stack:
        stack.callback(_release, server)
        end = stack.enter_context(end_on_signals(server))
        stack.enter_context(collect_garbage_rarely())
        if link is None:
            server.listen()
        else:
            link.watch(end)
        server.run()
        left = join_workers(server.worker_name, ANYIO_WORKER)
    if left:
        # The interpreter would wait for them for ever, and nothing can interrupt them.
        end_process(f"the process ends though hooks have left threads that still run: {', '.join(left)}", 0)


def _run_workers(app: App, reference: Reference, host: str, port: int, workers: int, options: dict[str, Any]) -> None:
    """Serve in `workers` processes until a signal.

    Raises:
        ServerError: They cannot start.
        SystemExit: They could not be started, or not be ended in time.
    """
    _check_picklable(options)
    server = _make_server(app, host, port, options)
    _claim(server)
    with ExitStack() as stack:
        stack.callback(_release, server)
        server.listen()
        totals = stack.enter_context(_totals(app, workers))
        backplane, brokers = choose_backplane(app)
        for broker in brokers:
            stack.callback(broker.stop)
        paths = [info.path for info in app.route_infos]
        supervisor = Supervisor(
            workers,
            _serve_as_worker,
            (reference, host, options, paths, server.listeners, backplane, totals),
            time_to_end=server.time_to_end,
            beside=brokers,
            on_death=lambda number: None if totals is None else totals.clear(number),
        )
        status = supervisor.run(
            on_ready=lambda: _print_banner(server, f"{workers} worker processes. Press Ctrl-C to stop."),
            on_end=server.listeners.close,
        )
    if status:
        raise SystemExit(status)


@contextmanager
def _totals(app: App, workers: int) -> Generator[Totals | None]:
    if not has_locks():
        limited = [info.path for info in app.route_infos if info.config and info.config.max_connections_total]
        if limited:
            raise no_locks(", ".join(limited))
        yield None
        return
    with closing(Totals.create(workers)) as totals:
        yield totals


def _serve_as_worker(
    link: Link,
    reference: Reference,
    host: str,
    options: dict[str, Any],
    paths: list[str],
    listeners: Listeners,
    backplane: str | None,
    totals: Totals | None,
) -> None:
    link.take_signals()
    Slots.share = NoShare() if totals is None else totals.share(link.number)
    try:
        app = reference.load()
    except Exception as exc:
        link.failed(describe_failure(exc, reference.module))
        raise SystemExit(1) from None
    try:
        _check_paths(app, paths)
        use_backplane(app, backplane)
        server = _make_server(app, host, listeners.port, options)
        server.listeners = listeners
        server.on_start = link.ready
        server.on_end = link.ending
        _serve_in_main_thread(server, link)
    except ServerError as exc:
        link.failed(str(exc))
        raise SystemExit(1) from None


def _check_paths(app: App, paths: list[str]) -> None:
    missing = sorted(set(paths) - {info.path for info in app.route_infos})
    if missing:
        raise ServerError(
            f"a worker process, which imports the module anew, finds nothing on {', '.join(missing)}: register it "
            'at the top level of the module, outside of `if __name__ == "__main__":`'
        )


def _run_in_background(app: App, host: str, port: int, options: dict[str, Any]) -> BackgroundServer:
    server = _make_server(app, host, port, options)
    _claim(server)
    with ExitStack() as undo:
        undo.callback(_release, server)
        server.listen()
        handle = BackgroundServer(server)
        undo.pop_all()
    _print_banner(server, "Runs in the background: stop() of what run() returned ends it.")
    return handle


def _claim(server: Server) -> None:
    while True:
        with _serving_lock:
            current = _serving.setdefault(server.app, server)
            if current is server:
                server.app.cap_message_size(server.config.ws_max_size)
                return
        current.check_replaceable()
        current.end()


def _release(server: Server) -> None:
    server.listeners.close()
    with _serving_lock:
        if _serving.get(server.app) is server:
            del _serving[server.app]
            server.app.cap_message_size(None)
    server.ended.set()


def check_options(host: object, port: object, workers: object, options: dict[str, Any]) -> None:
    """Refuse arguments of `App.run` that cannot be used.

    Raises:
        TypeError: One of them has the wrong type, or is unknown or has no meaning here.
        ValueError: One of them is out of its range.
    """
    check_address(host, port)
    _check_workers(workers)
    _check_options(options)


def _check_workers(workers: object) -> None:
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers must be an int such as 4, not {type(workers).__name__} {workers!r}")
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers}")


def _check_picklable(options: dict[str, Any]) -> None:
    for name, value in options.items():
        try:
            pickle.dumps(value)
        except Exception as exc:
            raise ServerError(
                f"{name} cannot be handed to worker processes, since it cannot be pickled: {exc}"
            ) from exc


def _check_options(options: dict[str, Any]) -> None:
    parameters = set(inspect.signature(uvicorn.Config).parameters)
    meaningful = sorted(parameters - set(_OTHERWISE) | {"host", "port", "background", "workers"})
    for name in options:
        if name in _OTHERWISE:
            raise TypeError(f"run() has no option {name!r}: {_OTHERWISE[name]}")
        if name not in parameters:
            near = difflib.get_close_matches(name, meaningful, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "it takes those of uvicorn.Config"
            raise TypeError(f"run() has no option {name!r}: {hint}")
    level = options.get("log_level")
    if isinstance(level, str) and level.lower() not in LOG_LEVELS:
        raise ValueError(f"log_level must be one of {', '.join(map(repr, LOG_LEVELS))}, not {level!r}")
    if options.get("loop", "auto") not in {"auto", "asyncio"}:
        raise ValueError(f"loop must be 'auto' (uvloop where it is installed) or 'asyncio', not {options['loop']!r}")
    grace = options.get("timeout_graceful_shutdown")
    if grace is not None and not (isinstance(grace, int | float) and 0 <= grace < float("inf")):
        raise ValueError(f"timeout_graceful_shutdown must be 0 or more seconds and finite, not {grace!r}")


def _make_server(app: App, host: str, port: int, options: dict[str, Any]) -> Server:
    if not app.app.routes:
        raise ServerError("no handler is registered: decorate a class with @ws.handler('/ws') first")
    try:
        app.find_backplane()
    except BackplaneError as exc:
        raise ServerError(str(exc)) from exc
    defaults: dict[str, Any] = {"log_level": "warning", "ws_per_message_deflate": False}
    fixed: dict[str, Any] = {
        "http": _HTTP_PROTOCOL,
        "ws": _WEBSOCKET_PROTOCOL,
        "ws_max_size": _largest_message(app, options),
        "workers": 1,
        "lifespan": "on",
    }
    try:
        config = uvicorn.Config(app, host, port, interface="asgi3", **defaults | options | fixed)
    except Exception as exc:
        if "log_config" not in options:
            raise
        # Whatever reads the file, it is that which cannot be used.
        raise ServerError(f"log_config={options['log_config']!r} cannot be used: {type(exc).__name__}: {exc}") from exc
    try:
        _check_files(options)
        config.load()
    except OSError as exc:
        raise ServerError(f"TLS cannot be set up with {_tls_options(options)}: {exc}") from exc
    return Server(app, config)


def _largest_message(app: App, options: dict[str, Any]) -> int:
    configs = [info.config for info in app.route_infos if info.config is not None]
    sizes = [config.max_message_size for config in configs]
    if len(app.app.routes) > len(configs):
        sizes.append(_UVICORN_MAX_SIZE)
    wanted: int = options.get("ws_max_size", 0)
    return max(*sizes, wanted)


def _check_files(options: dict[str, Any]) -> None:
    files = {name: options[name] for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs") if options.get(name)}
    if "ssl_keyfile" in files and "ssl_certfile" not in files:
        raise OSError("ssl_certfile, the certificate, is missing")
    for name, file in files.items():
        if not Path(file).is_file():
            raise OSError(f"{name} names no file")


def _tls_options(options: dict[str, Any]) -> str:
    given = [f"{name}={str(value)!r}" for name, value in options.items() if name.endswith(("file", "_certs"))]
    return ", ".join(given)


# What `run` prints.


def _print_banner(server: Server, hint: str) -> None:
    rows = [(info.kind, info.path, info.name, _limits(info)) for info in server.app.route_infos]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"Serving {server.http_url} and {server.ws_url}", ""]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    print(*lines, "", hint, sep="\n", flush=True)  # noqa: T201 - the address to open belongs on stdout


def _limits(info: RouteInfo) -> str:
    config = info.config
    if config is None:
        return ""
    names = [field.name for field in fields(ConnectionConfig)]
    changed = [name for name in names if getattr(config, name) != getattr(DEFAULT_CONFIG, name)]
    return ", ".join(f"{name}={_readable(name, getattr(config, name))}" for name in changed)


def _readable(name: str, value: object) -> str:
    match value:
        case bool():
            return str(value)
        case float():
            return _in_units(value, _DURATIONS)
        case int() if not name.startswith("max_connections"):
            return _in_units(value, _SIZES)
        case tuple():
            return "|".join(cast("tuple[str, ...]", value))
        case _:
            return str(value)


def _in_units(value: float, units: Sequence[tuple[str, int]]) -> str:
    unit, size = next((each for each in units if value >= each[1] and value % each[1] == 0), units[-1])
    return f"{value / size:.15g} {unit}"
