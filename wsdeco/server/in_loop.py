"""Serving in an event loop that runs already, beside the tasks that it has."""

from __future__ import annotations

import asyncio
from typing import Any

from wsdeco.routing.application import Application
from wsdeco.server.banner import print_banner
from wsdeco.server.options import make_server
from wsdeco.server.serving import server_of
from wsdeco.server.termination import ended_by_signals

__all__ = ["serve_in_loop"]


async def serve_in_loop(app: Application, host: str, port: int, options: dict[str, Any]) -> None:
    """Serve `app` in the running event loop until the task is cancelled or the app is shut down.

    Raises:
        ServerError: It cannot start.
    """
    server = make_server(app, host, port, options)
    current = server_of(app)
    if current is not None:
        current.check_replaceable()
        # Another thread waits, as clients of that server may live in this loop.
        await asyncio.to_thread(current.end)
    server.loop = asyncio.get_running_loop()
    with server.claimed(), ended_by_signals(server):
        server.listen()
        server.on_start = lambda: print_banner(server, "Press Ctrl-C to stop.")

        def end_with_app() -> None:
            if app.is_closing:
                server.should_exit = True

        server.ticks = [end_with_app]
        with server.descriptors.heard_in(server.loop, server.listeners.sockets):
            serving = asyncio.create_task(server.serve(server.listeners.sockets))
            try:
                await asyncio.shield(serving)
            except asyncio.CancelledError:
                server.should_exit = True
                await serving
                raise
