"""The README: what it shows runs as it is pasted, in its order, and what it names is there."""

import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import click
import pytest
from playwright.async_api import Browser
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

import wsdeco
from tests.support.browser import open_browser, open_tab
from tests.support.checkout import CHECKOUT
from tests.support.programs import PATIENCE, Program, client, receive, wait_until
from tests.support.snippets import Block, blocks, check_types, import_as_pasted, run_tests, write_files
from wsdeco import App, ConnectionConfig
from wsdeco.cli.connect import command as connect_command
from wsdeco.cli.run import command as run_command

README: Final = (CHECKOUT / "README.md").read_text("utf-8")

OTHER_OPTIONS: Final = {"--help", "--no-cache-dir", "--timeout", "--workers", "--ws", "--ws-live"}
"""Options of pip, docker, uvicorn and pytest."""


SNIPPETS: Final = blocks(CHECKOUT / "README.md", "python")
SCRIPTS: Final = [each for each in SNIPPETS if "\nws.run()\n" in each.code]


def ids(block: Block) -> str:
    return block.file


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """All files of the README, beside each other."""
    return write_files(tmp_path, SNIPPETS)


@pytest.fixture
def ws(monkeypatch: pytest.MonkeyPatch) -> App:
    """The app of a program that has imported nothing else."""
    app = App()
    monkeypatch.setattr(wsdeco, "ws", app)
    return app


# What it looks like.


def test_it_is_short_and_begins_with_a_tutorial() -> None:
    lines = README.splitlines()
    assert len(lines) <= 450
    headings = [(number, line) for number, line in enumerate(lines, 1) if re.match(r"##? \w", line)]
    places = {line: number for number, line in headings if number not in range(5, 20)}
    assert places["## Testing"] <= 150
    order = ["Why, and why not", "Hooks and sink", "Recipes", "Testing", "Limits", "Production", "Reference"]
    order += ["Other servers", "For those who come from `websocket_builder`", "Benchmarks, changes, licence"]
    assert [line.removeprefix("## ") for line in places if line.startswith("## ")] == order


def test_its_links_and_pictures_are_tracked_files() -> None:
    links: list[str] = re.findall(r"\]\(([^)]+)\)", README)
    files = {link for link in links if not link.startswith(("https://", "#"))}
    assert "examples/chat.png" in files
    git = shutil.which("git")
    if git is not None and (CHECKOUT / ".git").exists():
        listed = subprocess.run([git, "ls-files"], cwd=CHECKOUT, capture_output=True, check=True, text=True)
        tracked = set(listed.stdout.splitlines())
    else:
        tracked = {file for file in files if (CHECKOUT / file).is_file()}
    assert files - tracked == set()


def test_its_pictures_are_small() -> None:
    assert (CHECKOUT / "examples" / "chat.png").stat().st_size < 100_000


def test_every_example_is_named() -> None:
    examples = {path.name for path in (CHECKOUT / "examples").glob("*.[pi][yp]*")} - {"echo_server.py"}
    assert sorted(name for name in examples if name not in README) == []


def test_every_limit_is_named() -> None:
    names = [field.name for field in dataclasses.fields(ConnectionConfig)]
    assert [name for name in names if f"`{name}`" not in README] == []


def test_every_option_it_names_is_there() -> None:
    known = set(OTHER_OPTIONS)
    for command in (run_command, connect_command):
        for option in command.params:
            if isinstance(option, click.Option):
                known |= {*option.opts, *option.secondary_opts}
    named: set[str] = set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", README))
    assert named - known == set()


def test_it_does_not_promise_what_is_not_published() -> None:
    assert re.findall(r"pip install '?wsdeco", README) == []


# What it shows.


@pytest.mark.parametrize("snippet", SNIPPETS, ids=ids)
def test_each_snippet_can_be_imported_as_pasted(
    snippet: Block, directory: Path, ws: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(directory), *sys.path])
    import_as_pasted(directory, snippet)
    assert (ws.route_infos != []) == (snippet in SCRIPTS or "import echo" in snippet.code)


