"""`App.run` and `wsdeco run`: in a thread if an event loop runs already, or else in one process or several."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import threading
from typing import Any, Final

from wsdeco.clock import running_loop
from wsdeco.reasons import ServerError
from wsdeco.routing.announcements import is_interactive
from wsdeco.routing.application import Application
from wsdeco.server.background import BackgroundServer, run_in_background
from wsdeco.server.banner import print_banner
from wsdeco.server.foreground import serve_in_main_thread
from wsdeco.server.in_loop import serve_in_loop
from wsdeco.server.loading import Reference, is_frozen, is_loading, reference_to
from wsdeco.server.options import check_options, make_server
from wsdeco.server.serving import server_of
from wsdeco.workers.run import run_workers

__all__ = ["BackgroundServer", "run", "run_in_foreground", "serve"]

logger: Final = logging.getLogger("wsdeco")

_OF_RUN: Final = {
    "background": "it serves in the event loop that runs; run(background=True) brings a thread",
    "loop": "it serves in the event loop that runs",
    "workers": "workers are processes, which run(workers=...) starts",
}
"""Options of `run` that have no meaning in a running event loop, and what to write instead."""


def run(
    app: Application, host: str, port: int, /, *, background: bool | None, workers: int, **options: Any
) -> BackgroundServer | None:
    """Do what `App.run` says."""
    if is_loading():
        return None
    if running_loop() is not None if background is None else background:
        check_options(host, port, workers, options)
        if workers > 1 or options.get("reload"):
            raise ServerError(
                "workers serve in the foreground of a script, not in a thread or a notebook: leave out workers, or "
                "write the app into a file, app.py for instance, and `wsdeco run app.py --workers 4` in a shell"
            )
        server = run_in_background(app, host, port, options)
        if background is None and not is_interactive():
            logger.warning(
                "run() inside of a running event loop serves in a thread with a loop of its own: hooks share no object "
                "of asyncio with this loop, such as a Queue; to serve in this loop write `await ws.serve(...)`, or "
                "call run() outside of asyncio.run(), and start tasks in @ws.lifespan"
            )
        return server
    run_in_foreground(app, None, host, port, workers=workers, **options)
    return None


async def serve(app: Application, host: str, port: int, /, **options: Any) -> None:
    """Do what `App.serve` says."""
    for name, otherwise in _OF_RUN.items():
        if name in options:
            raise TypeError(f"serve() has no option {name!r}: {otherwise}")
    check_options(host, port, 1, options)
    await serve_in_loop(app, host, port, options)


def run_in_foreground(
    app: Application, reference: Reference | None, host: str, port: int, /, *, workers: int, **options: Any
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
        if workers > 1 or options.get("reload"):
            if is_frozen():
                # A worker is the program itself, started again, which gets no further than here.
                multiprocessing.freeze_support()
            run_workers(app, reference or reference_to(app), host, port, workers, options)
        else:
            server = make_server(app, host, port, options)
            server.on_start = lambda: print_banner(server, "Press Ctrl-C to stop.")
            serve_in_main_thread(server)
    except ServerError as exc:
        if hasattr(sys, "ps1"):
            # It would end the interpreter that somebody is typing into.
            raise
        raise SystemExit(str(exc)) from None


def _check_foreground(app: Application) -> None:
    current = server_of(app)
    if current is not None:
        current.check_replaceable()
    if running_loop() is not None:
        raise ServerError("an event loop runs in this thread: leave out background=False, or call run() outside of it")
    if threading.current_thread() is not threading.main_thread():
        raise ServerError(
            "run() in the foreground needs the main thread, where signals such as Ctrl-C arrive: "
            "write run(background=True), which brings a thread of its own"
        )
