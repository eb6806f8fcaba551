"""A cell of a notebook that is run again: what happens to the server that runs, and to its clients."""

import asyncio
import socket
import time

import pytest
from websockets.asyncio.client import connect as connect_in_loop
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from wsdeco import App, ServerError


def echo() -> App:
    app = App()

    @app.handler("/ws", close_timeout=10)
    class Echo:
        async def on_message(self, text: str) -> str:
            return text

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


async def test_a_client_in_the_loop_that_waits_costs_less_than_a_second() -> None:
    app = echo()
    server = app.run(port=0, background=True)
    assert server is not None
    async with connect_in_loop(f"{server.url}/ws", proxy=None) as client:
        began = time.monotonic()
        again = app.run(port=server.port, background=True)
        # 10 s with the closing handshake, and this much on a machine that does other things as well.
        assert time.monotonic() - began < 5
        assert again is not None
        assert (server.running, again.running, again.port) == (False, True, server.port)
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
    await asyncio.to_thread(again.stop)


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
