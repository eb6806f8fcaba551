"""The numbers of several worker processes are one, whoever answers, and never go back."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from textwrap import dedent
from typing import Final

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import ClientConnection

from tests.support.programs import Program, client, receive, wait_until, workers_of
from wsdeco import Address, App, ConnectionClosed, Sink
from wsdeco.observe.numbers import Stats, numbers_of
from wsdeco.observe.together import count_together
from wsdeco.routing.application import context_of
from wsdeco.testing import connect
from wsdeco.workers.board import Board

pytestmark = pytest.mark.timeout(300)

PROGRAM: Final = """
import os
import sys

sys.modules["nats"] = None
from wsdeco import App

app = App(metrics="/metrics")

@app.handler("/ws")
class Echo:
    async def on_connect(self, addr, sink):
        await sink.send(str(os.getpid()))

    async def on_message(self, text):
        return text

@app.route("/stats")
def stats():
    from starlette.responses import JSONResponse
    return JSONResponse({"pid": os.getpid(), "open": app.stats().open})

app.run(port=0, workers=2, access_log=False)
"""


def scrape(http: httpx.Client) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
        if not sample.labels
    }


def test_any_worker_answers_for_all_and_no_counter_goes_back_when_one_is_killed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(dedent(PROGRAM), "utf-8")
    program = Program(tmp_path, "program.py")
    try:
        port = program.expect(r"ws://\S+:(\d+)")[1]
        program.expect("2 worker processes")
        # Each request is a connection of its own, which any worker may take.
        limits = httpx.Limits(max_keepalive_connections=0)
        with ExitStack() as stack, httpx.Client(base_url=f"http://127.0.0.1:{port}", limits=limits) as http:
            clients: dict[int, ClientConnection] = {}
            opened = 0
            while len(clients) < 2:
                connection = stack.enter_context(client(f"ws://127.0.0.1:{port}/ws"))
                clients[int(str(receive(connection)))] = connection
                opened += 1
            for connection in clients.values():
                for _ in range(10):
                    connection.send("hello")
                    receive(connection)
            wait_until(lambda: http.get("/stats").json()["open"] == opened)
            answered: Counter[int] = Counter()
            while len(answered) < 2:
                answer = http.get("/stats").json()
                assert answer["open"] == opened
                answered[answer["pid"]] += 1
            wait_until(lambda: scrape(http)["wsdeco_messages_received_total"] == 20)
            before = scrape(http)
            assert before["wsdeco_connections_accepted_total"] == opened
            os.kill(min(clients), signal.SIGKILL)
            wait_until(lambda: len({each.pid for each in workers_of(program.process.pid)} - {min(clients)}) == 2)

            def has_another() -> bool:
                with client(f"ws://127.0.0.1:{port}/ws") as connection:
                    pid = int(str(receive(connection)))
                now = scrape(http)
                assert all(now[name] >= before[name] for name in before if name.endswith("_total"))
                return pid not in clients

            wait_until(has_another)
            now = scrape(http)
            assert now["wsdeco_messages_received_total"] == 20
            assert now["wsdeco_connections_accepted_total"] > opened
            assert now["wsdeco_connections_open"] < before["wsdeco_connections_open"] + 1
        program.send_signal(signal.SIGTERM)
        assert program.end().code == 0
    finally:
        program.discard()


@pytest.fixture
def board() -> Iterator[Board]:
    with closing(Board.create(3)) as created:
        yield created


async def test_what_is_of_the_moment_ends_with_the_process_and_all_else_goes_on(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App()

    @app.handler("/ws")
    class Fails:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            app.room("all").join(sink)

        async def on_message(self, text: str) -> None:
            raise ValueError(text)

    first, second = board.place(1), board.place(2)
    tick = count_together(context_of(app), first)
    async with connect(app, "/ws") as peer:
        assert (app.stats().open, app.stats().accepted) == (1, 1)
        assert (app.stats().rooms, app.stats().members) == (1, 1)
        await peer.send("fail")
        with pytest.raises(ConnectionClosed):
            await peer.receive()
    tick()
    assert board.place(3).read_all()[0] == (True, board.place(1).before)
    assert b'"open": 1' in board.place(1).before
    count_together(context_of(app), first, interval=0)()
    assert b'"open": 0' in board.place(1).before
    board.note_death(1)
    other = App()
    count_together(context_of(other), second)
    assert (other.stats().open, other.stats().accepted) == (0, 1)
    assert (other.stats().rooms, other.stats().members) == (0, 0)
    assert other.stats().hook_failures == {"on_message": 1}
    assert other.stats().ended == {"1011 server": 1}
    # Another process, with the number of the one that has died.
    again = App()
    tick = count_together(context_of(again), board.place(1))
    numbers_of(context_of(again)).stats.accepted = 1
    tick()
    assert again.stats().accepted == other.stats().accepted == 2
    assert again.stats().handshakes.count == 1


def test_what_only_another_version_counts_is_left_out(board: Board) -> None:
    board.place(1).write(b'{"accepted": 3, "unheard_of": {"a": 1}}')
    app = App()
    count_together(context_of(app), board.place(2))
    assert app.stats() == Stats(accepted=3)


def always_one(_data: object, _start: int = 0) -> int:
    return 1


def test_a_writer_that_is_killed_in_the_middle_leaves_what_it_has_written_before(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = board.place(2)
    assert [place.before, *place.read_all()] == [b"", (False, b""), (False, b""), (False, b"")]
    place.write(b"one")
    place.write(b"two")
    with monkeypatch.context() as patch:
        # Of what is half written the checksum is another one.
        patch.setattr("zlib.crc32", always_one)
        place.write(b"three")
    assert board.place(2).before == b"two"
    assert place.read_all()[1] == (True, b"two")
    board.place(2).write(b"four")
    assert board.place(2).before == b"four"
    with pytest.raises(ValueError, match="no more than 16368 bytes can be shown, not 20000"):
        place.write(b"x" * 20_000)


async def test_codes_that_peers_make_up_are_counted_as_others() -> None:
    app = App()

    @app.handler("/ws")
    class Quiet:
        async def on_message(self, text: str) -> None:
            """Say nothing."""

    assert app.stats().accepted == 0
    for code in range(4000, 4070):
        async with connect(app, "/ws") as peer:
            await peer.close(code)
    ended = app.stats().ended
    assert (len(ended), ended["other client"], ended["4000 client"]) == (65, 6, 1)
