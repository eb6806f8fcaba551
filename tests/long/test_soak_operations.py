"""Deploys that nobody notices, with as many clients as a deploy has: `python -m pytest -m soak`.

`pytest -s` shows what was measured.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any, Final, Literal

import psutil
import pytest
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.long.test_soak import measured
from tests.support.programs import PATIENCE, Program
from tests.support.restarts import restart_again_and_again
from tests.support.stacks import until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

CLIENTS: Final = 1000
SECONDS: Final = 20
"""How long the drain takes."""

DRAINING: Final = f"""
from wsdeco import ws

left = 0

@ws.handler("/ws", max_connections=2000)
class Member:
    async def on_message(self, text):
        return "x" * int(text)

    async def on_disconnect(self, reason):
        global left
        left += 1

@ws.lifespan
async def lifespan(app):
    yield
    print(f"left: {{left}}", flush=True)

ws.run(port=0, drain_timeout={SECONDS}, access_log=False)
"""

PLAIN: Final = """
import os

async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/pid":
        await send({"type": "websocket.send", "text": f"worker {os.getpid()}"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": "x" * int(event["text"])})

if __name__ == "__main__":
    import socket
    import uvicorn

    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(f"ws://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        # Nobody reads what it would log of each connection.
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])
"""
"""For uvicorn as it comes."""

CHANGING: Final = """
import time
from wsdeco import ws

VERSION = "0"

@ws.handler("/ws")
class Member:
    async def on_connect(self, addr, sink):
        await sink.send(VERSION)

    async def on_message(self, text):
        while True:
            time.sleep(0.01)

ws.run(port=0, reload=True, access_log=False)
"""

ROLLING: Final = """
import os

from wsdeco import ws

@ws.handler("/ws")
class Member:
    async def on_connect(self, addr, sink):
        self.sink = sink
        ws.room("all").join(sink)
        await sink.send(f"worker {os.getpid()}")

    async def on_message(self, text):
        await ws.room("all").broadcast(text, exclude=self.sink)
        return f"said {text}"

ws.run(port=0, workers=4, access_log=False, drain_timeout=2)
"""

KILLED: Final = """
import os

from wsdeco import ws

@ws.handler("/pid")
class Member:
    async def on_connect(self, addr, sink):
        await sink.send(f"worker {os.getpid()}")

    async def on_message(self, text):
        return "x" * int(text)

ws.run(port=0, workers=4, access_log=False)
"""


@contextmanager
def running(directory: Path, source: str, *arguments: str) -> Generator[Program]:
    (directory / "program.py").write_text(dedent(source), "utf-8")
    program = Program(directory, *(arguments or ("program.py",)))
    try:
        yield program
    finally:
        left = psutil.Process(program.process.pid).children(recursive=True) if program.process.poll() is None else []
        program.discard()
        _, alive = psutil.wait_procs(left, PATIENCE)
        assert alive == []


def uvicorn_url(program: Program) -> str:
    line = program.expect_words("Uvicorn running on")[-1]
    return line.partition("http")[2].partition(" ")[0].replace("://", "ws://")


async def drained(program: Program, url: str) -> tuple[list[tuple[int, float, str]], Counter[int]]:
    """Connect, send SIGTERM, and return of each client the bytes it got, when it was told to go, and the reason."""
    clients = [await dial(f"{url}/ws", proxy=None, open_timeout=PATIENCE) for _ in range(CLIENTS)]
    for client in clients:
        # Read when the drain has begun.
        await client.send("20000")
    program.send_signal(signal.SIGTERM)
    began = time.monotonic()

    async def read_all(client: Any) -> tuple[int, float, str]:
        size = 0
        try:
            while True:
                size += len(await client.recv())
        except ConnectionClosed as closed:
            return size, time.monotonic() - began, "" if closed.rcvd is None else closed.rcvd.reason

    ends = await asyncio.gather(*map(read_all, clients))
    tenths = Counter(min(9, int(when * 10 / SECONDS)) for _, when, _ in ends)
    measured(
        "drain",
        clients=CLIENTS,
        seconds=round(max(when for _, when, _ in ends), 1),
        in_each_tenth=[tenths[each] for each in range(10)],
        lost=sum(size < 20_000 for size, _, _ in ends),
    )
    return ends, tenths


async def test_a_drain_of_a_thousand_clients_is_even_and_loses_nothing(tmp_path: Path) -> None:
    with running(tmp_path, DRAINING) as program:
        ends, tenths = await drained(program, await asyncio.to_thread(program.url))
        ended = await asyncio.to_thread(program.end)
    assert {size for size, _, _ in ends} == {20_000}
    assert {reason for _, _, reason in ends} == {f"service restart; retry={SECONDS}"}
    assert max(tenths.values()) <= 2 * CLIENTS / 10
    assert min(tenths[each] for each in range(10)) > 0
    assert ended.code == 0
    assert "Traceback" not in ended.errors
    assert f"left: {CLIENTS}\n" in ended.output


async def test_uvicorn_tells_a_thousand_clients_at_once(tmp_path: Path) -> None:
    with running(tmp_path, PLAIN) as program:
        await drained(program, await asyncio.to_thread(program.url))
        await asyncio.to_thread(program.end)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["rolling", "reload"])
def test_a_hundred_restarts_in_a_row_leave_nothing_behind(kind: Literal["rolling", "reload"], tmp_path: Path) -> None:
    restarted = restart_again_and_again(tmp_path, kind, 100)
    measured(f"a hundred restarts, {kind}", **restarted._asdict())
    assert restarted.memory < 4 << 20


async def test_changed_code_serves_soon_in_spite_of_a_hundred_connections_and_a_stuck_hook(tmp_path: Path) -> None:
    seconds: list[float] = []
    with running(tmp_path, CHANGING) as program:
        url = await asyncio.to_thread(program.url)
        await asyncio.to_thread(program.expect, "Press Ctrl-C")
        source = tmp_path / "program.py"
        for version in "12345":
            clients = [await dial(f"{url}/ws", proxy=None, open_timeout=PATIENCE) for _ in range(100)]
            await clients[0].send("stick")
            source.write_text(source.read_text("utf-8").replace(f'"{int(version) - 1}"', f'"{version}"'), "utf-8")
            began = time.monotonic()
            while True:
                # The loop of the old process is stuck, so one that it has taken gets no answer.
                with suppress(OSError, InvalidHandshake, ConnectionClosed):
                    async with dial(f"{url}/ws", proxy=None, open_timeout=0.2) as client:
                        if await client.recv() == version:
                            break
            seconds.append(time.monotonic() - began)
            await asyncio.to_thread(program.expect_words, "the worker processes have been replaced")
            for client in clients:
                await client.close()
        program.send_signal(signal.SIGTERM)
        await asyncio.to_thread(program.end)
    measured("changed code", seconds=[round(each, 2) for each in seconds])
    assert max(seconds) < 2


class Members:
    """The members of a room, who come back when they are told to leave; a handshake that is refused fails.

    Attributes:
        over: Set at the end.
        received: The numbers that each connection has received.
        workers: Those that have accepted one.
        said: The last number that was broadcast.
        unanswered: Numbers that may not have been.
        handshakes: How many there were.
    """

    def __init__(self, url: str) -> None:
        self.over = asyncio.Event()
        self.received: list[list[int]] = []
        self.workers: set[str] = set()
        self.said = 0
        self.unanswered: set[int] = set()
        self.handshakes = 0
        self._url = url

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Any]:
        async with dial(f"{self._url}/ws", proxy=None, open_timeout=PATIENCE) as client:
            self.handshakes += 1
            self.workers.add(str(await client.recv()))
            yield client

    async def listen(self) -> None:
        while not self.over.is_set():
            numbers: list[int] = []
            self.received.append(numbers)
            async with self._connected() as client:
                with suppress(ConnectionClosed):
                    while not self.over.is_set():
                        numbers.append(int(await asyncio.wait_for(client.recv(), PATIENCE)))

    async def talk(self) -> None:
        while not self.over.is_set():
            async with self._connected() as client:
                try:
                    while not self.over.is_set():
                        self.said += 1
                        await client.send(str(self.said))
                        await asyncio.wait_for(client.recv(), PATIENCE)
                        await asyncio.sleep(0.005)
                except ConnectionClosed:
                    self.unanswered.add(self.said)

    async def knock(self) -> None:
        while not self.over.is_set():
            async with self._connected():
                await asyncio.sleep(0.01)

    def missed(self) -> int:
        # Of what two workers publish in one moment the later may come first, and the end between them.
        return sum(
            len(set(range(min(numbers), max(numbers) - 1)) - set(numbers) - self.unanswered)
            for numbers in self.received
            if numbers
        )


async def test_a_rolling_restart_of_four_workers_refuses_nobody_and_rooms_miss_nothing(tmp_path: Path) -> None:
    with running(tmp_path, ROLLING) as program:
        members = Members(await asyncio.to_thread(program.url))
        await asyncio.to_thread(program.expect, "4 worker processes")
        work = [*(members.listen() for _ in range(40)), members.talk(), members.knock(), members.knock()]
        tasks = [asyncio.create_task(each) for each in work]
        await until(lambda: len(members.workers) == 4)
        program.send_signal(signal.SIGHUP)
        while "have been replaced" not in (line := await asyncio.to_thread(program.read_error)):
            assert line
        said = members.said
        await until(lambda: members.said > said + 100)
        members.over.set()
        await asyncio.gather(*tasks)
        program.send_signal(signal.SIGTERM)
        ended = await asyncio.to_thread(program.end)
    measured(
        "rolling restart",
        workers=len(members.workers),
        handshakes=members.handshakes,
        broadcasts=members.said,
        received=sum(map(len, members.received)),
        missed=members.missed(),
    )
    assert len(members.workers) == 8
    assert members.missed() == 0
    assert all(len(set(numbers)) == len(numbers) for numbers in members.received)
    assert ended.code == 0


async def test_uvicorn_restarts_four_workers_one_by_one_as_well(tmp_path: Path) -> None:
    options = ("--port", "0", "--workers", "4")
    with running(tmp_path, PLAIN, "-m", "uvicorn", "program:app", *options) as program:
        url = await asyncio.to_thread(uvicorn_url, program)
        for _ in range(4):
            await asyncio.to_thread(program.expect_words, "Application startup complete")
        seen: set[str] = set()
        told: list[float] = []
        refused: Counter[str] = Counter()
        over, handshakes = asyncio.Event(), 0

        async def stay() -> None:
            with suppress(ConnectionClosed):
                async with dial(f"{url}/pid", proxy=None, open_timeout=PATIENCE) as client:
                    seen.add(str(await client.recv()))
                    await client.recv()
            told.append(time.monotonic())

        async def knock() -> None:
            nonlocal handshakes
            while not over.is_set():
                handshakes += 1
                try:
                    async with dial(f"{url}/pid", proxy=None, open_timeout=PATIENCE) as client:
                        seen.add(str(await client.recv()))
                        await asyncio.sleep(0.01)
                except (OSError, InvalidHandshake, ConnectionClosed) as exc:
                    refused[type(exc).__name__] += 1

        tasks = [asyncio.create_task(each) for each in (*(stay() for _ in range(40)), knock(), knock())]
        await until(lambda: len(seen) == 4)
        program.send_signal(signal.SIGHUP)
        began = time.monotonic()
        for _ in range(4):
            await asyncio.to_thread(program.expect_words, "Application startup complete")
        over.set()
        await asyncio.gather(*tasks)
        program.send_signal(signal.SIGTERM)
        await asyncio.to_thread(program.end)
    measured(
        "rolling restart of uvicorn",
        workers=len(seen),
        handshakes=handshakes,
        refused=dict(refused),
        seconds=round(max(told) - began, 1),
    )


async def kill_one(url: str, server: str) -> Counter[str]:
    """Kill one of four workers that talk with a hundred clients; return how many lost their connection, by worker."""
    over = asyncio.Event()
    answered: Counter[str] = Counter()
    broken: Counter[str] = Counter()

    async def talk() -> None:
        async with dial(f"{url}/pid", proxy=None, open_timeout=PATIENCE) as client:
            worker = str(await client.recv())
            try:
                while not over.is_set():
                    await client.send("10")
                    assert await asyncio.wait_for(client.recv(), PATIENCE) == "x" * 10
                    answered[worker] += 1
                    await asyncio.sleep(0.01)
            except ConnectionClosed:
                broken[worker] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(talk())
        await until(lambda: answered.total() > 1000)
        before = set(answered)
        while len(before) < 4:
            # The system gives a client to one of them.
            async with dial(f"{url}/pid", proxy=None, open_timeout=PATIENCE) as client:
                before.add(str(await client.recv()))
        victim = min(answered)
        os.kill(int(victim.split()[1]), signal.SIGKILL)
        began = time.monotonic()
        new = victim
        while new in before:
            with suppress(OSError, InvalidHandshake, ConnectionClosed):
                async with dial(f"{url}/pid", proxy=None, open_timeout=1) as client:
                    new = str(await client.recv())
        replaced_after = time.monotonic() - began
        said = answered.total()
        await until(lambda: answered.total() > said + 1000)
        over.set()
    measured(
        f"R12 {server}",
        workers=len(before),
        answered=answered.total(),
        lost_with_the_worker=broken.pop(victim, 0),
        lost_with_others=broken.total(),
        replaced_after=f"{replaced_after:.2f} s",
    )
    assert replaced_after < 5
    return broken


async def test_one_of_four_workers_is_killed_under_load(tmp_path: Path) -> None:
    with running(tmp_path, KILLED) as program:
        url = await asyncio.to_thread(program.url)
        await asyncio.to_thread(program.expect, "4 worker processes")
        assert await kill_one(url, "wsdeco") == {}
        program.send_signal(signal.SIGTERM)
        await asyncio.to_thread(program.end)


async def test_one_of_four_workers_of_uvicorn_is_killed_under_load(tmp_path: Path) -> None:
    with running(tmp_path, PLAIN, "-m", "uvicorn", "program:app", "--workers", "4", "--port", "0") as program:
        url = await asyncio.to_thread(uvicorn_url, program)
        for _ in range(4):
            await asyncio.to_thread(program.expect_words, "Application startup complete")
        await kill_one(url, "uvicorn")
        program.send_signal(signal.SIGTERM)
        await asyncio.to_thread(program.end)
