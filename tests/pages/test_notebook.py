"""The notebook of the examples, and another one, executed by a real Jupyter kernel: one, as each takes seconds.

Its plot is seen by a browser, as JupyterLab shows it.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import pytest
from playwright.async_api import Page
from starlette.responses import HTMLResponse

import wsdeco
from tests.support.browser import open_browser, open_tab
from tests.support.checkout import CHECKOUT
from tests.support.stacks import until
from wsdeco import App
from wsdeco.compiled import FORM

PATIENCE: Final = 60
"""Seconds that one cell may take."""

EXECUTE: Final = f"""
import sys

import nbclient
import nbformat

notebook = nbformat.read(sys.stdin, as_version=4)
nbclient.NotebookClient(notebook, timeout={PATIENCE}, kernel_name="python3").execute()
nbformat.write(notebook, sys.stdout)
"""
"""Executes a notebook from stdin to stdout: in a process of its own, since a Jupyter client leaves threads behind."""


def execute(directory: Path, *sources: str) -> list[dict[str, Any]]:
    """Return what each cell of a notebook has put out: `text` on stdout, `repr` and `html` of its last expression."""
    cells: list[dict[str, object]] = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"cell-{number}",
            "metadata": {},
            "outputs": [],
            "source": dedent(source).strip(),
        }
        for number, source in enumerate(sources)
    ]
    notebook: dict[str, object] = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    executed = subprocess.run(
        [sys.executable, "-c", EXECUTE],
        # The kernel is the one that this Python's ipykernel brings, and nobody's home is touched.
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **{place: str(directory / place) for place in places}},
        input=json.dumps(notebook),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        cwd=directory,
    )
    if executed.returncode != 0:
        pytest.fail(executed.stderr)
    return [put_out(cell["outputs"]) for cell in json.loads(executed.stdout)["cells"]]


KINDS: Final = {"repr": "text/plain", "html": "text/html"}


def put_out(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    # The log goes to stderr, by the thread of the server, to whichever cell runs.
    text = "".join("".join(each["text"]) for each in outputs if each.get("name") == "stdout")
    results = [each["data"] for each in outputs if each["output_type"] == "execute_result"]
    shown = {name: "".join("".join(each.get(kind, ())) for each in results) for name, kind in KINDS.items()}
    return {"text": text, **shown}


EXAMPLE: Final[list[str]] = [
    "".join(cell["source"])
    for cell in json.loads((CHECKOUT / "examples" / "notebook.ipynb").read_text("utf-8"))["cells"]
    if cell["cell_type"] == "code"
]
"""The cells of the example."""

CLIENT: Final = """
import subprocess, sys

