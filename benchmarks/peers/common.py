"""What the servers share: options, the end with the parent, the event loop, uvicorn."""

import argparse
import asyncio
import importlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
import uvloop

HOST: Final = "127.0.0.1"

MAX_MESSAGE_SIZE: Final = 16 * 1024 * 1024
"""Largest message a server takes, in bytes: the largest that is measured."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a server is started with.

    Attributes:
        port: TCP port on the loopback address.
        compression: Agree to permessage-deflate (RFC 7692).
        routes: How many routes there are besides, which nobody asks for.
    """

    port: int
    compression: bool
    routes: int = 0


def parse_options() -> Options:
    """Read the command line, and see to it that this process ends with the one that started it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--compression", action="store_true")
    parser.add_argument("--routes", type=int, default=0)
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    return Options(arguments.port, arguments.compression, arguments.routes)


def load(module: str) -> Any:
    """Import a library that the project does not depend on."""
    return importlib.import_module(module)


def run_until_killed(start: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run a server on uvloop; `start` returns once it listens, with what has to be kept alive."""

    async def main() -> None:
        kept = await start()
        await asyncio.Event().wait()
        del kept

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def run_uvicorn(app: Any, options: Options, ws: str = "auto") -> None:
    """Serve an ASGI app with uvicorn on uvloop and httptools, with the WebSocket implementation `ws`."""
    uvicorn.run(
        app,
        host=HOST,
        port=options.port,
        ws=ws,
        loop="uvloop",
        http="httptools",
        ws_max_size=MAX_MESSAGE_SIZE,
        ws_ping_interval=None,
        ws_per_message_deflate=options.compression,
        log_level="warning",
        access_log=False,
    )


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    # The parent holds the other end of this pipe, and has gone without stopping what it started.
    os.killpg(0, signal.SIGKILL)
