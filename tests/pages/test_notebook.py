"""A notebook, executed by a real Jupyter kernel: define, run, connect, run the cell again, stop."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import pytest

from tests.support.checkout import CHECKOUT

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
    """Return what each cell of a notebook has put out: `text`, and the `repr` of its last expression."""
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


def put_out(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    text = "".join("".join(each["text"]) for each in outputs if each["output_type"] == "stream")
    results = ["".join(each["data"]["text/plain"]) for each in outputs if each["output_type"] == "execute_result"]
    return {"text": text, "repr": "".join(results)}


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
    cells = execute(
        tmp_path,
        DEFINE_AND_RUN.format(reply="text", port=0),
        "server",
        TALK,
        """
        staying = connect(server.url + "/ws", proxy=None).__enter__()
        staying.send("still here")
        print(staying.recv())
        """,
        DEFINE_AND_RUN.format(reply="text.upper()", port="port"),
        """
        try:
            staying.recv()
        except Exception as exc:
            print(exc.rcvd)
        print(left)
        """,
        TALK,
        """
        from websockets.asyncio.client import connect as connect_in_loop

        async with connect_in_loop(server.url + "/ws", proxy=None) as client:
            await client.send("in the loop of the kernel")
            print(await client.recv())
        """,
        """
        server.stop()
        print(left)
        server
        """,
        """
        import socket

        with socket.create_server(("127.0.0.1", 0)) as other:
            try:
                ws.run(port=other.getsockname()[1])
            except Exception as exc:
                print(repr(exc))
        """,
    )
    banner, shown, *talks, stopped, taken = cells
    port = shown["repr"].partition(" running")[0].rpartition(":")[2]
    assert banner["text"].splitlines() == [
        f"Serving http://127.0.0.1:{port} and ws://127.0.0.1:{port}",
        "",
        "  ws  /ws  Echo",
        "",
        "Runs in the background: stop() of what run() returned ends it.",
    ]
    assert shown["repr"] == f"<BackgroundServer ws://127.0.0.1:{port} running; stop() ends it>"
    first, staying, again, left, second, in_loop = [cell["text"] for cell in talks]
    assert (first, second) == ("hello\n", "HELLO\n")
    assert staying == "still here\n"
    assert again == banner["text"]
    assert left.splitlines() == [
        "1012 (service restart) service restart",
        "['closed by the server with 1012 (service restart)']",
    ]
    assert in_loop == "IN THE LOOP OF THE KERNEL\n"
    assert stopped["text"].count("closed by the client with 1000") == 2
    assert taken["text"].startswith("ServerError('port ")
    assert stopped["repr"] == f"<BackgroundServer ws://127.0.0.1:{port} stopped>"
