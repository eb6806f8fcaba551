"""The arithmetic and the reports of `python -m benchmarks`, and one short row against a real server."""

import gc
import json
import os
import re
import socket
import xml.dom.minidom
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import afterwards, backplanes, endings, fairness, growth, levels, rooms, sizes, typed, workers
from benchmarks.chart import to_svg
from benchmarks.loads import Effort
from benchmarks.machine import LOAD
from benchmarks.measure import Progress
from benchmarks.report import Run, format_number, table, to_json, to_markdown
from benchmarks.results import Results, median, percentile
from benchmarks.rows import FIGURES, ROWS
from benchmarks.servers import SERVERS, Kind
from benchmarks.sizes import SIZE_ROWS, connections_for
from benchmarks.targets import TARGETS, evaluate
from benchmarks.wire import (
    BINARY,
    FIN,
    MASKED,
    RSV1,
    TEXT,
    NotOffered,
    Payload,
    ServerFault,
    answered_with_length,
    check_upgrade,
    deflated,
    frame_end,
    frame_header,
    make_message,
    masked_frame,
    take_messages,
)
from wsdeco.wire.incoming import Framing
from wsdeco.workers.nats_server import find_program

EFFORT = Effort(rounds=3, seconds=0.1, latency_seconds=0.1, idle_connections=1, levels=(32,))


def results_of(samples: dict[str, dict[str, list[float | None]]]) -> Results:
    return Results(samples=samples)


def run_of(results: Results) -> Run:
    return Run(
        command="python -m benchmarks --quick",
        date="2026-01-01 00:00 UTC",
        machine={"processor": "slow & old"},
        versions={"starlette": {"starlette": "1.0.0", "uvicorn": "0.35.0"}},
        effort=EFFORT,
        results=results,
    )


def test_the_median_leaves_out_rounds_that_were_not_measured() -> None:
    assert median([3.0, None, 1.0, 2.0]) == 2.0
    assert median([None]) is None


@pytest.mark.parametrize(
    ("share", "expected"), [(0.001, 1.0), (0.5, 2.0), (0.51, 3.0), (0.75, 3.0), (0.99, 4.0), (1.0, 4.0)]
)
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    assert percentile([4.0, 2.0, 3.0, 1.0], share) == expected


def test_a_ratio_compares_inside_rounds() -> None:
    # The machine was ten times slower in the second round; the medians alone would tell 11 : 20.
    results = results_of({"row.cpu": {"mine": [10.0, 110.0, 11.0], "theirs": [20.0, 200.0, 20.0]}})
    assert results.ratio("row.cpu", "mine", "theirs") == pytest.approx(0.55)


def test_a_ratio_needs_a_round_in_which_both_were_measured() -> None:
    results = results_of({"row.cpu": {"mine": [None, 2.0], "theirs": [1.0]}})
    assert results.ratio("row.cpu", "mine", "theirs") is None
    assert results.ratio("row.cpu", "mine", "absent") is None
    assert results.ratio("other.cpu", "mine", "theirs") is None


def test_a_round_that_failed_keeps_its_place() -> None:
    results = Results()
    results.add("row.cpu", "mine", 0, 1.0)
    results.add("row.cpu", "mine", 2, 3.0)
    assert results.rounds("row.cpu", "mine") == [1.0, None, 3.0]


def test_the_best_server_has_the_smallest_median() -> None:
    results = results_of({"row.cpu": {"a": [1.0, 9.0, 9.0], "b": [5.0], "c": [7.0]}})
    assert results.best("row.cpu", ["a", "b", "absent"]) == "b"
    assert results.best("row.cpu", ["absent"]) is None


@pytest.mark.parametrize(
    ("value", "shown"), [(0.408, "0.41"), (16.07, "16.1"), (1245.07, "1,245"), (0.0, "0.00"), (-250.4, "-250")]
)
def test_numbers_have_three_digits_that_count(value: float, shown: str) -> None:
    assert format_number(value) == shown


def test_a_table_is_markdown() -> None:
    assert table(["server", "a"], [["x", "1"]]) == "| server | a |\n| --- | --: |\n| x | 1 |"


