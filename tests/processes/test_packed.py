"""Programs that are packed: a zipapp, and what PyInstaller makes, run without a file of wsdeco beside them."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipapp
from pathlib import Path
from typing import Final

import pytest
from websockets.sync.client import connect

from tests.support.checkout import CHECKOUT

PROGRAM: Final = """
from wsdeco import ws

@ws.handler("/ws")
class Echo:
    async def on_message(self, text):
        return "packed " + text

ws.run(port=0, log_format="json")
"""


def check_program(command: list[str], folder: Path) -> None:
    """Run a packed program; talk to it, look at its console, and end it."""
    # What it prints is JSON, whose second line is never waited for.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            line = program.stdout.readline()
            http = line.partition('"http": "')[2].partition('"')[0]
            with connect(http.replace("http", "ws") + "/ws", proxy=None) as client:
                client.send("hello")
                assert client.recv(timeout=20) == "packed hello"
            with urllib.request.urlopen(f"{http}/docs", timeout=20) as page:  # noqa: S310 - of the program
                assert b"<title>" in page.read()
            program.send_signal(signal.SIGINT)
            program.wait(timeout=30)
        finally:
            program.kill()


def test_a_zipapp(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(CHECKOUT / "wsdeco", source / "wsdeco", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "__main__.py").write_text(PROGRAM)
    zipapp.create_archive(source, tmp_path / "app.pyz")
    shutil.rmtree(source)
    check_program([sys.executable, "app.pyz"], tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("PyInstaller") is None, reason="PyInstaller is not installed")
def test_pyinstaller(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "PyInstaller", "--onedir", "--log-level=ERROR", f"--paths={CHECKOUT}"]
    # The page of the console is data, which no analyser sees.
    subprocess.run([*command, "--collect-data=wsdeco", "app.py"], cwd=tmp_path, check=True, timeout=500)
    check_program([str(tmp_path / "dist" / "app" / "app")], tmp_path)
