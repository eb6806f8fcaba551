"""A program that is restarted many times in a row, and what it has of the system meanwhile and afterwards."""

import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from typing import Final, Literal, NamedTuple

import psutil
from websockets.sync.client import connect, unix_connect

from tests.support.programs import PATIENCE, Program, wait_until

PROGRAM: Final = """
from wsdeco import ws

VERSION = "0"

@ws.handler("/ws", max_connections_total=100)
class Member:
    async def on_connect(self, addr, sink):
        ws.room("all").join(sink)
        await sink.send(VERSION)

    async def on_message(self, text):
        return text

ws.run(access_log=False, OPTIONS)
"""

QUIET: Final = 1.0
"""Seconds without a change after which what there is counts as all."""


class Restarted(NamedTuple):
    """What was measured.

    Attributes:
        seen: How many processes there have been.
        seconds: How long a restart took, at the mean.
        memory: Bytes by which the memory of the parent has grown since the first one.
        processes: How many there were after each.
        descriptors: How many these had.
    """

    seen: int
    seconds: float
    memory: int
    processes: int
    descriptors: int


class Family:
    """A program and the processes below it.

    Attributes:
        parent: The program.
        seen: All processes that there have been.
        shared: Memory with a name that they have had.
    """

    def __init__(self, program: Program) -> None:
        self.parent = psutil.Process(program.process.pid)
        self.seen: set[psutil.Process] = set()
        self.shared: set[str] = set()

    def belongings(self) -> Counter[tuple[str, str]]:
        """Return how many of each kind there are: processes, and behind them their descriptors."""
        found: Counter[tuple[str, str]] = Counter()
        for each in (self.parent, *self.parent.children(recursive=True)):
            self.seen.add(each)
            # Processes come and go.
            with suppress(psutil.Error, OSError):
                ended = each.status() == psutil.STATUS_ZOMBIE
                role = "nobody has waited for" if ended else re.sub(r"\d+", "#", " ".join(each.cmdline()))
                found[role, ""] += 1
                for descriptor in Path(f"/proc/{each.pid}/fd").iterdir():
                    found[role, re.sub(r"\d+", "#", str(descriptor.readlink()))] += 1
                maps = Path(f"/proc/{each.pid}/maps").read_text("utf-8")
                self.shared.update(re.findall(r"(/dev/shm/\S+)$", maps, re.MULTILINE))
        return found

    def settled(self) -> Counter[tuple[str, str]]:
        """Return the same as soon as it changes no more."""
        last, since = self.belongings(), time.monotonic()
        while time.monotonic() - since < QUIET:
            time.sleep(QUIET / 10)
            now = self.belongings()
            if now != last:
                last, since = now, time.monotonic()
        return last

    def left(self) -> list[str]:
        """Return what there still is of them: processes, and memory with a name."""
        return [*(repr(each) for each in self.seen if each.is_running()), *filter(os.path.exists, self.shared)]


def files_below(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if "__pycache__" not in path.parts}


@contextmanager
def member(address: str) -> Generator[str]:
    """Be connected, and know the version of the code that serves."""
    path = address.removeprefix("unix:")
    dialled = (
        connect(f"{address}/ws", proxy=None, open_timeout=PATIENCE)
        if path == address
        else unix_connect(path, "ws://localhost/ws", open_timeout=PATIENCE)
    )
    with dialled as connection:
        yield str(connection.recv(PATIENCE))


def restart(program: Program, source: Path, address: str, version: int) -> None:
    with member(address):
        if address.startswith("ws:"):
            program.send_signal(signal.SIGHUP)
        else:
            new = source.with_suffix(".new")
            new.write_text(re.sub(r"(?m)^VERSION = .*$", f'VERSION = "{version}"', source.read_text("utf-8")), "utf-8")
            new.replace(source)
        program.expect_words("the worker processes have been replaced")


def restart_again_and_again(directory: Path, kind: Literal["rolling", "reload"], times: int) -> Restarted:
    """Restart a program again and again, with a client each time, and check that nothing is left behind.

    Args:
        directory: An empty one.
        kind: `rolling`: two workers on a TCP port, with a broker, replaced by SIGHUP; `reload`: one that listens on a
            Unix socket, and is replaced since its code changes.
        times: How often, after a first time.
    """
    options = "port=0, workers=2" if kind == "rolling" else f"uds={str(directory / 'ws.sock')!r}, reload=True"
    source = directory / "program.py"
    source.write_text(dedent(PROGRAM).replace("OPTIONS", options), "utf-8")
    temporary = directory / "temporary"
    temporary.mkdir()
    files = files_below(directory)
    program = Program(directory, "program.py", environment={"TMPDIR": str(temporary)})
    family = Family(program)
    try:
        address = program.expect(r"(?:ws://|unix:)\S+")[0]
        program.expect("Press Ctrl-C to stop")
        restart(program, source, address, 1)
        belongings, memory, began = family.settled(), family.parent.memory_info().rss, time.monotonic()
        for number in range(2, times + 2):
            restart(program, source, address, number)
            wait_until(lambda: family.belongings() == belongings)
        seconds = (time.monotonic() - began) / times
        memory = family.parent.memory_info().rss - memory
        with member(address) as version:
            assert version == (str(times + 1) if kind == "reload" else "0")
        program.send_signal(signal.SIGTERM)
        ended = program.end()
    finally:
        program.discard()
    assert ended.code == 0, ended.errors
    assert "Traceback" not in ended.errors
    wait_until(lambda: family.left() == [])
    assert files_below(directory) == files
    if kind == "rolling":
        # Nobody listens any more.
        socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))).close()
    processes = sum(count for (_, target), count in belongings.items() if not target)
    return Restarted(len(family.seen), seconds, memory, processes, belongings.total() - processes)
