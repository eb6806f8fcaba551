"""Servers as programs of their own, and the clients of the `websockets` library that talk to them."""

import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.checkout import CHECKOUT
from wsdeco import Address, App, DisconnectReason, Sink

PATIENCE: Final = 60.0
"""Seconds after which a test that waits in vain fails."""

NOTICE: Final = re.compile(
    r"^waiting up to \d+ s for connections, hooks and requests; another Ctrl-C ends the process at once\n", re.MULTILINE
)
"""What a program says if its end takes longer than a moment."""

RESTART: Final = "closed by the server with 1012 (service restart)"


def echo_app(path: str = "/ws", reply: str = "echo", **limits: Any) -> tuple[App, list[str]]:
    """Return an app with one handler, and the log of its events."""
    app = App()
    events: list[str] = []

    @app.handler(path, **limits)
    class Echo:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            events.append("connect")

        async def on_message(self, text: str) -> str:
            return f"{reply}: {text}"

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            events.append(str(reason))

    return app, events


@contextmanager
def client(url: str, *, trusted: ssl.SSLContext | None = None) -> Generator[ClientConnection]:
    if trusted is not None:
        # With TLS 1.3 tickets arrive while another thread of the client sends the request. OpenSSL does not let two
        # threads use one connection: now and then the request is lost.
        trusted.maximum_version = ssl.TLSVersion.TLSv1_2
    with connect(
        url, proxy=None, ssl=trusted, max_size=None, open_timeout=PATIENCE, close_timeout=PATIENCE
    ) as connection:
        yield connection


def receive(connection: ClientConnection) -> str | bytes:
    return connection.recv(PATIENCE)


def close_code(connection: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed) as caught:
        receive(connection)
    return None if caught.value.rcvd is None else caught.value.rcvd.code


@contextmanager
def taken_port() -> Generator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Ended:
    """What is left of a program.

    Attributes:
        code: The exit code.
        output: Its output.
        errors: What it wrote to stderr, but for the notice of an end that takes its time: on a busy machine any may.
        notice: That line, if it was written.
    """

    def __init__(self, code: int, output: str, errors: str) -> None:
        self.code = code
        self.output = output
        found = NOTICE.search(errors)
        self.notice = found[0] if found is not None else ""
        self.errors = errors.replace(self.notice, "", 1)


class Program:
    """Python with `arguments`, in a process of its own."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        stdin: IO[str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), **(environment or {})},
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        self.lines: list[str] = []

    def expect(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        with self._patience():
            while line := self.process.stdout.readline():
                self.lines.append(line)
                found = re.search(pattern, line)
                if found is not None:
                    return found
        ended = self.end()
        pytest.fail(f"the program did not print {pattern!r}: {ended.code}\n{ended.output}{ended.errors}")

    def read_error(self) -> str:
        assert self.process.stderr is not None
        with self._patience():
            return self.process.stderr.readline()

    def expect_error(self, pattern: str) -> list[str]:
        """Return the lines of stderr up to the one that is `pattern`, after its level if it has one."""
        assert self.process.stderr is not None
        lines: list[str] = []
        with self._patience():
            while line := self.process.stderr.readline():
                lines.append(line.rstrip("\n"))
                if re.fullmatch(rf"(?:[A-Z]+: +)?{pattern}", lines[-1]) is not None:
                    return lines
        pytest.fail(f"the program did not write {pattern!r} to stderr, but\n" + "\n".join(lines))

    def expect_words(self, words: str) -> list[str]:
        """Return the lines of stderr up to the one that has these words in it."""
        return self.expect_error(f".*{re.escape(words)}.*")

    @contextmanager
    def _patience(self) -> Generator[None]:
        """Kill the program if a wait for what it says takes too long: a read of a pipe has no timeout."""
        timer = threading.Timer(PATIENCE, self._kill_family)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _kill_family(self) -> None:
        # Its workers hold the pipe as well.
        with suppress(psutil.Error):
            for each in psutil.Process(self.process.pid).children(recursive=True):
                each.kill()
        self.process.kill()

    def url(self) -> str:
        return self.expect(r"ws://\S+")[0]

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> Ended:
        try:
            output, errors = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return Ended(self.process.returncode, "".join(self.lines) + output, errors)

    def discard(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the worker processes of a parent."""
    return [child for child in psutil.Process(pid).children() if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        # It has ended meanwhile.
        return False
