"""One file under several module names: a class that it defines replaces itself, another class does not."""

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.programs import Program, client, receive, wait_until
from wsdeco import App, RouteError
from wsdeco.testing import connect

MAIN = """
import uvicorn
from wsdeco import ws
import helper

@ws.handler("/ws")
class Echo:
    async def on_message(self, text: str) -> str:
        return f"{helper.GREETING} {text}"

@ws.route("/page")
def page(request):
    raise NotImplementedError

if __name__ == "__main__":
    uvicorn.run("main:ws", port=0, **OPTIONS)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start Python in the directory of the test; what is left of it is killed at the end."""
    started: list[Program] = []

    def start(*arguments: str) -> Program:
        started.append(Program(tmp_path, *arguments))
        return started[-1]

    yield start
    for each in started:
        for child in psutil.Process(each.process.pid).children(recursive=True) if each.process.poll() is None else ():
            child.kill()
        each.discard()


@pytest.mark.parametrize("options", [{}, {"reload": True}, {"workers": 2}], ids=["plain", "reload", "workers"])
def test_a_script_that_has_uvicorn_import_it_again(
    tmp_path: Path, program: Callable[..., Program], options: dict[str, Any]
) -> None:
    (tmp_path / "helper.py").write_text("GREETING = 'hello'\n")
    (tmp_path / "main.py").write_text(MAIN.replace("OPTIONS", repr(options)))
    running = program("main.py")
    url = uvicorn_url(running)
    with client(f"{url}/ws") as connection:
        connection.send("x")
        assert receive(connection) == "hello x"
    running.send_signal(signal.SIGINT)
    running.end()


def uvicorn_url(running: Program) -> str:
    """Return where it serves, once it does: its address is printed before anything listens there."""
    place = running.expect_words("running on http")[-1].partition("running on http://")[2].split()[0]
    host, _, port = place.partition(":")
    wait_until(lambda: is_open(host, int(port)))
    return f"ws://{place}"


def is_open(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_a_helper_that_imports_the_script(tmp_path: Path, program: Callable[..., Program]) -> None:
    (tmp_path / "helper.py").write_text("def greeting():\n    import main\n    return main.Echo.__module__\n")
    source = MAIN.partition("if __name__")[0].replace("helper.GREETING", "helper.greeting()")
    (tmp_path / "main.py").write_text(
        f"{source}\nif __name__ == '__main__':\n    print(helper.greeting(), ws.route_infos[0].name)\n"
    )
    ended = program("main.py").end()
    assert (ended.output, ended.errors) == ("main Echo\n", "")


def loaded(file: Path, name: str, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the file as a module of this name, whose handlers go to `app`."""
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    module.__dict__["app"] = app
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)


HANDLER = """
@app.handler("/ws")
class Echo:
    async def on_message(self, text: str) -> str:
        return __name__
"""


async def test_the_name_that_was_imported_last_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    file = tmp_path / "program.py"
    file.write_text(HANDLER)
    for name in ("__mp_main__", "program", "package.program"):
        loaded(file, name, app, monkeypatch)
    async with connect(app, "/ws") as wire:
        await wire.send("x")
        await wire.expect("package.program")
    assert len(app.route_infos) == 1


def test_the_same_name_in_another_file_is_refused_and_both_places_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App()
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(HANDLER)
    loaded(tmp_path / "one.py", "one", app, monkeypatch)
    with pytest.raises(RouteError, match=r"is taken: one\.Echo \(.*one\.py:2\) .* so two\.Echo \(.*two\.py:2\)"):
        loaded(tmp_path / "two.py", "two", app, monkeypatch)


def test_another_class_in_the_same_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    file = tmp_path / "program.py"
    file.write_text(HANDLER)
    loaded(file, "one", app, monkeypatch)
    file.write_text(HANDLER.replace("Echo", "Other"))
    with pytest.raises(RouteError, match=r"is taken: one\.Echo .* so two\.Other"):
        loaded(file, "two", app, monkeypatch)
