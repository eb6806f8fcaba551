"""Programs that are packed: a zipapp, and what PyInstaller makes, run without a file of wsdeco beside them."""

import importlib
import importlib.util
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
import zipapp
from pathlib import Path
from types import ModuleType
from typing import Final, NoReturn

import pytest
from websockets.sync.client import connect

from tests.support.checkout import CHECKOUT
from wsdeco import App, ServerError
from wsdeco.server.loading import Reference, reference_to

PROGRAM: Final = """
import os
import sys
from dataclasses import dataclass

from wsdeco import ws
from wsdeco.cli.main import main

@dataclass
class Say:
    text: str

@ws.handler("/ws")
class Echo:
    async def on_message(self, text):
        return f"packed {text} {os.getpid()}"

@ws.handler("/typed")
class Typed:
    async def on_message(self, message: Say) -> Say:
        return message

if sys.argv[1:] == ["routes"]:
    main(["routes", "--help"])
ws.run(port=0, log_format="json", workers=int(os.environ.get("WORKERS", "1")))
"""


NEEDS_PYINSTALLER: Final = pytest.mark.skipif(
    importlib.util.find_spec("PyInstaller") is None, reason="PyInstaller is not installed"
)


def check_program(command: list[str], folder: Path, workers: int = 1) -> None:
    """Run a packed program; talk to it, look at its console, and end it."""
    # What it prints is JSON, whose second line is never waited for.
    # Coverage finds no source of what is packed.
    own = ("PYTHONPATH", "COV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment["WORKERS"] = str(workers)
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            line = program.stdout.readline()
            http = line.partition('"http": "')[2].partition('"')[0]
            with connect(http.replace("http", "ws") + "/ws", proxy=None) as client:
                client.send("hello")
                said, _, pid = str(client.recv(timeout=20)).rpartition(" ")
                assert said == "packed hello"
                assert workers == 1 or int(pid) != program.pid
            with urllib.request.urlopen(f"{http}/docs", timeout=20) as page:  # noqa: S310 - of the program
                assert b"<title>" in page.read()
            program.send_signal(signal.SIGINT)
            assert program.wait(timeout=30) == 0
        finally:
            program.kill()


def test_a_zipapp(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(CHECKOUT / "wsdeco", source / "wsdeco", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "__main__.py").write_text(PROGRAM)
    zipapp.create_archive(source, tmp_path / "app.pyz")
    shutil.rmtree(source)
    check_program([sys.executable, "app.pyz"], tmp_path)


def test_a_worker_of_a_packed_program_is_the_program_and_gets_as_far_as_run(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()

    @app.handler("/ws")
    class Echo:
        async def on_message(self, text: str) -> str:
            return text

    def work() -> NoReturn:
        raise SystemExit("works")

    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(multiprocessing, "freeze_support", work)
    with pytest.raises(SystemExit, match="works"):
        app.run(port=0, workers=2)
    # The script is packed, and no file.
    main = ModuleType("__main__")
    main.__file__ = "/nowhere/app.py"
    vars(main)["app"] = app
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert reference_to(app) == Reference("__main__", "app")
    monkeypatch.delattr(sys, "frozen")
    with pytest.raises(ServerError, match="there is none here"):
        reference_to(app)


@NEEDS_PYINSTALLER
def test_pyinstaller_is_told_of_the_page_of_the_console() -> None:
    table = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))
    module, _, function = table["project"]["entry-points"]["pyinstaller40"]["hook-dirs"].partition(":")
    (folder,) = getattr(importlib.import_module(module), function)()
    # As PyInstaller does it, which finds the hook of a module by the name of the file.
    found = runpy.run_path(str(Path(folder, "hook-wsdeco.console.py")))
    pages = [(Path(source).name, Path(place)) for source, place in found["datas"]]
    assert pages == [("page.html", Path("wsdeco/console"))]


@NEEDS_PYINSTALLER
def test_pyinstaller_is_told_what_compiled_modules_import(tmp_path: Path) -> None:
    hook = runpy.run_path(str(CHECKOUT / "wsdeco" / "__pyinstaller" / "hook-wsdeco.py"))
    assert hook["hidden_imports"](tmp_path) == []
    (tmp_path / "_compiled__mypyc.cpython.so").touch()
    (tmp_path / "wire").mkdir()
    (tmp_path / "wire" / "hot.cpython.so").touch()
    source = (
        "from __future__ import annotations\nimport struct\nfrom json import dumps\nfrom websockets import frames, no\n"
    )
    (tmp_path / "wire" / "hot.py").write_text(source, "utf-8")
    (tmp_path / "cold.py").write_text("import colorsys", "utf-8")
    hidden = ["__future__", "json", "struct", "websockets", "websockets.frames", "wsdeco._compiled__mypyc"]
    assert hook["hidden_imports"](tmp_path) == hidden


OF_TESTS: Final = ("IPython", "fastapi", "granian", "hypercorn", "hypothesis", "pytest", "tkinter", "trio")
"""What some library would use if it were there, as it is where tests run: PyInstaller would pack all of it."""


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["--onedir", "--onefile"])
@NEEDS_PYINSTALLER
def test_pyinstaller(tmp_path: Path, form: str) -> None:
    (tmp_path / "app.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "PyInstaller", form, "--log-level=ERROR", f"--paths={CHECKOUT}"]
    command += [*(f"--exclude-module={name}" for name in OF_TESTS), "app.py"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=500)
    program = tmp_path / "dist" / "app" / "app" if form == "--onedir" else tmp_path / "dist" / "app"
    check_program([str(program)], tmp_path)
    check_program([str(program)], tmp_path, workers=2)
    shown = subprocess.run([program, "routes"], cwd=tmp_path, capture_output=True, check=True, text=True, timeout=60)
    assert shown.stdout.startswith("Usage: wsdeco routes")