def test_targets_name_figures_and_servers_that_exist() -> None:
    everything: dict[str, dict[str, list[float | None]]] = {
        figure.key: {server.name: [1.0] for server in SERVERS if server.name in row.servers or not row.servers}
        for row in ROWS
        for figure in row.figures
    }
    outcomes = evaluate(results_of(everything))
    unmeasured = [outcome.target.text for outcome in outcomes if outcome.verdict == "not measured"]
    assert len(outcomes) == len(TARGETS)
    assert unmeasured == []


@pytest.mark.parametrize(("mine", "verdict"), [(59.0, "met"), (60.0, "met"), (61.0, "not met")])
def test_a_target_is_met_up_to_its_limit(mine: float, verdict: str) -> None:
    results = results_of({"echo-64-d1.cpu": {"wsdeco-direct": [mine], "starlette": [100.0]}})
    outcomes = {outcome.target.text: outcome for outcome in evaluate(results)}
    assert outcomes["echo 64 B, 1 in flight: wsdeco-direct against starlette"].verdict == verdict
    assert outcomes["echo 64 B, 1 in flight: wsdeco-direct against aiohttp"].verdict == "not measured"


def test_the_best_peer_is_not_one_in_rust() -> None:
    results = results_of({"echo-64-d16.cpu": {"wsdeco-direct": [2.0], "axum": [1.0], "aiohttp": [4.0]}})
    outcome = next(each for each in evaluate(results) if "the best peer" in each.target.text)
    assert (outcome.measured, outcome.beside) == (0.5, "aiohttp")


def test_the_report_tells_what_was_left_out_and_what_failed() -> None:
    results = results_of({"echo-64-d1.cpu": {"starlette": [20.0, 22.0, 21.0], "wsdeco-asgi": [22.0, 23.1, 22.0]}})
    results.skipped["picows"] = "picows not installed"
    results.faults.append("round 1, echo-1k, tornado: it ended a connection")
    report = to_markdown(run_of(results))
    assert "`python -m benchmarks --quick`" in report
    assert "- skipped: picows: picows not installed" in report
    assert "- failed: round 1, echo-1k, tornado: it ended a connection" in report
    assert "| Starlette on uvicorn | 21.0 (1.00x) |" in report
    assert "| wsdeco, ASGI on uvicorn | 22.0 (1.05x) |" in report
    assert "| echo 64 B, 1 in flight: wsdeco-asgi against starlette | 1.1 x | 1.05 x | met |" in report


def test_the_report_warns_of_a_client_that_was_the_limit() -> None:
    results = results_of({"echo-1k.cpu": {"bare": [1.0]}, "echo-1k.client_busy": {"bare": [0.99], "aiohttp": [0.5]}})
    assert "more than 95% in: echo-1k bare." in to_markdown(run_of(results))


def test_the_raw_numbers_are_all_in_the_json() -> None:
    results = results_of({"echo-64-d1.cpu": {"starlette": [20.0, None, 21.0]}})
    results.skipped["picows"] = "picows not installed"
    found: dict[str, Any] = json.loads(to_json(run_of(results)))
    assert found["results"]["samples"] == results.samples
    assert found["results"]["skipped"] == results.skipped
    assert found["versions"]["starlette"] == {"starlette": "1.0.0", "uvicorn": "0.35.0"}
    assert len(found["targets"]) == len(TARGETS)


def test_the_picture_is_xml_with_the_shortest_bar_first() -> None:
    results = results_of({"echo-64-d1.cpu": {"starlette": [20.0], "wsdeco-asgi": [10.0]}})
    picture = to_svg(results)
    drawn = xml.dom.minidom.parseString(picture)  # noqa: S318  # XML of our own
    assert drawn.documentElement is not None
    assert drawn.documentElement.tagName == "svg"
    assert picture.index("wsdeco, ASGI on uvicorn") < picture.index("Starlette on uvicorn")


def test_a_run_without_numbers_gives_an_empty_picture() -> None:
    assert "<svg" in to_svg(Results())


@pytest.mark.parametrize("size", [0, 1, 64, 125, 126, 65_535, 65_536])
def test_a_frame_is_found_as_soon_as_it_is_all_there(size: int) -> None:
    frame = frame_header(FIN | TEXT, size) + bytes(size)
    assert frame_end(frame, 0) == len(frame)
    assert [frame_end(frame[:cut], 0) for cut in (0, 1, len(frame) - 1)] == [None, None, None]


