"""`App.serve` in the loop of a program, and what becomes of servers in the background at a signal."""

import asyncio
import logging
import signal
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_in_loop

from tests.support.programs import Program, client, close_code, echo_app, receive
from tests.support.stacks import soon, until
from wsdeco import App, DisconnectReason, ServerError
from wsdeco.server.serving import server_of


class Shared:
    """An app whose hooks put what arrives into a queue of the program."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str] = asyncio.Queue()
        self.app = App()
        queue = self.queue

        @self.app.handler("/ws")
        class Putting:
            async def on_message(self, text: str) -> None:
                queue.put_nowait(text)

            async def on_disconnect(self, reason: DisconnectReason) -> None:
                queue.put_nowait(str(reason))

    async def url(self) -> str:
        await until(lambda: (server := server_of(self.app)) is not None and server.started)
        server = server_of(self.app)
        assert server is not None
        return f"{server.ws_url}/ws"


async def closed_with(peer: ClientConnection) -> int | None:
    await soon(peer.wait_closed())
    return peer.close_code


async def test_hooks_share_a_queue_with_the_tasks_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    shared = Shared()
    task = asyncio.create_task(shared.app.serve(port=0))
    async with connect_in_loop(await shared.url(), proxy=None) as peer:
        await peer.send("hello")
        assert await soon(shared.queue.get()) == "hello"
        task.cancel()
        assert await closed_with(peer) == 1012
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
    assert await soon(shared.queue.get()) == "closed by the server with 1012 (service restart)"
    assert server_of(shared.app) is None
    assert capsys.readouterr().out.startswith("Serving http://127.0.0.1:")


async def test_shut_down_ends_it_and_it_can_serve_again() -> None:
    shared = Shared()
    for _ in range(2):
        task = asyncio.create_task(shared.app.serve(port=0))
        async with connect_in_loop(await shared.url(), proxy=None) as peer:
            await shared.app.shut_down()
            assert await closed_with(peer) == 1012
        await soon(task)
        assert "1012" in await soon(shared.queue.get())


async def test_it_takes_the_place_of_a_server_in_the_background_and_of_no_other() -> None:
    shared = Shared()
    background: Any = shared.app.run(port=0, background=True)
    task = asyncio.create_task(shared.app.serve(port=background.port))
    await until(lambda: not background.running)
    await shared.url()
    with pytest.raises(ServerError, match="is served at"):
        await shared.app.serve(port=0)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ({"workers": 2}, TypeError, "workers are processes"),
        ({"background": True}, TypeError, "it serves in the event loop that runs"),
        ({"loop": "asyncio"}, TypeError, "it serves in the event loop that runs"),
        ({"port": "8000"}, TypeError, "port must be an int"),
        ({"host": "no.such.host.invalid"}, ServerError, "does not resolve"),
    ],
)
async def test_options_that_mean_nothing_there(options: dict[str, Any], error: type[Exception], hint: str) -> None:
    with pytest.raises(error, match=hint):
        await Shared().app.serve(**options)


async def test_run_inside_of_a_loop_names_the_ways(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = echo_app()
    server: Any = app.run(port=0)
    await asyncio.to_thread(server.stop)
    assert [each for each in caplog.messages if "`await ws.serve(...)`" in each and "@ws.lifespan" in each]


async def test_run_in_a_notebook_does_not(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    app, _ = echo_app()
    server: Any = app.run(port=0)
    await asyncio.to_thread(server.stop)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


PROGRAM: Final = """
    import signal, sys, time, asyncio
    from wsdeco import ws

    # That of the measurement of coverage would be taken for the program's own.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @ws.handler("/ws")
    class Echo:
        async def on_message(self, text):
            return text

        async def on_disconnect(self, reason):
            await asyncio.to_thread(print, "left:", reason, flush=True)
"""

IN_BACKGROUND: Final = PROGRAM + "\n    server = ws.run(port=0, background=True)\n    time.sleep(60)\n"
IN_LOOP: Final = PROGRAM + "\n    asyncio.run(ws.serve(port=0))\n"
HANDLES_IT: Final = IN_BACKGROUND.replace("server =", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); server =")


@pytest.mark.parametrize(
    ("source", "number", "status"),
    [
        (IN_BACKGROUND, signal.SIGTERM, -signal.SIGTERM),
        (IN_BACKGROUND, signal.SIGHUP, -signal.SIGHUP),
        (IN_LOOP, signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_a_signal_ends_connections_before_the_process(
    source: str, number: signal.Signals, status: int, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(dedent(source))
    program = Program(tmp_path, "app.py")
    try:
        port = program.expect(r"Serving http://127.0.0.1:(\d+)")[1]
        program.expect("Ctrl-C|Runs in the background")
        with client(f"ws://127.0.0.1:{port}/ws") as connection:
            connection.send("hello")
            assert receive(connection) == "hello"
            program.process.send_signal(number)
            assert close_code(connection) == 1012
        ended = program.end()
    finally:
        program.discard()
    assert ended.code == status
    assert "left: closed by the server with 1012" in ended.output


def test_a_program_with_a_handler_of_its_own_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(dedent(HANDLES_IT))
    program = Program(tmp_path, "app.py")
    try:
        program.expect("Runs in the background")
        program.process.send_signal(signal.SIGTERM)
        assert program.end().code == 3
    finally:
        program.discard()
