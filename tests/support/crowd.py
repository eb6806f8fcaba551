"""A server in a process of its own, and thousands of clients of bytes in this one, without a task for each."""

import json
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import psutil

from tests.support import raw
from tests.support.checkout import CHECKOUT
from tests.support.raw import Opcode

PATIENCE: Final = 60.0
"""Seconds after which a test that waits in vain fails."""
AT_ONCE: Final = 500
"""Handshakes that are sent before the first answer is read."""
CHUNK: Final = 256 * 1024
OTHERS: Final = 500
"""Descriptors of a process that are no clients: far more than there are."""


def room_for_clients(wanted: int) -> int:
    """Let this process open all the descriptors it may; return how many clients that gives, `wanted` at most."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return min(wanted, most - OTHERS)


class Client:
    """One connection, which does not block.

    Attributes:
        sock: The socket.
        status: The status of the response to the handshake, once it has come.
        answers: It answers pings and close frames.
        reads: It reads.
        opened_at: When the connection was made, by the monotonic clock.
        ended_at: When it ended.
        code: The code of the server's close frame; `None` without one.
        messages: Messages received.
        received: Bytes of these.
    """

    __slots__ = (
        "_unparsed",
        "answers",
        "code",
        "ended_at",
        "messages",
        "number",
        "opened_at",
        "reads",
        "received",
        "sock",
        "status",
    )

    def __init__(self, opened: socket.socket, number: int) -> None:
        self.sock = opened
        self.number = number
        self.status: int | None = None
        self.answers = True
        self.reads = True
        self.opened_at = time.monotonic()
        self.ended_at: float | None = None
        self.code: int | None = None
        self.messages = 0
        self.received = 0
        self._unparsed: bytes = b""

    def send(self, data: bytes) -> None:
        """Send, if the connection still stands."""
        with suppress(ConnectionError):
            self.sock.sendall(data)

    def reset(self) -> None:
        """End the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def take(self, data: bytes) -> Iterator[bytes]:
        """Take bytes from the server; return the payloads of messages."""
        data = self._unparsed + data
        if self.status is None:
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self._unparsed = data
                return
            self.status = int(head.split(b" ", 2)[1])
            data = rest if self.status == 101 else b""
        position = 0
        while len(data) - position >= 2:
            opcode, length, start = data[position] & 0x0F, data[position + 1], position + 2
            if length > 125:
                start += 2 if length == 126 else 8
                length = int.from_bytes(data[position + 2 : start]) if len(data) >= start else len(data)
            if len(data) < start + length:
                break
            payload = data[start : start + length]
            position = start + length
            if opcode == Opcode.CLOSE:
                self.code = int.from_bytes(payload[:2])
                if self.answers:
                    self.send(raw.frame(Opcode.CLOSE, payload))
            elif opcode == Opcode.PING:
                if self.answers:
                    self.send(raw.frame(Opcode.PONG, payload))
            else:
                self.messages += 1
                self.received += length
                yield payload
        self._unparsed = data[position:]


