"""A script for an installed wheel: the README's echo server starts, echoes one message and stops on SIGTERM.

Run it with the interpreter wsdeco is installed for, isolated from the checkout: `python -I tests/support/smoke.py`.
"""

import asyncio
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Final

from websockets.asyncio.client import ClientConnection, connect

import wsdeco

CHECKOUT: Final = Path(__file__).resolve().parent.parent.parent
PATIENCE: Final = 30.0
"""Seconds each step may take."""


def check_installation() -> None:
    package = Path(str(resources.files(wsdeco)))
    if package.is_relative_to(CHECKOUT):
        raise SystemExit(f"wsdeco comes from the checkout, not from an installed wheel: {package}")
    for name in ("py.typed", "console/page.html", ".agents/skills/wsdeco/SKILL.md"):
        if not (package / name).is_file():
            raise SystemExit(f"the wheel has no {name} in {package}")


def echo_server(port: int) -> str:
    """Return the first Python example of the README that runs a server, on `port`."""
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    for block in blocks:
        source, count = re.subn(r"\bws\.run\(\)", f"ws.run(port={port})", block)
        if count == 1:
            return source
    raise SystemExit("README.md has no Python example that calls ws.run()")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def connect_when_up(url: str, server: subprocess.Popen[bytes]) -> ClientConnection:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await connect(url, proxy=None)
        except OSError:
            if server.poll() is not None:
                raise SystemExit(f"the server ended with exit code {server.returncode} before it listened") from None
            if time.monotonic() > deadline:
                raise SystemExit(f"no server listens on {url} after {PATIENCE} seconds") from None
            await asyncio.sleep(0.05)


async def echo_one_message(url: str, server: subprocess.Popen[bytes]) -> None:
    message = "a message of the smoke test"
    async with asyncio.timeout(PATIENCE), await connect_when_up(url, server) as client:
        await client.send(message)
        async for received in client:
            if message in str(received):
                return
    raise SystemExit("the server closed the connection and echoed nothing")


def main() -> None:
    check_installation()
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "echo.py"
        script.write_text(echo_server(port), "utf-8")
        server = subprocess.Popen([sys.executable, "-I", str(script)], cwd=directory)
        try:
            asyncio.run(echo_one_message(f"ws://127.0.0.1:{port}/ws", server))
            server.send_signal(signal.SIGTERM)
            code = server.wait(PATIENCE)
        finally:
            server.kill()
            server.wait()
    if code != 0:
        raise SystemExit(f"the server ended with exit code {code} on SIGTERM, expected 0")
    print("smoke test passed")


if __name__ == "__main__":
    main()