def test_masking_is_undone_by_masking() -> None:
    frame = masked_frame(FIN | TEXT, b"hello")
    assert frame[:2] == bytes([FIN | TEXT, MASKED | 5])
    assert bytes(byte ^ frame[2 + index % 4] for index, byte in enumerate(frame[6:])) == b"hello"


def test_messages_are_counted_across_reads_and_pings_are_not() -> None:
    ping = frame_header(FIN | 0x9, 2) + b"hi"
    fragment, last = frame_header(TEXT, 1) + b"a", frame_header(FIN, 1) + b"b"
    whole = frame_header(FIN | RSV1 | TEXT, 200) + bytes(200)
    stream = ping + fragment + last + whole
    buffer = bytearray()
    counted = 0
    for byte in stream:
        buffer.append(byte)
        counted += take_messages(buffer)
    assert (counted, len(buffer)) == (2, 0)


@pytest.mark.parametrize("size", [64, 1000, 100_001])
@pytest.mark.parametrize("payload", Payload)
def test_a_message_of_any_kind_has_its_size_and_is_valid(payload: Payload, size: int) -> None:
    message = make_message(size, payload)
    assert len(message.text) == size
    assert message.text.decode().isascii() is (payload is not Payload.BEYOND_ASCII)
    assert message.frame[0] & 0x0F == (BINARY if payload is Payload.BINARY else TEXT)
    assert len(message.frame) == (message.reply_size or 0) + 4


def test_a_message_in_fragments_is_the_same_message() -> None:
    messages = Framing(100_000).receive(make_message(100_000, fragment=4096).frame)
    assert messages == [make_message(100_000).text.decode()]
    answered = answered_with_length(make_message(100_000, fragment=4096))
    assert (answered.reply, answered.reply_size) == (b"100000", 8)


def test_rows_by_size_know_their_servers() -> None:
    assert {name for row in SIZE_ROWS for name in row.servers} <= {server.name for server in SERVERS}
    assert [connections_for(size) for size in (64, 128 * 1024, 1 << 20, 16 << 20)] == [32, 32, 4, 4]


def test_a_close_frame_ends_the_measurement() -> None:
    with pytest.raises(ServerFault, match="closed a connection"):
        take_messages(bytearray(frame_header(FIN | 0x8, 2) + b"\x03\xe8"))


def test_a_message_knows_the_size_of_its_echo() -> None:
    assert [make_message(size).reply_size for size in (64, 1024, 1 << 20)] == [66, 1028, (1 << 20) + 10]
    compressed = make_message(1024, compressed=True)
    assert compressed.reply_size is None
    assert len(compressed.frame) < 1024
    assert not deflated(compressed.text).endswith(b"\x00\x00\xff\xff")


