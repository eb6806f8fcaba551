"""Drains: load balancers notice, rooms are warned, and clients leave one after the other."""

import asyncio
import multiprocessing
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any, Final

import httpx
import pytest
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed as PeerConnectionClosed

from tests.support.programs import PATIENCE, Program
from tests.support.recording import refusal, take_errors
from tests.support.stacks import Stack, soon, until
from wsdeco import Address, App, Close, ConnectionClosed, DisconnectReason, HandlerError, Sink
from wsdeco.server.listen import Listeners
from wsdeco.testing import ManualClock, connect
from wsdeco.workers.link import Link

pytestmark = pytest.mark.timeout(300)


def room_app(clock: ManualClock | None = None, **options: Any) -> tuple[App, list[tuple[float, str]]]:
    """Return an app, and when and why its connections have ended."""
    app = App(clock=clock, **options)
    ends: list[tuple[float, str]] = []

    @app.handler("/ws")
    class Member:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            app.room("all").join(sink)

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            ends.append((0 if clock is None else clock.time(), str(reason)))

    return app, ends


async def test_the_port_answers_rooms_are_warned_and_clients_leave_within_the_time(stack: Stack) -> None:
    clock = ManualClock()
    app, ends = room_app(clock)

    @app.on_drain
    async def warn() -> None:
        await app.room("all").broadcast("going down")

    async with stack.serve(app) as server, server.connect("/ws") as one, server.connect("/ws") as other:
        drain = asyncio.create_task(app.drain(7, delay=2.5))
        await until(lambda: app.is_closing)
        refused = await refusal(server, "/ws")
        assert (refused.status, refused.headers["retry-after"]) == (503, "10")
        assert [await soon(one.receive()), await soon(other.receive())] == ["going down", "going down"]
        await clock.advance(2.4)
        assert ends == []
        # Over a socket the loop has other things to do than what this clock waits for.
        await until(lambda: not drain.done())
        await clock.advance(0.1)
        await clock.advance(7)
        await soon(drain)
        for peer in (one, other):
            with pytest.raises(ConnectionClosed) as caught:
                await soon(peer.receive())
            assert caught.value.reason == Close(1012, "service restart; retry=7", by="server")
        await soon(app.shut_down())
    assert [reason for _, reason in ends] == ["closed by the server with 1012 (service restart; retry=7)"] * 2


async def test_a_thousand_clients_leave_evenly_and_in_random_order() -> None:
    clock = ManualClock()
    app, ends = room_app(clock)
    order: list[int] = []
    async with AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(connect(app, "/ws")) for _ in range(1000)]
        # Those who leave by themselves keep nobody waiting.
        for client in clients[::20]:
            await client.close()
        await clock.settle()
        drain = asyncio.create_task(app.drain(10))
        await clock.advance(10)
        await soon(drain)
        for place, client in enumerate(clients):
            if place % 20:
                order.append(place)
                with pytest.raises(ConnectionClosed):
                    await client.receive()
    told = [when for when, reason in ends if "1012" in reason]
    tenths = Counter(int(when) for when in told)
    assert len(told) == 950
    assert max(tenths.values()) <= 2 * 95
    assert sorted(tenths) == list(range(10))


async def test_the_order_is_not_that_of_their_arrival() -> None:
    clock = ManualClock()
    app, _ = room_app(clock)
    left: list[int] = []

    async def wait_for_end(place: int, client: Any) -> None:
        with pytest.raises(ConnectionClosed):
            await client.receive()
        left.append(place)

    async with AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(connect(app, "/ws")) for _ in range(50)]
        waiting = [asyncio.create_task(wait_for_end(place, client)) for place, client in enumerate(clients)]
        drain = asyncio.create_task(app.drain(5))
        await clock.advance(5)
        await soon(asyncio.gather(drain, *waiting))
    assert sorted(left) == list(range(50))
    assert left != sorted(left)


async def test_connections_that_leave_when_it_is_their_turn_are_passed_over() -> None:
    clock = ManualClock()
    app, ends = room_app(clock)
    async with connect(app, "/ws") as one, connect(app, "/ws") as other:
        drain = asyncio.create_task(app.drain(10))
        await clock.settle()
        await one.close()
        await other.close()
        await clock.advance(10)
        await soon(drain)
    assert len(ends) == 2


async def test_without_a_drain_the_function_is_called_before_the_connections_end() -> None:
    app, ends = room_app()
    called: list[int] = []

    @app.on_drain
    async def warn() -> None:
        called.append(len(ends))

    async with connect(app, "/ws") as peer:
        await asyncio.gather(app.shut_down(), app.shut_down())
        with pytest.raises(ConnectionClosed) as caught:
            await peer.receive()
    assert caught.value.reason == Close(1012, "service restart", by="server")
    assert called == [0]


