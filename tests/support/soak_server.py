"""A script that serves one handler under load: `python -m tests.support.soak_server '{"max_connections": 10000}'`.

Its argument holds the limits of the route `/ws`. `GET /census` counts what a connection is made of, and what must be
gone when there is none.
"""

import asyncio
import contextlib
import gc
import json
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

from tests.support.wire import slots_taken
from wsdeco import Address, App, DisconnectReason, Sink

app = App()
tasks: set["asyncio.Task[None]"] = set()


class Tally:
    """What has happened so far.

    Attributes:
        connected: How often `on_connect` was called.
        reasons: How often `on_disconnect` was called, by reason.
        lives: The least and the most seconds from `on_connect` to `on_disconnect`, of those that left since the last
            census. Not those of each: it would look like memory that the connections have kept.
        taken: How many members took each broadcast since the last census.
        broadcasts: How many there were.
        handled: Messages that reached `on_message`.
    """

    def __init__(self) -> None:
        self.connected = 0
        self.handled = 0
        self.reasons: Counter[str] = Counter()
        self.lives: list[float] = []
        self.taken: list[int] = []
        self.broadcasts = 0


tally = Tally()


class Subject:
    """Does what its client says."""

    sink: Sink
    since: float

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        tally.connected += 1
        self.sink = sink
        self.since = time.monotonic()
        if "crowd" in sink.query_params:
            app.room("crowd").join(sink)

    async def on_message(self, text: str) -> str | None:  # noqa: C901 - a table
        tally.handled += 1
        match text.split():
            case ["wait"]:
                await asyncio.Event().wait()
            case ["wait-stubbornly"]:
                for _ in range(2):
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.Event().wait()
            case ["close"]:
                await self.sink.close(4000)
            case ["fail"]:
                raise RuntimeError(text)
            case ["stall", seconds]:
                time.sleep(float(seconds))  # noqa: ASYNC251 - a hook that blocks the loop is what this is about
            case ["work", seconds, _]:
                await asyncio.sleep(float(seconds))
            case ["flood", size]:
                self.sink.send_nowait("x" * int(size))
            case ["send", number, size]:
                reply = "x" * int(size)
                await asyncio.gather(*(self.sink.send(reply) for _ in range(int(number))))
            case ["broadcast", number, size, interval]:
                task = asyncio.create_task(broadcast(int(number), int(size), float(interval)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            case _:
                return text
        return None

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        tally.reasons[str(reason)] += 1
        lived = time.monotonic() - self.since
        tally.lives = [min(*tally.lives, lived), max(*tally.lives, lived)] if tally.lives else [lived, lived]


async def broadcast(number: int, size: int, interval: float) -> None:
    """Broadcast messages that begin with the time, which is the same in all processes of a machine."""
    for _ in range(number):
        tally.taken.append(await app.room("crowd").broadcast(str(time.monotonic_ns()).ljust(size)))
        tally.broadcasts += 1
        await asyncio.sleep(interval)


COUNTED = ("Subject", "WebSocketProtocol", "AsgiCycle", "DirectChannel", "Connection", "Framing", "Sink")


def census() -> dict[str, Any]:
    gc.collect()
    kinds = Counter(type(each).__name__ for each in gc.get_objects())
    lives, tally.lives = tally.lives, []
    taken, tally.taken = tally.taken, []
    return {
        "objects": {name: kinds[name] for name in COUNTED},
        "blocks": sys.getallocatedblocks(),
        "tasks": len(asyncio.all_tasks()),
        "slots": slots_taken(app),
        "members": len(app.room("crowd")),
        "connected": tally.connected,
        "handled": tally.handled,
        "reasons": dict(tally.reasons),
        "lives": lives,
        "taken": taken,
        "broadcasts": tally.broadcasts,
    }


@app.route("/census")
async def show_census() -> JSONResponse:
    return JSONResponse(census())


@app.route("/body", methods=["GET", "POST"])
async def take_body(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """Echo, or do what the client says, as an endpoint of plain ASGI does."""
    if scope["type"] != "websocket":
        await app(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        match event["text"].split():
            case ["wait" | "wait-stubbornly"]:
                await asyncio.Event().wait()
            case ["fail"]:
                raise RuntimeError("fail")
            case ["flood", size]:
                await send({"type": "websocket.send", "text": "x" * int(size)})
            case ["send", number, size]:
                reply = {"type": "websocket.send", "text": "x" * int(size)}
                await asyncio.gather(*(send(dict(reply)) for _ in range(int(number))))
            case _:
                await send({"type": "websocket.send", "text": event["text"]})


@app.lifespan
async def lifespan(_app: object) -> AsyncGenerator[None]:
    yield
    print(json.dumps(census()), flush=True)  # noqa: T201 - it is a script


def main() -> None:
    options = json.loads(sys.argv[1])
    loop = options.pop("loop", "auto")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (options.pop("descriptors", most), most))
    server = options.pop("server", "wsdeco")
    app.add("/ws", Subject, **options)
    if server == "uvicorn":
        serve_plainly()
        return
    app.run(port=0, backlog=4096, loop=loop)


def serve_plainly() -> None:
    """Serve `plain` on uvicorn, with nothing of wsdeco in it."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(f"Serving http://127.0.0.1:{listener.getsockname()[1]}", flush=True)  # noqa: T201 - as the app does
        uvicorn.Server(uvicorn.Config(plain, log_level="warning")).run([listener])


if __name__ == "__main__":
    main()
