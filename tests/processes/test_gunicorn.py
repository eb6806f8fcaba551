"""wsdeco's protocol in gunicorn, as the README says it: real processes, real clients."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.checkout import CHECKOUT
from tests.support.crowd import PATIENCE, wait_for

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gunicorn") is None, reason="gunicorn is for Unix")

APP: Final = """
import asyncio

from wsdeco import ws
from wsdeco.channels.sink import channel_of
from wsdeco.channels.direct import DirectChannel

@ws.lifespan
async def lifespan(app):
    yield
    print("lifespan over", flush=True)

@ws.handler("/ws", close_timeout=1)
class Echo:
    async def on_connect(self, addr, sink):
        self.sink = sink
        self.direct = isinstance(channel_of(sink), DirectChannel)

    async def on_message(self, text):
        match text.split():
            case ["wait"]:
                await asyncio.Event().wait()
            case ["close", code]:
                await self.sink.close(int(code), "as you say")
            case ["direct"]:
                return str(self.direct)
            case _:
                return f"echo: {text}"

    async def on_disconnect(self, reason):
        print(f"left: {reason}", flush=True)
"""


def readme_worker() -> str:
    """Return the module of the README that has the worker class."""
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    found = re.search(r"```python\n(# worker\.py\n.*?)```", readme, re.DOTALL)
    assert found is not None
    return found[1]


class Gunicorn:
    """gunicorn with one worker.

    Attributes:
        url: The address of the route.
    """

    def __init__(self, directory: Path) -> None:
        (directory / "app.py").write_text(APP, "utf-8")
        (directory / "worker.py").write_text(readme_worker(), "utf-8")
        self._output = directory / "output"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            # It inherits the socket, so that nobody else can take the port meanwhile.
            descriptor = listener.fileno()
            command = [sys.executable, "-m", "gunicorn", "app:ws", "-k", "worker.WsdecoWorker"]
            with self._output.open("wb") as output:
                self._process = subprocess.Popen(
                    [*command, "--bind", f"fd://{descriptor}", "--graceful-timeout", "20"],
                    cwd=directory,
                    env={**os.environ, "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{directory}"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(descriptor,),
                )
            self.url = f"ws://127.0.0.1:{listener.getsockname()[1]}/ws"
        wait_for(lambda: "Application startup complete" in self.output or self._process.poll() is not None)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text("utf-8")

    def terminate(self) -> None:
        """Send what an operator sends."""
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        """Wait for the end; return the exit status."""
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        """End it by force, if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(PATIENCE)


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Gunicorn]:
    started = Gunicorn(tmp_path)
    yield started
    started.kill()


def ask(connection: ClientConnection, message: str) -> str | bytes:
    connection.send(message)
    return connection.recv(PATIENCE)


def close_code(connection: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as caught:
        connection.recv(PATIENCE)
    assert caught.value.rcvd is not None, caught.value
    return caught.value.rcvd.code, caught.value.rcvd.reason


def test_it_serves_and_lets_clients_go(gunicorn: Gunicorn) -> None:
    with connect(gunicorn.url, proxy=None) as connection:
        assert ask(connection, "hello") == "echo: hello"
        assert ask(connection, "direct") == "True"
        connection.send("close 4002")
        assert close_code(connection) == (4002, "as you say")
    with connect(gunicorn.url, proxy=None) as connection:
        assert ask(connection, "hello") == "echo: hello"
        connection.close(4001, "bye")
    wait_for(lambda: "left: closed by the client with 4001 (bye)" in gunicorn.output)
    with connect(gunicorn.url, proxy=None) as idle, connect(gunicorn.url, proxy=None) as stuck:
        assert ask(idle, "hello") == "echo: hello"
        stuck.send("wait")
        assert ask(idle, "hello") == "echo: hello"
        gunicorn.terminate()
        assert close_code(idle)[0] == 1012
        assert close_code(stuck)[0] == 1012
    assert gunicorn.end() == 0
    assert gunicorn.output.count("left: closed by the server with 1012") == 2
    assert "lifespan over" in gunicorn.output.split("left:")[-1]
    assert "Traceback" not in gunicorn.output
