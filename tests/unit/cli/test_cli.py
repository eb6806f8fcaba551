"""The command line: which app it finds, what it refuses and how it says so, and that it serves."""

import re
import signal
import ssl
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import pytest

import wsdeco
from tests.support.programs import Program, client, receive, taken_port, workers_of
from wsdeco import App, launch
from wsdeco.cli.main import main
from wsdeco.compiled import FORM
from wsdeco.server import loading
from wsdeco.server.loading import Reference

APP: Final = """
from wsdeco import App

app = App()

@app.handler("/ws")
class Echo:
    async def on_message(self, text):
        return f"echo: {text}"
"""

DEFAULT_APP: Final = APP.replace("import App", "import ws").replace("app = App()", "").replace("@app", "@ws")

MAIN: Final = """
def main():
    app.run(port=0, background=False)

main()
app.run()

from wsdeco.server import foreground
from wsdeco.workers import process

foreground.NOTICE = 60
"""
"""Serves nothing while its module is imported, and says nothing on a machine that is busy."""


@pytest.fixture(autouse=True)
def fresh_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Import from where the test runs, and forget it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    modules, default = set(sys.modules), App()
    monkeypatch.setattr("wsdeco.ws", default)
    yield
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(path: str, source: str = APP) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(dedent(source), "utf-8")


