"""A test file of a user's, written from the documentation alone, under each runner of asynchronous tests."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.checkout import CHECKOUT

APP = """
from wsdeco import ws


@ws.handler("/chat", idle_timeout=60)
class Chat:
    async def on_connect(self, addr, sink):
        ws.room("lobby").join(sink)

    async def on_message(self, text):
        await ws.room("lobby").broadcast(text.upper())
        ws.broadcast_nowait("/chat", "told")
"""

TESTS = """
{mark}
async def test_chat(ws_client, ws_broadcasts):
    async with ws_client(ws, "/chat") as ada, ws_client(ws, "/chat") as bob:
        await ada.send("hello")
        await bob.expect("HELLO")
        await bob.expect("told")
    assert ws_broadcasts == [("lobby", "HELLO"), ("/chat", "told")]


{mark}
async def test_who_is_silent_is_closed(ws_client, ws_clock):
    async with ws_client(ws, "/chat") as client:
        await ws_clock.advance(60)
        await client.expect_close(1001)
"""

ANYIO = """
import pytest
from app import ws

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""

LOOP_SCOPE = "asyncio_default_fixture_loop_scope=function"

PLAIN = """
import pytest
from app import ws
"""


def run(folder: Path, head: str, mark: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "app.py").write_text(dedent(APP))
    (folder / "test_app.py").write_text(dedent(head) + dedent(TESTS).format(mark=mark))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_wsdeco", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *options, "test_app.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("live", [(), ("--ws-live",)], ids=["memory", "live"])
@pytest.mark.parametrize(
    ("head", "mark", "options"),
    [
        (ANYIO, "@pytest.mark.anyio", ("-p", "no:asyncio")),
        (PLAIN, "@pytest.mark.asyncio", ("--asyncio-mode=strict", "-o", LOOP_SCOPE)),
        (PLAIN, "", ("--asyncio-mode=auto", "-o", LOOP_SCOPE)),
    ],
    ids=["anyio", "strict", "auto"],
)
def test_the_tests_of_a_user_pass(
    tmp_path: Path, head: str, mark: str, options: tuple[str, ...], live: tuple[str, ...]
) -> None:
    result = run(tmp_path, head, mark, *options, *live, "-W", "error")
    assert "2 passed" in result.stdout, result.stdout + result.stderr


def test_under_trio_it_says_what_to_write(tmp_path: Path) -> None:
    result = run(tmp_path, ANYIO.replace('"asyncio"', '"trio"'), "@pytest.mark.anyio", "-p", "no:asyncio")
    assert "2 failed" in result.stdout, result.stdout + result.stderr
    assert "wsdeco runs on asyncio, and no event loop of asyncio runs this test" in result.stdout
    assert 'let the fixture anyio_backend return "asyncio"' in result.stdout
