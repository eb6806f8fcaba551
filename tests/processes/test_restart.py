"""A cell of a notebook that is run again: what happens to the server that runs, and to its clients."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest
from websockets.asyncio.client import connect as connect_in_loop
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.wire import Logged
from wsdeco import App, ServerError
from wsdeco.routing import redefinition


def add_echo(app: App, change: Callable[[str], str] = str) -> None:
    @app.handler("/ws", close_timeout=60)
    class Echo:
        async def on_message(self, text: str) -> str:
            return change(text)


def echo() -> App:
    app = App()
    add_echo(app)

    @app.handler("/rooms/{room}")
    class Room:
        async def on_message(self, text: str) -> str:
            return text

    @app.route("/page")
    def page() -> None: ...

    return app


def test_a_restart_that_fails_leaves_the_server_running() -> None:
    app = echo()
    with (
        app.run(port=0, background=True) as server,  # type: ignore[union-attr]
        connect(f"{server.url}/ws", proxy=None) as client,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        with pytest.raises(ServerError):
            app.run(background=True, port=other.getsockname()[1])
        with pytest.raises(ServerError):
            app.run("192.0.2.1", 0, background=True)
        client.send("still here")
        assert client.recv() == "still here"
        assert server.running


async def test_a_client_in_the_loop_that_waits_costs_no_closing_handshake() -> None:
    app = echo()
    server = app.run(port=0, background=True)
    assert server is not None
    async with connect_in_loop(f"{server.url}/ws", proxy=None) as client:
        began = time.monotonic()
        again = app.run(port=server.port, background=True)
        # A minute with the closing handshake; without, about 0.4 s on a machine that does nothing else.
        assert time.monotonic() - began < 30
        assert again is not None
        assert (server.running, again.running, again.port) == (False, True, server.port)
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
    await asyncio.to_thread(again.stop)


def test_a_restart_whose_lifespan_fails_says_that_nothing_serves_and_can_be_repeated() -> None:
    app, faults = echo(), [False]

    @app.lifespan
    async def lifespan(inside: object) -> AsyncIterator[None]:
        if faults[0]:
            raise LookupError("no database")
        yield

    server = app.run(port=0, background=True)
    assert server is not None
    with connect(f"{server.url}/ws", proxy=None) as client:
        faults[0] = True
        with pytest.raises(
            ServerError, match=r"lifespan .*; nothing serves this app now, as the server at http.* has ended"
        ):
            app.run(port=server.port, background=True)
        with pytest.raises(ConnectionClosed, match="1012"):
            client.recv()
    assert not server.running
    server.stop()
    faults[0] = False
    with (
        app.run(port=server.port, background=True) as again,  # type: ignore[union-attr]
        connect(f"{again.url}/ws", proxy=None) as client,
    ):
        client.send("here again")
        assert client.recv() == "here again"


def display(server: object) -> str:
    """Return what a notebook shows of an object."""
    shown: str = getattr(server, "_repr_html_")()  # noqa: B009 - the name is IPython's, not private
    return shown


def test_the_handle_shows_routes_and_live_counts() -> None:
    app = echo()
    with app.run(port=0, background=True) as server, connect(f"{server.url}/ws", proxy=None):  # type: ignore[union-attr]
        shown = display(server)
    assert f"<p>{server.url}: running</p>" in shown
    link = f'<a href="{server.http_url}/ws">/ws</a>'
    assert f"<tr><td>ws</td><td>{link}</td><td>Echo</td><td>1 connections</td></tr>" in shown
    assert "<td>/rooms/{room}</td><td>Room</td><td>0 connections</td>" in shown
    assert f'<a href="{server.http_url}/page">/page</a></td><td>page</td><td></td>' in shown
    assert f"<p>{server.url}: stopped</p>" in display(server)


def test_a_cell_that_defines_the_class_again_reaches_the_clients_of_a_server_in_a_thread(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, log, begun, go_on = echo(), Logged(caplog), threading.Event(), threading.Event()

    def blocking(text: str) -> str:
        begun.set()
        go_on.wait(60)
        return text.upper()

    with app.run(port=0, background=True) as server, connect(f"{server.url}/ws", proxy=None) as client:  # type: ignore[union-attr]
        client.send("first")
        assert client.recv() == "first"
        add_echo(app, blocking)
        assert log.lines(logging.INFO)[-1] == "INFO Echo: 1 connection runs the new code"
        client.send("second")
        assert begun.wait(60)
        monkeypatch.setattr(redefinition, "PATIENCE", 0.01)
        add_echo(app, str.title)
        assert log.lines(logging.INFO)[-1].endswith("run the new code as soon as their event loop is free")
        go_on.set()
        assert client.recv() == "SECOND"
        # The loop may read it before it comes to the change.
        client.send("third")
        assert client.recv() in ("THIRD", "Third")
        client.send("fourth")
        assert client.recv() == "Fourth"