def refusal(*arguments: str) -> tuple[object, str]:
    """Return the exit status, and what is said on stderr or as the reason of the exit."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return (1, caught.value.code) if isinstance(caught.value.code, str) else (caught.value.code, "")


# Which app it finds.


@pytest.mark.parametrize(
    ("path", "target", "reference"),
    [
        ("only.py", "only.py", Reference("only", "app")),
        ("only.py", "only.py:app", Reference("only", "app")),
        ("only.py", "only", Reference("only", "app")),
        ("only.py", "only:app", Reference("only", "app")),
        ("folder/only.py", "folder/only.py", Reference("only", "app")),
        ("pack/__init__.py", "pack/only.py", Reference("pack.only", "app")),
        ("pack/__init__.py", "pack.only:app", Reference("pack.only", "app")),
        ("two-words.py", "two-words.py", Reference("two-words", "app")),
    ],
)
def test_finds_the_app_of_a_file_or_module(path: str, target: str, reference: Reference) -> None:
    write(path)
    write("pack/only.py", APP + MAIN)
    app, found = loading.find(target)
    assert found == reference
    assert [info.path for info in app.route_infos] == ["/ws"]
    assert found.load() is app
    assert not loading.is_loading()


def test_finds_the_default_app_where_it_is_imported_and_where_it_is_not() -> None:
    write("default.py", DEFAULT_APP)
    assert loading.find("default.py") == (wsdeco.ws, Reference("default", "ws"))
    source = DEFAULT_APP.replace("from wsdeco import ws", "import wsdeco").replace(
        '@ws.handler("/ws', '@wsdeco.ws.handler("/'
    )
    write("other.py", source)
    assert loading.find("other.py") == (wsdeco.ws, Reference("other", None))


def test_finds_the_one_app_that_has_a_handler() -> None:
    write("several.py", f"{APP}\nempty = App()\nsame = app")
    _, found = loading.find("several.py")
    assert found == Reference("several", "same")


def test_finds_an_app_inside_of_something() -> None:
    write("inside.py", f"{APP}\nclass Site:\n    live = app")
    _, found = loading.find("inside.py:Site.live")
    assert found == Reference("inside", "Site.live")


@pytest.mark.parametrize(
    ("target", "source", "line"),
    [
        ("no.py", None, "there is no file 'no.py': write the path of a Python file, or the name of a module"),
        ("no", None, "there is no module 'no' in {} or where Python looks: is this the right folder?"),
        ("json.no", None, "there is no module 'json.no' in {} or where Python looks: is this the right folder?"),
        ("a b", None, "'a b' is neither a file nor a module: write app.py, package.module, or package.module:ws"),
        (
            "none.py",
            "x = 1",
            (
                "none.py has no app with a handler: write `from wsdeco import ws`, and decorate a class with "
                "@ws.handler('/ws')"
            ),
        ),
        (
            "two.py",
            APP + APP.replace("app", "admin"),
            "two.py has more than one app, admin, app: write two.py:admin, for instance",
        ),
        ("named.py:web", APP, "'web' of named is not there: it has app, so write named:app"),
        (
            "named2.py:Echo",
            APP,
            "'Echo' of named2 is a type and no App of wsdeco: it has app, so write named2:app",
        ),
        ("named2.py:no", APP + APP.replace("app", "b"), "'no' of named2 is not there: it has app, b"),
        (
            "named3.py:Echo",
            "Echo = 1",
            "'Echo' of named3 is a int and no App of wsdeco: it has no App at its top level",
        ),
        ("dot.ted.py", APP, "dot.ted.py cannot be imported, since a dot separates modules: rename it"),
    ],
)
def test_what_is_no_app_is_refused_in_one_line(target: str, source: str | None, line: str) -> None:
    if source is not None:
        write(target.partition(":")[0], source)
    assert refusal("run", target) == (1, line.format(Path.cwd()))


def test_a_name_that_is_taken_is_refused() -> None:
    write("json.py")
    write("sys.py")
    code, line = refusal("run", "json.py")
    assert code == 1
    assert re.fullmatch(
        r"json\.py cannot be imported, since there is another module 'json' \(.*__init__\.py\): rename the file", line
    )
    _, line = refusal("run", "sys.py")
    assert line == "sys.py cannot be imported, since there is another module 'sys' (built in): rename the file"


@pytest.mark.parametrize("target", ["broken.py", "broken"])
@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f():\n    raise ValueError('why')\nf()", "ValueError: why"),
        ("x = (", "SyntaxError: '(' was never closed (broken.py, line 1)"),
    ],
)
def test_what_a_module_raises_is_shown_from_there(target: str, source: str, line: str) -> None:
    write("broken.py", source)
    code, said = refusal("run", target)
    lines = said.splitlines()
    assert code == 1
    assert lines[-1] == f"{target} cannot be imported: {line}"
    assert "wsdeco" not in said
    assert "importlib" not in said
    assert any("broken.py" in each for each in lines[:2])


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "  run       Serve an app."),
        (["run"], "Error: Missing argument 'TARGET'."),
        (["serve"], "Error: No such command 'serve'."),
        (["run", "app.py", "--port", "x"], "Error: Invalid value for '--port': 'x' is no number from 0 to 65535"),
        (["run", "app.py", "--port", "70000"], "'--port': '70000' is no number from 0 to 65535"),
        (["run", "app.py", "--workers", "0"], "'--workers': '0' is no number from 1 to 1000"),
        (["run", "app.py", "--log-level", "loud"], "Invalid value for '--log-level': 'loud' is not one of "),
        (["run", "app.py", "--http2"], "Error: No such option"),
        (["run", "app.py", "--uds-permissions", "rw"], "'--uds-permissions': 'rw' are no permissions in octal, such"),
        (["run", "app.py", "--uds", "ws.sock", "--port", "1"], "uds takes the place of host and port: leave them out"),
        (["run", "app.py", "--host", ""], 'host must not be empty: write "127.0.0.1" for this machine alone'),
        (["run", "app.py", "--timeout-graceful-shutdown", "-1"], "timeout_graceful_shutdown must be 0 or more seconds"),
    ],
)
def test_a_wrong_command_line_has_status_2(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("app.py")
    assert refusal(*arguments) == (2, "")
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_a_port_that_is_taken_is_refused_in_the_words_of_a_command_line() -> None:
    write("app.py")
    with taken_port() as port:
        expected = f"port {port} on 127.0.0.1 is taken: stop what uses it, or add --port {port + 1}"
        for workers in ("1", "2"):
            assert refusal("run", "app.py", "--port", str(port), "--workers", workers) == (1, expected)


def test_what_uvicorn_refuses_is_not_laid_to_the_log_config(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("on purpose")

    write("app.py")
    monkeypatch.setattr("uvicorn.Config", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        refusal("run", "app.py")


def test_a_log_config_that_cannot_be_read_is_named() -> None:
    write("app.py")
    code, said = refusal("run", "app.py", "--log-config", "nope.json")
    assert code == 1
    assert said.startswith("log_config='nope.json' cannot be used: FileNotFoundError: ")


def test_help_shows_every_option_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal("run", "--help") == (0, "")
    said = capsys.readouterr().out
    for option in (
        "--host",
        "--port",
        "--workers",
        "--ssl-certfile",
        "--forwarded-allow-ips",
        "--root-path",
        "Where:",
        "TLS:",
        "How:",
        "examples:",
    ):
        assert option in said
    assert "wsdeco run app.py --workers 4 " in said
    assert "default: 8000" in " ".join(said.split())
    assert refusal("--version") == (0, "")
    assert re.fullmatch(rf"wsdeco \d+\.\d+\.\d+ \({FORM}\)\n", capsys.readouterr().out)


def test_options_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    write("app.py")
    calls: list[dict[str, Any]] = []

    def run(app: App, reference: Reference, host: str, port: int, **options: Any) -> None:
        calls.append({"host": host, "port": port} | options)

    monkeypatch.setattr(launch, "run_in_foreground", run)
    for name, value in {"HOST": "::1", "PORT": "81", "WSDECO_PORT": "82", "WSDECO_ACCESS_LOG": "false"}.items():
        monkeypatch.setenv(name, value)
    assert refusal("run", "app.py") == (0, "")
    assert refusal("run", "app.py", "--port", "83") == (0, "")
    common = {"host": "::1", "workers": 1, "access_log": False}
    assert calls == [common | {"port": 82}, common | {"port": 83}]


def test_routes_prints_paths_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    write(
        "app.py",
        """
        from wsdeco import App

        app = App()

        @app.handler("/ws", idle_timeout=60)
        class Echo:
            async def on_message(self, text):
                return text
        """,
    )
    assert refusal("routes", "app.py") == (0, "")
    assert capsys.readouterr().out == "ws  /ws  Echo  idle_timeout=1 min\n"


def test_options_are_those_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    write("app.py")
    calls: list[dict[str, Any]] = []

    def run(app: App, reference: Reference, host: str, port: int, **options: Any) -> None:
        calls.append({"reference": reference, "host": host, "port": port} | options)

    monkeypatch.setattr(launch, "run_in_foreground", run)
    assert refusal("run", "app.py") == (0, "")
    words = (
        "--host ::1 --port 80 --workers 4 --backlog 9 --root-path /live --forwarded-allow-ips * --ssl-certfile c "
        "--ssl-keyfile k --ssl-keyfile-password p --ssl-ca-certs a --ssl-cert-reqs optional "
        "--log-level info --log-config l --no-access-log "
        "--loop asyncio --timeout-graceful-shutdown 0.5 --drain-timeout 20 --drain-delay 2"
    )
    assert refusal("run", "app.py", *words.split()) == (0, "")
    monkeypatch.setenv("HOST", "chat.example")
    monkeypatch.setenv("PORT", "9000")
    assert refusal("run", "app.py", "--uds", "ws.sock", "--uds-permissions", "660") == (0, "")
    assert refusal("run", "app.py", "--fd", "3") == (0, "")
    place = {"reference": Reference("app", "app"), "host": "127.0.0.1", "port": 8000, "workers": 1}
    assert [calls.pop(), calls.pop()] == [{"fd": 3} | place, {"uds": "ws.sock", "uds_permissions": 0o660} | place]
    assert calls == [
        place,
        {
            "reference": Reference("app", "app"),
            "host": "::1",
            "port": 80,
            "workers": 4,
            "backlog": 9,
            "root_path": "/live",
            "forwarded_allow_ips": "*",
            "ssl_certfile": "c",
            "ssl_keyfile": "k",
            "ssl_keyfile_password": "p",
            "ssl_ca_certs": "a",
            "ssl_cert_reqs": ssl.CERT_OPTIONAL,
            "log_level": "info",
            "log_config": "l",
            "access_log": False,
            "loop": "asyncio",
            "timeout_graceful_shutdown": 0.5,
            "drain_timeout": 20.0,
            "drain_delay": 2.0,
        },
    ]


# That it serves.


def test_it_serves_until_a_signal(tmp_path: Path) -> None:
    write("app.py", APP + MAIN)
    with running(tmp_path) as program:
        url = program.url()
        program.expect("Press Ctrl-C to stop")
        with client(f"{url}/ws") as connection:
            connection.send("hello")
            assert receive(connection) == "echo: hello"
        assert workers_of(program.process.pid) == []
        program.send_signal(signal.SIGTERM)
        ended = program.end()
    assert (ended.code, ended.errors) == (0, "")


IN_WORKERS: Final = f"""{APP}
import multiprocessing
from pathlib import Path

