"""The handler in the place of its app on the command line of a server: what the server says, and that it ends."""

import importlib.util
import os
from pathlib import Path
from typing import Final

import pytest

from tests.processes.test_gunicorn import readme_worker
from tests.support.checkout import CHECKOUT
from tests.support.programs import Program

APP: Final = """
from wsdeco import ws

@ws.handler("/ws")
class Echo:
    async def on_message(self, text):
        return text

ws.run()
"""

LINE: Final = "'Echo' of good is what an app serves, and no app itself: write good:ws in its place"

IS_UNIX: Final = importlib.util.find_spec("gunicorn") is not None


@pytest.mark.parametrize(
    ("command", "status"),
    [
        pytest.param(("uvicorn", "good:Echo", "--port", "0"), 1, id="uvicorn"),
        pytest.param(("wsdeco", "run", "good:Echo", "--port", "0"), 1, id="wsdeco run"),
        pytest.param(
            ("gunicorn", "good:Echo", "-k", "worker.WsdecoWorker", "--bind", "127.0.0.1:0"),
            3,
            id="gunicorn",
            marks=pytest.mark.skipif(not IS_UNIX, reason="gunicorn is for Unix"),
        ),
    ],
)
def test_it_says_what_to_write(tmp_path: Path, command: tuple[str, ...], status: int) -> None:
    (tmp_path / "good.py").write_text(APP, "utf-8")
    (tmp_path / "worker.py").write_text(readme_worker(), "utf-8")
    path = f"{CHECKOUT}{os.pathsep}{tmp_path}"
    ended = Program(tmp_path, "-m", *command, environment={"PYTHONPATH": path}).end()
    assert ended.code == status
    assert LINE in ended.errors
    if command[0] == "wsdeco":
        assert ended.errors.splitlines() == [LINE]
