"""Worker processes of other servers, whose rooms no broker joins."""

import importlib.util
import os
from pathlib import Path
from typing import Final

import pytest

from tests.support.checkout import CHECKOUT
from tests.support.programs import PATIENCE, Program

APP: Final = """
import logging
import sys

logging.basicConfig(stream=sys.stdout, format="%(message)s")

from wsdeco import ws


@ws.lifespan
async def lifespan(app):
    for _ in range(3):
        await ws.room("lobby").broadcast("x")
    print("lost:", ws.backplane.counters.lost if ws.backplane else None, flush=True)
    yield
"""

PROGRAM: Final = """
import uvicorn

if __name__ == "__main__":
    uvicorn.run("app:ws", port=0, workers=2, log_level="warning")
"""

WARNING: Final = (
    "rooms reach the connections of one worker process only: for all of them name a broker in WSDECO_BACKPLANE"
)

UVICORN: Final = ("-m", "uvicorn", "app:ws", "--port", "0", "--log-level", "warning")
GUNICORN: Final = ("-m", "gunicorn", "app:ws", "-k", "uvicorn_worker.UvicornWorker", "--bind", "127.0.0.1:0")


def lines(directory: Path, *command: str, lost: str, **environment: str) -> list[str]:
    """Return what a program has printed until it has said what was lost."""
    (directory / "app.py").write_text(APP, "utf-8")
    (directory / "program.py").write_text(PROGRAM, "utf-8")
    path = f"{CHECKOUT}{os.pathsep}{directory}"
    program = Program(directory, *command, environment={"PYTHONPATH": path, **environment})
    try:
        program.expect(f"lost: {lost}")
        return program.lines
    finally:
        program.process.terminate()
        program.process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        pytest.param((*UVICORN, "--workers", "2"), {}, id="uvicorn --workers"),
        pytest.param(UVICORN, {"WEB_CONCURRENCY": "2"}, id="WEB_CONCURRENCY"),
        pytest.param(("program.py",), {}, id="uvicorn.run"),
    ],
)
def test_workers_of_uvicorn_are_warned_that_rooms_are_split(
    tmp_path: Path, command: tuple[str, ...], environment: dict[str, str]
) -> None:
    printed = lines(tmp_path, *command, lost="3", **environment)
    assert any(WARNING in line for line in printed)


@pytest.mark.skipif(importlib.util.find_spec("gunicorn") is None, reason="gunicorn is for Unix")
def test_workers_of_gunicorn_are_warned_that_rooms_are_split(tmp_path: Path) -> None:
    printed = lines(tmp_path, *GUNICORN, "--workers", "2", lost="3")
    assert any(WARNING in line for line in printed)


@pytest.mark.parametrize("options", [(), ("--workers", "1"), ("--reload",)])
def test_one_process_is_not_warned(tmp_path: Path, options: tuple[str, ...]) -> None:
    printed = lines(tmp_path, *UVICORN, *options, lost="None")
    assert not any("rooms reach" in line for line in printed)


def test_a_broker_that_is_named_is_used(tmp_path: Path) -> None:
    printed = lines(tmp_path, *UVICORN, "--workers", "2", lost="0", WSDECO_BACKPLANE="redis://127.0.0.1:1")
    assert not any("rooms reach" in line for line in printed)