def started(block: Block, directory: Path) -> Program:
    """Start a script of the README on a port that is free."""
    (directory / block.file).write_text(block.code.replace("ws.run()", "ws.run(port=0)"), "utf-8")
    return Program(directory, block.file)


TALKS: Final = {
    "/ws": ["< Welcome!", "> hello", "< Echo: hello"],
    "/sum": ['> {"numbers": [1, 2]}', '< {"total":3.0}'],
    "/chat": ["> hello"],
}
"""What a client says to each script (`>`), and hears (`<`)."""


@pytest.mark.parametrize("script", SCRIPTS, ids=ids)
def test_each_script_serves_until_it_is_told_to_end(script: Block, directory: Path) -> None:
    (path,) = re.findall(r'@ws\.handler\("([^"]+)"', script.code)
    program = started(script, directory)
    try:
        host = program.expect(r"ws://[^/\s]+")[0]
        with client(host + path) as connection:
            for line in TALKS[path]:
                if line.startswith(">"):
                    connection.send(line[2:])
                else:
                    assert receive(connection) == line[2:]
        program.send_signal(signal.SIGTERM)
        assert program.end().code == 0
    finally:
        program.discard()


def test_the_test_passes(directory: Path) -> None:
    assert "1 passed" in run_tests(directory, "test_echo.py")


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is a part of the extra dev")
def test_the_snippets_have_the_types_they_say(directory: Path) -> None:
    # uvicorn-worker has no types.
    check_types(directory, *(each.file for each in SNIPPETS if each.file != "worker.py"))


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


async def test_the_client_in_javascript_talks_from_the_page_that_it_is_pasted_into(
    browser: Browser, directory: Path
) -> None:
    (snippet,) = blocks(CHECKOUT / "README.md", "js")
    assert len(snippet.code.splitlines()) == 5
    program = started(SNIPPETS[0], directory)
    try:
        host = program.expect(r"ws://([^/\s]+)")[1]
        page, _ = await open_tab(await browser.new_context(), f"http://{host}/docs")
        pasted = snippet.code.replace("127.0.0.1:8000", host)
        async with page.expect_console_message(lambda message: message.text == "Echo: hello"):
            await page.evaluate(f"() => {{ {pasted} }}")
        async with page.expect_console_message(lambda message: message.text.startswith("closed with 1012")):
            program.send_signal(signal.SIGTERM)
        assert program.end().code == 0
    finally:
        program.discard()


# What it tells to write for a proxy.


@pytest.mark.parametrize(("removed", "status"), [("", 101), ("proxy_set_header Host $http_host;", 403)])
def test_the_lines_for_nginx_let_the_own_pages_in(removed: str, status: int, directory: Path) -> None:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx")
    (location,) = blocks(CHECKOUT / "README.md", "nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = started(SNIPPETS[0], directory)
    try:
        lines = location.code.replace("127.0.0.1:8000", program.expect(r"ws://([^/\s]+)")[1]).replace(removed, "")
        (directory / "nginx.conf").write_text(
            f"daemon off; master_process off; pid nginx.pid; error_log stderr; events {{}}\n"
            f"http {{ access_log off; server {{ listen 127.0.0.1:{port};\n{lines} }} }}\n",
            "utf-8",
        )
        with subprocess.Popen([nginx, "-p", str(directory), "-c", "nginx.conf"], stderr=subprocess.DEVNULL) as proxy:
            try:
                wait_until(lambda: accepts(port))
                assert status_by_name("example.com", port) == status
            finally:
                proxy.terminate()
    finally:
        program.discard()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def status_by_name(name: str, port: int) -> int:
    """Return the answer to a page of a site of this name, which is here."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as connection,
            connect(f"ws://{name}/ws", sock=connection, origin=Origin(f"http://{name}"), open_timeout=PATIENCE),
        ):
            return 101
    except InvalidStatus as exc:
        return exc.response.status_code