async def test_a_function_that_fails_or_hangs_does_not_keep_the_drain(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    app, _ = room_app(clock)

    @app.on_drain
    async def fail() -> None:
        raise ValueError("no room")

    await app.drain()

    @app.on_drain
    async def hang() -> None:
        await asyncio.Event().wait()

    drain = asyncio.create_task(app.drain())
    await clock.advance(4.9)
    assert not drain.done()
    await clock.advance(0.2)
    await soon(drain)
    assert take_errors(caplog) == [
        ("wsdeco", "on_drain failed"),
        ("wsdeco", "on_drain has not ended within 5 s and is cancelled"),
    ]


async def plain_generator() -> Any:
    yield


async def one_parameter(app: App) -> None:
    """Take the app, as a lifespan does."""


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (plain_generator, "plain_generator is no async function"),
        (one_parameter, "one_parameter cannot be called without arguments"),
        (None, "NoneType is no async function"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(function: Callable[[], Any], fault: str) -> None:
    with pytest.raises(HandlerError, match=fault):
        App().on_drain(function)


async def test_health_says_when_to_come_back() -> None:
    app, _ = room_app(health="/health")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as http:
        await app.drain(0, 0.01)
        assert (await http.get("/health")).headers["retry-after"] == "1"


@pytest.mark.parametrize("value", [-1, "1", True, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["drain_timeout", "drain_delay"])
def test_a_time_that_is_none_is_refused(name: str, value: Any) -> None:
    app, _ = room_app()
    with pytest.raises((TypeError, ValueError), match=f"{name} must be (0 or more )?seconds"):
        app.run(**{name: value})


PROGRAM: Final = """
from wsdeco import ws, App
from pathlib import Path

ws = App(health="/health")

@ws.on_drain
async def warn():
    await ws.room("all").broadcast("going down")

@ws.handler("/ws", close_timeout=5)
class Member:
    async def on_connect(self, addr, sink):
        self.sink = sink
        ws.room("all").join(sink)

    async def on_message(self, text):
        return "x" * int(text)

    async def on_disconnect(self, reason):
        print(f"left: {reason}", flush=True)

ws.run(port=0, drain_timeout=2, drain_delay=0.3 WORKERS)
"""


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_signal_drains_the_server_and_nothing_unread_is_lost(workers: int, tmp_path: Path) -> None:
    source = PROGRAM.replace("WORKERS", "" if workers == 1 else f", workers={workers}")
    (tmp_path / "program.py").write_text(dedent(source), "utf-8")
    program = Program(tmp_path, "program.py")
    size = 300_000
    count = 40
    try:
        port = (await asyncio.to_thread(program.expect, r"ws://\S+:(\d+)"))[1]
        async with AsyncExitStack() as opened, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            dialled = [
                dial(f"ws://127.0.0.1:{port}/ws", proxy=None, max_size=None, open_timeout=PATIENCE, max_queue=1)
                for _ in range(count)
            ]
            clients = [await opened.enter_async_context(each) for each in dialled]
            for client in clients:
                await client.send(str(size))
                await client.send(str(size))
            assert (await http.get("/health")).status_code == 200
            program.send_signal(signal.SIGTERM)
            while (health := await http.get("/health")).status_code == 200:
                pass
            assert health.headers["retry-after"] == "3"

            async def read_all(client: Any) -> tuple[list[int], float, str]:
                sizes: list[int] = []
                try:
                    while True:
                        sizes.append(len(await client.recv()))
                except PeerConnectionClosed as closed:
                    reason = "" if closed.rcvd is None else closed.rcvd.reason
                return sizes, asyncio.get_running_loop().time(), reason

            ends = await asyncio.wait_for(asyncio.gather(*map(read_all, clients)), PATIENCE)
        ended = await asyncio.to_thread(program.end)
    finally:
        program.discard()
    # One worker warns the room, which reaches over all of them.
    assert [sorted(sizes) for sizes, _, _ in ends] == [[len("going down"), size, size]] * count
    assert {reason for _, _, reason in ends} == {"service restart; retry=2"}
    times = [when for _, when, _ in ends]
    # How even it is stands above; here a machine that does other things may hold several up.
    assert max(times) - min(times) > 1
    assert ended.code == 0
    assert ended.errors.count("Traceback") == 0
    assert ended.output.count("left: closed by the server with 1012 (service restart; retry=2)") == count


async def test_workers_whose_rooms_are_one_warn_once_and_others_each() -> None:
    told: list[str] = []

    async def function() -> None:
        told.append("warned")

    ours, theirs = multiprocessing.Pipe()
    server: Any = SimpleNamespace(loop=asyncio.get_running_loop(), is_replaced=False)
    link = Link(theirs, 1, Listeners("127.0.0.1", 0, []))
    ended = asyncio.Event()

    def end() -> None:
        server.loop.call_soon_threadsafe(ended.set)

    link.obey(server, end)
    ours.send("follow")
    await soon(ended.wait())
    # Without a broker it follows nobody.
    await link.warn(function)
    assert ours.recv() == ("warned", None)
    link.rooms_are_one = True
    following = asyncio.create_task(link.warn(function))
    ours.send("warned")
    await soon(following)
    ours.close()
    await until(lambda: all(each.name != "wsdeco-link" for each in threading.enumerate()))
    assert told == ["warned"]
