"""Rooms over several processes: real servers, real brokers, and many members that want every message once."""

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.support.brokers import BrokerProcess
from tests.support.stacks import WAIT, soon
from wsdeco.wire.outgoing import encode_message

FRAME: Final = len(encode_message("a00000"))

HANDSHAKE: Final = (
    b"GET /member HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Process:
    """One serving process."""

    def __init__(self, url: str, workers: int = 1) -> None:
        command = [sys.executable, "-m", "tests.support.room_process", url, str(workers)]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout is not None
        first = self.popen.stdout.readline()
        assert first.startswith("Serving http://127.0.0.1:"), first
        self.port = int(first.split()[1].rpartition(":")[2])
        self.left: Counter[str] = Counter()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        # Or the pipe would be full one day.
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if line.startswith("left: "):
                self.left[line.removeprefix("left: ").rstrip()] += 1

    def end(self, *, killed: bool = False) -> None:
        if self.popen.poll() is not None:
            return
        if killed:
            self.popen.kill()
        else:
            self.popen.terminate()
        self.popen.wait(WAIT)
        self._reading.join()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@asynccontextmanager
async def processes(url: str, number: int, workers: int = 1) -> AsyncGenerator[list[Process]]:
    started = await asyncio.gather(*(asyncio.to_thread(Process, url, workers) for _ in range(number)))
    try:
        yield started
    finally:
        for process in started:
            await asyncio.to_thread(process.end)


class Member:
    """A connection that reads messages of six characters, as plainly as possible: there are many of them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def next(self) -> str:
        frame = await self.reader.readexactly(FRAME)
        return frame[-6:].decode()

    async def read(self, names: str, count: int) -> dict[str, list[int]]:
        """Return the numbers of each name, when `count` messages of all have come."""
        got: dict[str, list[int]] = {name: [] for name in names}
        left = count
        while left:
            message = await self.next()
            if message[0] in got:
                got[message[0]].append(int(message[1:]))
                left -= 1
        return got


@asynccontextmanager
async def members(process: Process, number: int) -> AsyncGenerator[list[Member]]:
    async def join() -> Member:
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(HANDSHAKE)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return Member(reader, writer)

    joined = await asyncio.gather(*(join() for _ in range(number)))
    try:
        yield joined
    finally:
        for member in joined:
            member.writer.transport.abort()


async def say(speaker: ClientConnection, name: str, first: int, last: int) -> str:
    await speaker.send(f"{name} {first} {last}")
    return str(await soon(speaker.recv()))


async def speech(speaker: ClientConnection, name: str, messages: int) -> str:
    said = ""
    for first in range(0, messages, 100):
        said = await say(speaker, name, first, min(first + 100, messages))
    return said


async def meet(speaker: ClientConnection, name: str, *others: Member) -> None:
    """Let the speaker speak until the others hear it."""
    hearing = [asyncio.create_task(other.read(name, 1)) for other in others]
    async with asyncio.timeout(WAIT):
        number = 0
        while not all(task.done() for task in hearing):
            await say(speaker, name, number, number + 1)
            await asyncio.wait(hearing, timeout=0.01)
            number += 1


async def check_everybody_gets_everything(url: str, per_process: int, messages: int) -> None:
    async with AsyncExitStack() as stack:
        here, there = await stack.enter_async_context(processes(url, 2))
        rooms = [await stack.enter_async_context(members(process, per_process)) for process in (here, there)]
        speakers = [
            await stack.enter_async_context(connect(f"ws://127.0.0.1:{process.port}/speaker", proxy=None))
            for process in (here, there)
        ]
        await meet(speakers[0], "x", rooms[1][0])
        await meet(speakers[1], "y", rooms[0][0])
        reading = [asyncio.create_task(member.read("ab", messages)) for room in rooms for member in room]
        half = messages // 2
        said = await asyncio.gather(speech(speakers[0], "a", half), speech(speakers[1], "b", messages - half))
        assert set(said) == {f"{per_process} 0"}
        expected = {"a": list(range(half)), "b": list(range(messages - half))}
        async with asyncio.timeout(100):
            assert Counter(map(str, await asyncio.gather(*reading))) == {str(expected): 2 * per_process}
        # Nothing comes twice: the next message is the next one.
        await say(speakers[0], "z", 0, 1)
        nexts = [await soon(member.next()) for room in rooms for member in room]
        assert set(nexts) == {"z00000"}


async def test_every_member_of_two_processes_gets_every_message_once_and_in_order(broker: BrokerProcess) -> None:
    await check_everybody_gets_everything(broker.url, 200, 200)


@pytest.mark.soak
@pytest.mark.parametrize("messages", [1_000, 4_000])
async def test_many_messages_to_every_member_of_two_processes(broker: BrokerProcess, messages: int) -> None:
    await check_everybody_gets_everything(broker.url, 200, messages)


async def test_a_process_that_is_killed_takes_no_message_with_it(nats: BrokerProcess) -> None:
    async with AsyncExitStack() as stack:
        here, there, doomed = await stack.enter_async_context(processes(nats.url, 3))
        listeners = [await stack.enter_async_context(members(process, 20)) for process in (there, doomed)]
        speaker = await stack.enter_async_context(connect(f"ws://127.0.0.1:{here.port}/speaker", proxy=None))
        await meet(speaker, "x", listeners[0][0], listeners[1][0])
        reading = [asyncio.create_task(member.read("a", 1_000)) for member in listeners[0]]
        await say(speaker, "a", 0, 300)
        killing = asyncio.create_task(asyncio.to_thread(doomed.end, killed=True))
        for number in range(300, 1_000, 50):
            assert await say(speaker, "a", number, number + 50) == "0 0"
        await soon(killing)
        async with asyncio.timeout(60):
            assert await asyncio.gather(*reading) == [{"a": list(range(1_000))}] * 20


# The handle on people.


async def closed_with(member: Member) -> bytes:
    """Read to the end; return the payload of the close frame."""
    frame = await member.reader.readexactly(2)
    while frame[0] != 0x88:
        await member.reader.readexactly(frame[1])
        frame = await member.reader.readexactly(2)
    payload = await member.reader.readexactly(frame[1])
    # The answer, masked with zeros.
    member.writer.write(bytes((0x88, 0x80 | len(payload), 0, 0, 0, 0)) + payload)
    assert await member.reader.read() == b""
    return payload


async def check_everybody_is_kicked_once(served: list[Process], number: int) -> None:
    async with AsyncExitStack() as stack:
        rooms = [await stack.enter_async_context(members(process, number // len(served))) for process in served]
        speaker = await stack.enter_async_context(connect(f"ws://127.0.0.1:{served[0].port}/speaker", proxy=None))

        async def ask(command: str) -> str:
            await speaker.send(command)
            return str(await soon(speaker.recv()))

        while await ask("count") != str(number):  # noqa: ASYNC110 - nothing announces it
            # Workers may be connecting to the broker yet.
            await asyncio.sleep(0.01)
        reading = [asyncio.create_task(closed_with(member)) for room in rooms for member in room]
        assert 0 < int(await ask("close")) <= number
        async with asyncio.timeout(WAIT):
            assert Counter(await asyncio.gather(*reading)) == {b"\x0f\xa1kicked": number}
        assert await ask("count") == "0"
    for process in served:
        await asyncio.to_thread(process.end)
    left = sum((process.left for process in served), Counter[str]())
    assert left == {"closed by the server with 4001 (kicked)": number}


async def test_a_room_of_two_processes_is_closed_everywhere_once(broker: BrokerProcess) -> None:
    async with processes(broker.url, 2) as served:
        await check_everybody_is_kicked_once(served, 1000)


async def test_a_room_of_four_workers_is_closed_everywhere_once() -> None:
    async with processes("", 1, workers=4) as served:
        await check_everybody_is_kicked_once(served, 1000)