class Crowd:
    """Clients of one server.

    Attributes:
        clients: Those whose connections stand.
        ended: Those whose connections have ended.
        on_message: Called with each message of a client.
    """

    def __init__(self, port: int) -> None:
        self.clients: list[Client] = []
        self.ended: list[Client] = []
        self.on_message: Callable[[Client, bytes], object] = lambda client, payload: None
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._number = 0

    def dial(self, *, receive_buffer: int | None = None, host: str | None = None) -> Client:
        """Open a TCP connection, from an address of loopback."""
        opened = socket.socket()
        try:
            if receive_buffer is not None:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            # Each of these addresses has ports of its own; those of ended connections are taken for a minute.
            opened.bind((host or f"127.0.0.{2 + self._number // 5000 % 200}", 0))
            opened.settimeout(PATIENCE)
            opened.connect(("127.0.0.1", self._port))
        except BaseException:
            opened.close()
            raise
        client = Client(opened, self._number)
        self._number += 1
        self.clients.append(client)
        self._selector.register(opened, selectors.EVENT_READ, client)
        return client

    def enter(
        self, number: int, path: str = "/ws", *, receive_buffer: int | None = None, host: str | None = None
    ) -> list[Client]:
        """Open WebSocket connections; return those that were let in."""
        request = raw.handshake(path)
        inside: list[Client] = []
        for start in range(0, number, AT_ONCE):
            fresh = [self.dial(receive_buffer=receive_buffer, host=host) for _ in range(min(AT_ONCE, number - start))]
            for client in fresh:
                client.send(request)
            self.watch(lambda: all(client.status is not None or client.ended_at for client in fresh))  # noqa: B023
            inside += [client for client in fresh if client.status == 101]
        return inside

    def watch(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> bool:
        """Read what arrives, for some time, or until something is the case; return whether it is."""
        deadline = time.monotonic() + seconds
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for key, _ in self._selector.select(min(left, 0.05)):
                client: Client = key.data
                self._read(client)
        return True

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(CHUNK)
        except ConnectionError:
            data = b""
        if not data:
            self.drop(client)
            return
        for payload in client.take(data):
            self.on_message(client, payload)

    def stop_reading(self, client: Client) -> None:
        """Leave what comes for a client where it is."""
        self._selector.unregister(client.sock)
        client.reads = False

    def read_again(self, client: Client) -> None:
        """Read what has been left."""
        self._selector.register(client.sock, selectors.EVENT_READ, client)
        client.reads = True

    def drop(self, client: Client) -> None:
        """Close a client's socket."""
        client.ended_at = time.monotonic()
        if client.reads:
            self._selector.unregister(client.sock)
        client.sock.close()
        self.ended.append(client)

    def forget_ended(self) -> None:
        """Leave those in `clients` whose connections stand."""
        self.clients = [client for client in self.clients if client.ended_at is None]
        self.ended.clear()

    def drop_all(self) -> None:
        """Reset all connections that are left."""
        for client in self.clients:
            if client.ended_at is None:
                client.reset()
                self.drop(client)
        self.forget_ended()

    def close(self) -> None:
        """Reset all connections that are left, and make no more."""
        self.drop_all()
        self._selector.close()


@contextmanager
def crowd_of(port: int) -> Generator[Crowd]:
    """Make clients for a server, and close them at the end."""
    crowd = Crowd(port)
    try:
        yield crowd
    finally:
        crowd.close()


class SoakServer:
    """`tests.support.soak_server`, running.

    Attributes:
        port: Its TCP port.
        process: It, for what the operating system knows.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        self._log = directory / "stderr"
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.support.soak_server", json.dumps(options)],
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.process = psutil.Process(self._popen.pid)
        assert self._popen.stdout is not None
        banner = self._popen.stdout.readline().decode()
        assert "Serving" in banner, self.log
        self.port = int(banner.rsplit(":", 1)[1])

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text("utf-8")

    @property
    def resident(self) -> int:
        """Bytes of memory that it takes."""
        return self.process.memory_info().rss

    @property
    def descriptors(self) -> int:
        """Its open descriptors."""
        return self.process.num_fds()

    @property
    def seconds(self) -> float:
        """Processor time that it has taken."""
        times = self.process.cpu_times()
        return times.user + times.system

    def census(self) -> dict[str, Any]:
        """Return what `tests.support.soak_server` counts."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as peer:
            peer.sendall(b"GET /census HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: peer.recv(CHUNK), b""))
        census: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return census

    def at_rest(self) -> tuple[int, dict[str, Any]]:
        """Return what must be the same whenever there are no connections: descriptors, tasks, slots, objects."""
        census = self.census()
        kept = {name: census[name] for name in ("objects", "tasks", "slots", "members")}
        wait_for(lambda: not self.process.net_connections("tcp")[1:])
        return self.descriptors, kept

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        self._popen.send_signal(number)

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def end(self) -> tuple[int, Sequence[str]]:
        """Wait for the end; return the exit status and the lines it has printed."""
        output, _ = self._popen.communicate(timeout=PATIENCE)
        return self._popen.returncode, output.decode().splitlines()

    def kill(self) -> None:
        """End it by force, if it still runs."""
        if self.running():
            self._popen.kill()
        if self._popen.stdout is not None and not self._popen.stdout.closed:
            self._popen.communicate()


Serve: TypeAlias = Callable[..., SoakServer]
"""Starts a server, with the limits of its route as keywords."""


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for what nobody announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come in time"
        time.sleep(0.01)