client = subprocess.Popen(
    [sys.executable, "-m", "wsdeco", "connect", server.url + "/plot"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
)

def say(text):
    print(text, file=client.stdin)
    return client.stdout.readline()

print(say("hello"))
"""
"""Connects from another process."""

FAIL_TO_START: Final = """
import socket

with socket.create_server(("127.0.0.1", 0)) as other:
    try:
        ws.run(port=other.getsockname()[1])
    except Exception as exc:
        print(type(exc).__name__)
"""

DEFINE_AND_RUN: Final = """
    from wsdeco import ws

    left = []

    @ws.handler("/ws")
    class Echo:
        async def on_message(self, text):
            return {reply}

        async def on_disconnect(self, reason):
            left.append(str(reason))

    server = ws.run(port={port})
    port = server.port
"""

TALK: Final = """
    from websockets.sync.client import connect

    with connect(server.url + "/ws", proxy=None) as client:
        client.send("hello")
        print(client.recv())
"""


def test_a_notebook(tmp_path: Path) -> None:
    define, start, plot, push, again, stop = EXAMPLE
    start = start.replace("ws.run()", "ws.run(port=0)")
    cells = {
        # The example, whose client lives in another process.
        "define": define,
        "start": start,
        "hello": CLIENT,
        "plot": plot,
        "push": push.replace("100", "2"),
        "pushed": 'print(client.stdout.readline(), client.stdout.readline(), say("more"))',
        "redefine": again,
        "redefined": 'print(say("hello"))',
        "port taken": FAIL_TO_START,
        "still there": 'print(server.running, say("still here"))',
        "stop": stop,
        "stopped": "print(reached, client.stdout.read(), client.wait(30))",
        "start again": start,
        # Cells that define and run, whose clients live in the kernel.
        "define and run": DEFINE_AND_RUN.format(reply="text", port="server.port"),
        "talk": TALK,
        "stay": """
        staying = connect(server.url + "/ws", proxy=None).__enter__()
        staying.send("still here")
        print(staying.recv())
        """,
        "run again": DEFINE_AND_RUN.format(reply="text.upper()", port="port"),
        "left": """
        try:
            staying.recv()
        except Exception as exc:
            print(exc.rcvd)
        print(left)
        """,
        "talk again": TALK,
        "talk in the loop": """
        from websockets.asyncio.client import connect as connect_in_loop

        async with connect_in_loop(server.url + "/ws", proxy=None) as client:
            await client.send("in the loop of the kernel")
            print(await client.recv())
        """,
        "end": """
        server.stop()
        print(left)
        server
        """,
        # The kernel ends with a client inside, and with a hook that has something to save.
        "save": """
        import asyncio
        from pathlib import Path

        @ws.handler("/saving")
        class Saving:
            async def on_message(self, text):
                return text

            async def on_disconnect(self, reason):
                await asyncio.to_thread(Path("saved").write_text, str(reason))

        server = ws.run(port=0)
        last = connect(server.url + "/saving", proxy=None).__enter__()
        last.send("to the end")
        print(last.recv())
        """,
    }
    shown = dict(zip(cells, execute(tmp_path, *cells.values()), strict=True))
    text = {name: each["text"] for name, each in shown.items()}

    assert text["hello"] == "message 1: hello\n\n"
    assert "<canvas" in shown["plot"]["html"]
    assert text["pushed"].split("\n") == ["0.000", " 0.125", " message 2: more", "", ""]
    assert text["redefine"] == "Plot: 1 connection runs the new code\n"
    assert text["redefined"] == "HELLO is message 3\n\n"
    assert text["port taken"] == "ServerError\n"
    assert text["still there"] == "True STILL HERE is message 4\n\n"
    assert text["stopped"].startswith("1 bye\n")
    for name, state in (("start", "running"), ("stop", "stopped"), ("start again", "running")):
        assert f": {state}</p>" in shown[name]["html"]
        assert "/plot</a></td><td>Plot</td><td>0 connections</td>" in shown[name]["html"]

    port = shown["start again"]["repr"].partition(" running")[0].rpartition(":")[2]
    assert shown["start again"]["repr"] == f"<BackgroundServer ws://127.0.0.1:{port} running; stop() ends it>"
    banner = [
        f"Serving http://127.0.0.1:{port} and ws://127.0.0.1:{port}",
        "",
        "  ws  /plot  Plot  slow_consumer=drop",
        "  ws  /ws    Echo",
        "",
        f"Console: http://127.0.0.1:{port}/docs",
        "",
        f"wsdeco is {FORM}.",
        "Runs in the background: stop() of what run() returned ends it.",
    ]
    assert text["define and run"].splitlines() == banner
    assert (text["talk"], text["talk again"]) == ("hello\n", "HELLO\n")
    assert text["stay"] == "still here\n"
    assert text["run again"].splitlines() == ["Echo: 1 connection runs the new code", *banner]
    assert text["left"].splitlines() == [
        "1012 (service restart) service restart",
        "['closed by the server with 1012 (service restart)']",
    ]
    assert text["talk in the loop"] == "IN THE LOOP OF THE KERNEL\n"
    assert text["end"].count("closed by the client with 1000") == 2
    assert shown["end"]["repr"] == f"<BackgroundServer ws://127.0.0.1:{port} stopped>"
    assert text["save"].endswith("to the end\n")
    assert (tmp_path / "saved").read_text() == "closed by the server with 1012 (service restart)"


# How far down the lowest and the highest point lie that are drawn, and how far right the last.
DRAWN: Final = """() => {
    const canvas = document.getElementById("plot"), { width, height } = canvas;
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
    const points = [...Array(width * height).keys()].filter((index) => data[4 * index + 3] > 0);
    const rows = points.map((index) => Math.floor(index / width));
    return points.length && [Math.min(...rows), Math.max(...rows), Math.max(...points.map((index) => index % width))];
}"""


async def drawn(page: Page) -> object:
    found: object = await page.evaluate(DRAWN)
    return found


async def test_the_plot_draws_what_is_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython")
    app = App()
    monkeypatch.setattr(wsdeco, "ws", app)
    define, start, plot, push, _, _ = EXAMPLE
    cells: dict[str, Any] = {"__name__": "__main__"}
    for cell in (define, start.replace("ws.run()", "ws.run(port=0)"), plot.replace("HTML(f", "shown = HTML(f")):
        exec(cell, cells)  # noqa: S102 - of the example

    @app.route("/page")
    async def page() -> HTMLResponse:
        return HTMLResponse(cells["shown"].data)

    server = cells["server"]
    try:
        async with open_browser() as browser:
            tab, errors = await open_tab(await browser.new_context(), f"{server.http_url}/page")
            await until(lambda: len(app.connections("/plot")) == 1)
            assert await drawn(tab) == 0
            exec(push.replace("0.02", "0"), cells)  # noqa: S102 - of the example
            await tab.wait_for_function(f"(({DRAWN})() || [0, 0, 0])[2] >= 296")
            # A sine of 0.8 times the height, whose last of 100 points lies 297 to the right.
            highest, lowest, _ = await tab.evaluate(DRAWN)
            assert (highest, lowest) == (pytest.approx(12, abs=2), pytest.approx(108, abs=2))
            assert errors == []
    finally:
        await asyncio.to_thread(server.stop)