def test_a_handshake_is_checked() -> None:
    accepted = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    check_upgrade(accepted, compression=False)
    check_upgrade(accepted + b"\r\nSec-WebSocket-Extensions: permessage-deflate", compression=True)
    with pytest.raises(NotOffered):
        check_upgrade(accepted, compression=True)
    with pytest.raises(ServerFault, match="without having been asked"):
        check_upgrade(accepted + b"\r\nSec-WebSocket-Extensions: permessage-deflate", compression=False)
    with pytest.raises(ServerFault, match="503 Service Unavailable"):
        check_upgrade(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1", compression=False)


def test_names_of_servers_rows_and_figures_are_unique() -> None:
    for names in ([each.name for each in SERVERS], [each.name for each in ROWS], [each.key for each in FIGURES]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("option", ["--servers", "--rows"])
def test_an_unknown_name_is_refused_with_those_that_exist(option: str) -> None:
    with pytest.raises(SystemExit, match=r"there is no \w+ 'nonesuch': .*wsdeco-asgi|echo-64-d1"):
        command.main([option, "nonesuch"])


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--seconds", "-1"], ["--rounds", "many"]])
def test_an_effort_that_measures_nothing_is_refused(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_what_the_limits_do_not_allow_is_said() -> None:
    effort, skipped = command.choose_effort(command.parse([]), allowed=2_000)
    assert effort.levels == (32, 1_000)
    assert effort.idle_connections == 2_000 - 32
    assert skipped == {"10,000 connections": "the limit of file descriptors allows 2,000"}
    assert command.choose_effort(command.parse(["--quick"]), allowed=20_000)[1] == {
        "10,000 connections": "not with --quick"
    }


def test_a_row_runs_against_a_real_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cores, collecting = os.sched_getaffinity(0), gc.isenabled()
    arguments = ["--servers=wsdeco-asgi", "--rows=echo-64-d1", "--rounds=1", "--seconds=0.2", f"--output={tmp_path}"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr()
    assert re.search(r"\| wsdeco, ASGI on uvicorn \| [0-9.]+ \|", printed.out) is not None
    assert "[1 of 1, the first] round 1 of 1: echo-64-d1 wsdeco-asgi" in printed.err
    numbers: dict[str, Any] = json.loads((tmp_path / "results.json").read_text("utf-8"))
    (cost,) = numbers["results"]["samples"]["echo-64-d1.cpu"]["wsdeco-asgi"]
    assert cost > 0
    assert {entry.name for entry in tmp_path.iterdir()} == {"report.md", "results.json", "results.svg"}
    assert (os.sched_getaffinity(0), gc.isenabled()) == (cores, collecting)


def test_the_time_left_is_that_of_the_steps_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 130.0, 190.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    progress = Progress(4)
    told = [progress.step() for _ in range(3)]
    assert told == ["[1 of 4, the first]", "[2 of 4, 2 min left]", "[3 of 4, 2 min left]"]


@pytest.mark.parametrize(("load", "is_said"), [("0.40 0.90 3.00", False), ("2.10 0.10 0.10", True)])
def test_the_report_says_that_the_machine_was_shared(load: str, is_said: bool) -> None:
    run = replace(run_of(results_of({})), machine={LOAD: load})
    assert ("The machine was shared" in to_markdown(run)) is is_said


def test_what_was_not_built_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (compiled,) = [each for each in SERVERS if each.name == "wsdeco-compiled"]
    assert compiled.missing() == "not built (python -m benchmarks --build)"
    (tmp_path / "wsdeco-benchmarks" / "wsdeco-compiled" / "site").mkdir(parents=True)
    assert compiled.missing() is None


def test_every_kind_of_server_is_there() -> None:
    assert {server.kind for server in SERVERS} == set(Kind)


def test_requests_are_measured_as_routes_grow(capsys: pytest.CaptureFixture[str]) -> None:
    cores = os.sched_getaffinity(0)
    growth.main(["--rounds=1", "--seconds=0.05"])
    printed = capsys.readouterr().out
    assert [line for asked in growth.REQUESTS for line in printed.splitlines() if line.startswith(f"| {asked.name} |")]
    assert re.search(r"Definition of one class of 1,000: [0-9]+ us; of a Starlette route: [0-9]+ us\.", printed)
    assert os.sched_getaffinity(0) == cores


def test_the_end_of_many_clients_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    endings.main(["--rounds=1", "--clients=50"])
    printed = capsys.readouterr().out
    assert re.search(r"\| wsdeco-direct \| [0-9.]+ \| [0-9.]+ \|\n\| starlette \|", printed)


@pytest.mark.skipif(find_program() is None, reason="nats-server is not there")
def test_rooms_are_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "PUBLISHES", 5)
    monkeypatch.setattr(rooms, "SUBSCRIBED", 50)
    rooms.main(["--rounds=1", "--seconds=0.05"])
    printed = capsys.readouterr().out
    found = re.findall(r"^\| (.*) \| -?[0-9.]+ \|$", printed, re.MULTILINE)
    assert [name.partition(",")[0] for name in found] == [
        *("room.leave with 100 rooms", "room.leave with 1", "room.leave with 10"),
        *("connection to an empty route", "connection to an empty route"),
        *("message to a room of one", "message to a room of one"),
        *("publish to NATS", "publish to NATS", "a subscription of nats-py", "a room over NATS"),
    ]


@pytest.mark.skipif(find_program() is None, reason="nats-server is not there")
def test_broadcasts_to_two_processes_are_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_wsdeco, missing = backplanes.PEERS[:2], replace(backplanes.SOCKETIO, packages=("nonesuch",))
    monkeypatch.setattr(backplanes, "PEERS", (*of_wsdeco, replace(of_wsdeco[0], title="a peer", server=missing)))
    monkeypatch.setattr(backplanes, "LOADS", (backplanes.Load("3 + 3", 3, 2, "delivery"),))
    assert backplanes.main(["--rounds=1", "--seconds=0.05"]) == 0
    printed = capsys.readouterr().out
    found = re.findall(r"^\| (.*) \| [0-9.]+ \([0-9.]+\) \|$", printed, re.MULTILINE)
    assert found == [peer.title for peer in of_wsdeco] * 2
    assert "skipped: a peer: nonesuch not installed" in printed


def test_broadcasts_without_a_broker_or_from_a_server_that_fails_are_said_to_be_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(peer: backplanes.Joined, *_: object) -> dict[str, float]:
        raise ServerFault(f"{peer.broker} does not start")

    monkeypatch.setattr(backplanes, "find_program", lambda: None)
    monkeypatch.setattr(backplanes, "PEERS", backplanes.PEERS[:2])
    monkeypatch.setattr(backplanes, "measure", fail)
    assert backplanes.main(["--rounds=1"]) == 1
    printed = capsys.readouterr().out
    assert "skipped: wsdeco over NATS: no server for nats" in printed
    assert "failed: round 1, wsdeco over Redis: redis does not start" in printed


def test_a_client_of_socketio_joins_its_namespace() -> None:
    client, server = socket.socketpair()
    with client, server:
        opening = frame_header(FIN | TEXT, 12) + b'0{"sid":"a"}'
        server.sendall(opening[5:] + frame_header(FIN | TEXT, 13) + b'40{"sid":"b"}')
        backplanes.greet_socketio(client, opening[:5])
        assert server.recv(64) == masked_frame(FIN | TEXT, b"40")
        server.sendall(frame_header(FIN | TEXT, 5) + b'44{"a')
        with pytest.raises(ServerFault, match="it greets with"):
            backplanes.greet_socketio(client, b"")
        server.close()
        with pytest.raises(ServerFault, match="it ended a connection"):
            backplanes.greet_socketio(client, b"")


def test_messages_with_types_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    typed.main(["--rounds=1", "--seconds=0.05"])
    printed = capsys.readouterr().out
    assert [name for name in typed.HANDLERS if f"| {name} |" in printed] == list(typed.HANDLERS)


def test_worker_processes_are_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "COUNTS", (2,))
    monkeypatch.setattr(workers, "CROWDS", 1)
    workers.main(["--rounds=1", "--seconds=0.05", "--crowd=50"])
    assert re.search(r"^\| 2 \| [0-9]+ \| [0-9]+ \| [01]\.[0-9]+ \|$", capsys.readouterr().out, re.MULTILINE)


def test_the_fastest_level_of_compression_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    levels.main(["--rounds=1", "--seconds=0.05"])
    assert re.search(r"^\| wsdeco-direct \| [0-9.]+ \|$", capsys.readouterr().out, re.MULTILINE)


def test_what_others_wait_for_large_messages_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fairness, "SIZE", 300_000)
    fairness.main(["--rounds=1", "--messages=2", "--servers=wsdeco-direct"])
    rows = re.findall(r"^\| ([\w-]+) \| wsdeco-direct \| [0-9.]+ \| [0-9.]+ \|$", capsys.readouterr().out, re.MULTILINE)
    assert rows == sorted(sizes.KINDS)


def test_what_stays_of_large_messages_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    afterwards.main(["--echoes=5", "--quiet=0", "--servers=wsdeco-direct"])
    rows = re.findall(r"^\| (\w+) \| wsdeco-direct \| [-0-9.]+ \| [-0-9.]+ \|$", capsys.readouterr().out, re.MULTILINE)
    assert rows == list(afterwards.KIND_NAMES)


def test_rooms_are_not_measured_without_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "find_program", lambda: None)
    with pytest.raises(ServerFault, match=r"pip install 'wsdeco\[cluster\]'"):
        rooms.main([])