from wsdeco.workers import process

process.LONGEST_DELAY = 0.1
if multiprocessing.parent_process() and Path("broken").exists():
    raise OSError("gone")
{MAIN}
"""


@contextmanager
def running(directory: Path, *options: str) -> Generator[Program]:
    arguments = "-m wsdeco run app.py --port 0 --no-access-log"
    program = Program(directory, *arguments.split(), *options)
    try:
        yield program
    finally:
        program.discard()


def test_what_no_worker_can_import_is_said_once(tmp_path: Path) -> None:
    write("app.py", IN_WORKERS)
    write("broken", "")
    with running(tmp_path, "--workers", "2") as program:
        ended = program.end()
    assert ended.code == 1
    assert ended.output == ""
    assert ended.errors.count("Traceback") == 1
    assert ended.errors.splitlines()[-1] == "app cannot be imported: OSError: gone"


def test_workers_serve_until_a_signal_and_what_a_new_one_cannot_import_is_said_once(tmp_path: Path) -> None:
    write("app.py", IN_WORKERS)
    with running(tmp_path, "--workers", "2") as program:
        url = program.url()
        program.expect("2 worker processes. Press Ctrl-C to stop")
        with client(f"{url}/ws") as connection:
            connection.send("hello")
            assert receive(connection) == "echo: hello"
        workers = workers_of(program.process.pid)
        assert len(workers) == 2
        write("broken", "")
        workers[0].kill()
        lines: list[str] = []
        while sum("could not start (exit status 1)" in line for line in lines) < 3:
            lines.append(program.read_error())
        program.send_signal(signal.SIGTERM)
        ended = program.end()
    assert ended.code == 0
    assert lines.count("app cannot be imported: OSError: gone\n") == 1
