"""The access log, the numbers of an app, its Prometheus text and its health."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final, Literal

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.programs import PATIENCE
from tests.support.recording import refusal, take_errors
from tests.support.stacks import Stack, until
from wsdeco import COMPILED, App, Close, DisconnectReason, Error, RouteError, Sink, Timeout, Unknown
from wsdeco.channels.data import Address
from wsdeco.observe.access import AccessLog
from wsdeco.observe.floods import FloodFilter
from wsdeco.observe.json_format import JsonFormatter
from wsdeco.observe.logs import PRINTABLE_ARGUMENTS
from wsdeco.observe.numbers import Histogram, Stats, numbers_of
from wsdeco.routing.application import context_of
from wsdeco.testing import ManualClock, connect


def echo_app(**options: Any) -> App:
    app = App(**options)

    @app.handler("/ws", max_connections=1)
    class Echo:
        async def on_message(self, text: str) -> str:
            if text == "fail":
                raise ValueError(text)
            return text

    return app


def http_client(app: App) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver")


async def test_an_operator_reads_what_happened_to_the_connections(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    app = echo_app()
    assert app.stats() == Stats()
    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            await peer.send("hé")
            assert await peer.receive() == "hé"
            await until(lambda: app.stats().bytes_sent == 3)
            open_stats = app.stats()
            assert (await refusal(server, "/ws")).status == 503
            await peer.close(4001)
            await until(lambda: app.stats().open == 0)
        async with server.connect("/ws") as peer:
            await peer.send("fail")
            await until(lambda: app.stats().ended.total() == 2)
    take_errors(caplog)
    assert (open_stats.open, open_stats.messages_received, open_stats.bytes_sent) == (1, 1, 3)
    stats = app.stats()
    closed = stack.peer_closed(4001)
    kind = f"{closed.code} client" if isinstance(closed, Close) else "lost"
    assert stats.accepted == 2
    assert stats.refused == {"full": 1}
    assert stats.ended == {kind: 1, "1011 server": 1}
    assert (stats.messages_received, stats.bytes_received) == (2, 7)
    assert (stats.messages_sent, stats.bytes_sent) == (1, 3)
    assert stats.hook_failures == {"on_message": 1}
    assert (stats.handshakes.count, stats.lives.count) == (2, 2)


@pytest.mark.parametrize("has_access_log", [False, True])
async def test_a_refusal_has_one_line_of_information(
    stack: Stack, caplog: pytest.LogCaptureFixture, *, has_access_log: bool
) -> None:
    caplog.set_level(logging.INFO, "wsdeco")
    app = echo_app()
    if has_access_log:
        numbers_of(context_of(app)).log = AccessLog()
    async with stack.serve(app) as server, server.connect("/ws"):
        assert (await refusal(server, "/ws")).status == 503
    lines = [
        each.getMessage() for each in caplog.records if each.name.startswith("wsdeco") and "503" in each.getMessage()
    ]
    assert len(lines) == 1
    assert lines[0].endswith('"WebSocket /ws" 503 (full)' if has_access_log else " refused with 503 at Echo: full")


async def test_each_connection_has_a_line_at_its_beginning_and_one_at_its_end(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wsdeco.access")
    app = echo_app()
    numbers_of(context_of(app)).log = AccessLog()
    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            await peer.send("x")
            assert await peer.receive() == "x"
            await refusal(server, "/ws")
        await until(lambda: app.stats().open == 0)
    records = [record for record in caplog.records if record.name == "wsdeco.access"]
    events: list[Any] = [record.__dict__["event"] for record in records]
    assert events == ["accepted", "refused", "ended"]
    accepted, refused, ended = (record.__dict__ for record in records)
    assert (accepted["path"], refused["status"], refused["cause"]) == ("/ws", 503, "full")
    assert (ended["messages_received"], ended["bytes_sent"]) == (1, 1)
    assert '"WebSocket /ws" [accepted]' in records[0].getMessage()
    assert '"WebSocket /ws" 503 (full)' in records[1].getMessage()


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Close(4001, 'a"\n', by="client"), '4001 by client (a"\\n)'),
        (Timeout("idle_timeout of 1 s is over", "idle_timeout"), "1001 by server (idle_timeout of 1 s is over)"),
        (Error("failed"), "1011 by server"),
        (Unknown(), "1006 by network"),
        (None, "1006 by network"),
    ],
)
def test_the_end_of_a_connection_is_told_in_one_line(
    reason: DisconnectReason | None, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wsdeco.access")
    AccessLog().ended(Address("192.0.2.1", 1), "/ws\n", reason, 1.5, (1, 2), (3, 4))
    (line,) = caplog.messages
    assert line == f'192.0.2.1:1 - "WebSocket /ws\\n" {text} after 1.500 s, 1 messages (2 B) in, 3 (4 B) out'


def test_a_refused_peer_without_an_address_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "wsdeco.access")
    AccessLog().refused({"path": "/ws", "client": None}, 0, "gone")
    assert caplog.messages == ['unknown address - "WebSocket /ws" unanswered (gone)']


async def test_slow_consumers_and_dropped_messages_are_counted() -> None:
    app = App()

    @app.handler("/ws", max_outbox=10)
    class Floods:
        async def on_connect(self, addr: object, sink: Sink) -> None:
            self.sink = sink

        async def on_message(self, text: str) -> None:
            assert self.sink.send_nowait("12345678")
            assert not self.sink.send_nowait("12345678")

    app.stats()
    async with connect(app, "/ws") as client:
        await client.send("go")
        await client.expect_close(1013)
    stats = app.stats()
    assert (stats.dropped, stats.slow_consumers) == (1, 1)


@pytest.mark.parametrize("over_rate", ["slow", "drop", "close"])
async def test_messages_over_a_rate_are_counted_whatever_becomes_of_them(
    over_rate: Literal["slow", "drop", "close"],
) -> None:
    clock = ManualClock()
    app = App(clock=clock)
    heard: list[str] = []

    @app.handler("/ws", message_rate="1/s", burst=2, over_rate=over_rate)
    class Member:
        async def on_message(self, text: str) -> None:
            heard.append(text)

    app.stats()
    async with connect(app, "/ws") as client:
        for text in "abc":
            await client.send(text)
        await clock.settle()
        assert (app.stats().over_rate, heard) == (1, ["a", "b"])
        await clock.advance(1.5)
        assert heard == (["a", "b", "c"] if over_rate == "slow" else ["a", "b"])
    assert app.stats().over_rate == 1


async def test_messages_of_another_type_are_counted() -> None:
    app = App()

    @app.handler("/ws")
    class Typed:
        async def on_message(self, message: list[int]) -> None:
            """Say nothing."""

    app.stats()
    async with connect(app, "/ws") as client:
        await client.send("[1]")
        await client.send('["x"]')
        await client.receive()
        assert (app.stats().invalid, app.stats().undelivered) == (1, 0)
    assert (app.stats().invalid, app.stats().undelivered) == (1, 1)


async def test_rooms_and_their_members_are_counted_without_those_of_routes() -> None:
    app = App()

    @app.handler("/{room}")
    class Member:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            for name in sink.path_params["room"]:
                app.room(name).join(sink)
                app.room(name).join(sink)
            app.room("left").join(sink)
            app.room("left").leave(sink)

    def counted() -> tuple[int, int, int]:
        stats = app.stats()
        return stats.open, stats.rooms, stats.members

    assert counted() == (0, 0, 0)
    async with connect(app, "/a"), connect(app, "/ab"):
        await until(lambda: counted() == (2, 2, 3))
    await until(lambda: counted() == (0, 0, 0))


async def test_time_is_that_of_the_clock_of_the_app_and_timeouts_end_with_1001() -> None:
    clock = ManualClock()
    app = App(clock=clock)

    @app.handler("/ws", idle_timeout=3)
    class Silent:
        async def on_connect(self, addr: object, sink: Sink) -> None:
            await clock.advance(0.2)

    app.stats()
    async with connect(app, "/ws") as client:
        await clock.advance(3)
        await client.expect_close(1001)
    stats = app.stats()
    assert stats.ended == {"1001 server": 1}
    assert stats.handshakes.total == pytest.approx(0.2)
    assert stats.lives.total == pytest.approx(3)


async def test_who_asks_for_numbers_learns_how_long_hooks_take_and_what_waits(stack: Stack) -> None:
    app = App()
    go_on = asyncio.Event()

    @app.handler("/ws")
    class Slow:
        async def on_connect(self, addr: object, sink: Sink) -> None:
            sink.send_nowait("x" * 1000)

        async def on_message(self, text: str) -> None:
            await go_on.wait()

    app.stats()
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.receive()
        for _ in range(3):
            await peer.send("y" * 2000)
        await until(lambda: app.stats().inbox_high_water >= 4000)
        assert app.stats().hooks.keys() == {"on_connect"}
        go_on.set()
        await until(lambda: app.stats().hooks.get("on_message", Histogram()).count == 3)
    stats = app.stats()
    assert stats.outbox_high_water >= 1000
    assert {hook: times.count for hook, times in stats.hooks.items()} == {
        "on_connect": 1,
        "on_message": 3,
        "on_disconnect": 1,
    }


@pytest.mark.parametrize("parallel", [1, 2])
async def test_hooks_are_timed_by_the_clock_of_the_app_side_by_side_too(parallel: int) -> None:
    clock = ManualClock()
    app = App(clock=clock)
    doors = {"a": asyncio.Event(), "b": asyncio.Event()}

    @app.handler("/ws", parallel=parallel)
    class Slow:
        async def on_message(self, text: str) -> str:
            await doors[text].wait()
            return text

    app.stats()
    async with connect(app, "/ws") as client:
        for text, door in doors.items():
            await client.send(text)
            await clock.advance(1.5)
            if parallel == 1:
                door.set()
                await client.expect(text)
        if parallel > 1:
            doors["b"].set()
            await client.expect("b")
            await clock.advance(3)
            doors["a"].set()
            await client.expect("a")
    times = app.stats().hooks["on_message"]
    # 6 s and 1.5 s of them side by side, or 1.5 s twice.
    assert times.count == 2
    assert times.total == pytest.approx(3 if parallel == 1 else 7.5)


async def test_who_does_not_ask_for_numbers_pays_for_no_hook() -> None:
    app = echo_app()
    numbers = numbers_of(context_of(app))
    async with connect(app, "/ws") as client:
        await client.send("x")
        await client.expect("x")
    stats = numbers.taken()
    assert (stats.messages_received, stats.hooks, stats.inbox_high_water) == (1, {}, 0)


async def test_the_lag_of_the_loop_is_measured_while_somebody_is_connected() -> None:
    app = echo_app()
    numbers = numbers_of(context_of(app))
    numbers.lag_interval = 0.001
    assert app.stats().lag == 0
    async with connect(app, "/ws"):
        await until(lambda: app.stats().lag > 0)
        numbers.stats.lag = 1
        await until(lambda: numbers.stats.lag < 1)


def test_numbers_of_several_processes_add_up() -> None:
    first = Stats(open=1, rooms=1, members=2, over_rate=3, lag=0.1, inbox_high_water=9)
    second = Stats(open=2, rooms=4, members=5, over_rate=6, lag=0.3, inbox_high_water=5)
    for each, hooks in ((first, ("on_connect", "on_message")), (second, ("on_message", "on_disconnect"))):
        for hook in hooks:
            each.hooks[hook] = Histogram()
            each.hooks[hook].add(1)
    first.refused["full"] = second.refused["full"] = 2
    first.handshakes.add(0.002)
    second.handshakes.add(100)
    both = first + second
    assert (both.open, both.lag, both.refused["full"], both.handshakes.count) == (3, 0.3, 4, 2)
    assert both.handshakes.total == pytest.approx(100.002)
    assert (both.rooms, both.members, both.over_rate) == (5, 7, 9)
    assert first.open == 1
    assert both.inbox_high_water == 9
    assert {hook: times.count for hook, times in both.hooks.items()} == {
        "on_connect": 1,
        "on_message": 2,
        "on_disconnect": 1,
    }
    assert Histogram().count == 0


async def test_prometheus_reads_the_numbers() -> None:
    app = echo_app(metrics="/metrics")
    async with connect(app, "/ws") as client:
        await client.send("x")
        await client.expect("x")
        await client.close(4001)
    await until(lambda: app.stats().open == 0)
    stats = numbers_of(context_of(app)).stats
    stats.ended["lost"], stats.over_rate, stats.invalid = 2, 3, 4
    stats.refused["full"] = 3
    async with http_client(app) as http:
        answer = await http.get("/metrics")
        openmetrics = await http.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert answer.headers["content-type"].startswith("text/plain")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert found["wsdeco_connections_accepted_total",] == 1
    assert found["wsdeco_connections_ended_total", "4001", "client"] == 1
    assert found["wsdeco_connections_ended_total", "lost", "network"] == 2
    assert found["wsdeco_handshakes_refused_total", "full"] == 3
    assert found["wsdeco_received_bytes_total",] == 1
    assert found["wsdeco_handshake_seconds_bucket", "+Inf"] == 1
    assert found["wsdeco_hook_seconds_count", "on_message"] == 1
    assert found["wsdeco_inbox_high_water_bytes",] >= 1
    assert found["wsdeco_outbox_high_water_bytes",] == 0
    assert found["wsdeco_connection_seconds_count",] == 1
    assert found["wsdeco_messages_over_rate_total",] == 3
    assert found["wsdeco_messages_invalid_total",] == 4
    assert found["wsdeco_rooms",] == found["wsdeco_room_members",] == 0


def test_the_texts_of_an_access_line_are_printable_whatever_its_form() -> None:
    access = logging.getLogger("uvicorn.access")
    lines: list[tuple[str, Any]] = [("%s %d", ("a\x1b", 1)), ("%(path)s", ({"path": "a"},)), ("plain", ())]
    records = [access.makeRecord(access.name, logging.INFO, "", 0, text, args, None) for text, args in lines]
    assert all(PRINTABLE_ARGUMENTS.filter(each) for each in records)
    assert [each.getMessage() for each in records] == ["a\\x1b 1", "a", "plain"]


def test_a_missing_library_is_named_with_its_extra() -> None:
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from wsdeco import App\n"
        "try: App(metrics='/metrics')\n"
        "except ImportError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "pip install 'wsdeco[metrics]'" in done.stdout


async def test_health_is_200_and_503_as_soon_as_the_app_shuts_down() -> None:
    app = App(health="/health")

    @app.handler("/ws")
    class Silent:
        async def on_message(self, text: str) -> None:
            """Say nothing."""

    async with http_client(app) as http:
        answer = await http.get("/health")
        assert (answer.status_code, answer.text) == (200, "ok\n")
        await app.shut_down()
        answer = await http.get("/health")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert [info.path for info in app.route_infos] == ["/health", "/ws"]


@pytest.mark.parametrize("page", ["metrics", "health"])
def test_a_page_on_no_path_is_refused(page: str) -> None:
    with pytest.raises(RouteError, match="must begin with a slash"):
        App(**{page: "x"})  # type: ignore[arg-type]


def test_nothing_of_it_is_loaded_by_who_does_not_ask_for_it() -> None:
    program = "import sys, wsdeco; print([name for name in sys.modules if name.startswith('wsdeco.observe')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == "[]\n"


# The log.


@pytest.fixture
def flood() -> FloodFilter:
    return FloodFilter()


@pytest.fixture
def lines(flood: FloodFilter) -> Iterator[list[str]]:
    """What a logger with the filter and the format of JSON prints."""
    printed: list[str] = []

    class Printer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            printed.append(self.format(record))

    logger = logging.getLogger("wsdeco.test_observe")
    handler = Printer()
    handler.setFormatter(JsonFormatter(use_colors=False))
    logger.addHandler(handler)
    logger.addFilter(flood)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield printed
    logger.removeHandler(handler)
    logger.removeFilter(flood)
    logger.propagate = True


def test_quotes_line_ends_and_control_bytes_break_no_line_of_json(lines: list[str]) -> None:
    logger = logging.getLogger("wsdeco.test_observe")
    text = '"\\\r\n\x00\x1b\u2028\ud800'
    logger.info("%s", text, extra={"path": text, "thing": object})
    (line,) = lines
    assert "\n" not in line
    found = json.loads(line)
    assert (found["message"], found["path"], found["level"]) == (text, text, "INFO")
    logger.error("failed", exc_info=ValueError(text))
    assert "ValueError" in json.loads(lines[1])["exception"]


async def test_a_flood_is_one_line_a_second_and_a_count(lines: list[str], flood: FloodFilter) -> None:
    flood.seconds = 0.02
    logger = logging.getLogger("wsdeco.test_observe")
    for number in range(100):
        logger.warning("failed %d", number)
        logger.info("refused %d", number, extra={"event": "refused"})
        logger.info("said %d", number)
    assert len([line for line in lines if "said" in line]) == 100
    assert len([line for line in lines if "failed" in line]) < 100
    await until(lambda: sum(json.loads(line).get("count", 0) for line in lines if "failed" in line) > 0)
    await asyncio.sleep(0.05)
    for what in ("failed", "refused"):
        told = [json.loads(line) for line in lines if what in line]
        assert sum(each.get("count", 1) for each in told) == 100


async def test_a_flood_of_one_handler_hides_no_failure_of_another(lines: list[str], flood: FloodFilter) -> None:
    flood.seconds = 3600
    logger = logging.getLogger("wsdeco.test_observe")

    def fail(times: int) -> None:
        for _ in range(times):
            for where in ("One.on_message", "Other.on_message"):
                for error in (ValueError(), KeyError()):
                    logger.error("%s failed for %s", where, Address("192.0.2.1", 1), exc_info=error)
            for cause in ("full", "origin"):
                logger.info("%s (%s)", Address("192.0.2.1", 1), cause, extra={"event": "refused", "cause": cause})

    fail(3)
    told = [json.loads(line) for line in lines]
    assert len([each for each in told if "exception" in each]) == 4
    assert [each["cause"] for each in told if "cause" in each] == ["full", "origin"]
    flood.seconds = 0
    fail(1)
    summaries = [each["message"] for each in map(json.loads, lines) if "count" in each]
    assert summaries[0] == "2 more like this in the last second: %s failed for %s (One.on_message, ValueError)"
    assert summaries[-1] == "2 more like this in the last second: %s (%s) (origin)"
    assert len(summaries) == 6


def test_without_a_loop_nothing_is_held_back(lines: list[str]) -> None:
    logger = logging.getLogger("wsdeco.test_observe")
    for _ in range(3):
        logger.warning("failed")
    assert [json.loads(line)["message"] for line in lines] == 3 * ["failed"]


CONFIGURED: Final = "import logging; logging.basicConfig(format='own %(message)s')\n"
"""A program that says where its log goes, but nothing of the access log."""

QUIET: Final = CONFIGURED + "logging.getLogger('wsdeco.access').setLevel('ERROR')\n"


@pytest.mark.parametrize(
    ("options", "first"),
    [([], ""), (["--no-access-log"], ""), (["--log-format", "json"], ""), ([], CONFIGURED), ([], QUIET)],
    ids=["text", "off", "json", "configured", "quiet"],
)
def test_the_command_line_shows_connections_as_it_is_told(options: list[str], first: str, tmp_path: Any) -> None:
    program = tmp_path / "app.py"
    program.write_text(
        first + "import os, signal\n"
        "from wsdeco import ws\n"
        "@ws.handler('/ws')\n"
        "class Ends:\n"
        "    async def on_message(self, text): pass\n"
        "    async def on_disconnect(self, reason): os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    command = [sys.executable, "-m", "wsdeco", "run", str(program), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        banner = ""
        while "http://" not in banner:
            banner += server.stdout.readline()
        port = int(banner.partition("127.0.0.1:")[2].partition(" ")[0].partition('"')[0])
        asyncio.run(_visit(port))
        rest, log = server.communicate(timeout=PATIENCE)
    assert server.returncode == 0
    if "--no-access-log" in options or first == QUIET:
        assert log == ""
        return
    assert log.count("[accepted]") == 1
    assert log.count("4001 by client") == 1
    if "json" in options:
        serving = json.loads(banner)
        assert (serving["event"], serving["compiled"]) == ("serving", COMPILED)
        assert rest == ""
        assert [json.loads(line)["event"] for line in log.splitlines()] == ["accepted", "ended"]
    else:
        assert log.startswith("own 127.0.0.1:" if first else "INFO:     127.0.0.1:")


async def _visit(port: int) -> None:
    from websockets.asyncio.client import connect as websockets_connect  # noqa: PLC0415

    async with websockets_connect(f"ws://127.0.0.1:{port}/ws") as client:
        await client.close(4001)
