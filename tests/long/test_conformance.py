"""The Autobahn suite against echo servers on wsdeco's protocol, run by kosoku.

Without a marker the groups that take seconds run; `python -m pytest -m conformance` runs every case.
"""

import asyncio
import importlib.util
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.checkout import CHECKOUT
from tests.support.reference_framing import ReferenceFraming
from tests.support.stacks import uvicorn_serve
from wsdeco import Address, App, ConnectionConfig, Sink

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("kosoku") is None, reason="kosoku has no wheel for this platform"),
    pytest.mark.usefixtures("no_errors_logged"),
]


MAX_MESSAGE_SIZE: Final = 32 * 1024 * 1024
"""Twice the largest message of group 9."""

PERFORMANCE: Final = "9.*"
COMPRESSION: Final = ("12.*", "13.*")
FIRST_OF_EACH_COMPRESSION: Final = (
    *(f"12.{kind}.1" for kind in range(1, 6)),
    *(f"13.{kind}.1" for kind in range(1, 8)),
)

CASES: Final = 517
CASES_WITHOUT_COMPRESSION: Final = 301
CASES_WITHOUT_PERFORMANCE: Final = 247

FAST: Final = 60.0
"""Seconds for the cases that take a few."""
WHOLE: Final = 1800.0
"""Seconds for the whole suite, which inflates and deflates many gigabytes."""


MOST_SECONDS: Final = 20.0
"""Seconds after which kosoku gives a case up, whatever the case says.

Those with the most fragments (12.*.15, half a million of them each way) take 17 on a slow machine.
"""


class Verdict(NamedTuple):
    """What kosoku says of one case; `tests.support.autobahn` prints these fields.

    Attributes:
        case: Its number, as "6.4.1".
        behavior: Of the messages: "OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED", "FAILED" or "ERROR".
        closing: Of the closing handshake: "OK", "INFORMATIONAL", or what is wrong with it.
        explanation: Why.
        seconds: How long it took.
    """

    case: str
    behavior: str
    closing: str
    explanation: str
    seconds: float


class Echo:
    async def on_message(self, message: str | bytes) -> str | bytes:
        return message


def direct_app(*, compression: bool) -> App:
    app = App()
    app.add("/", Echo, config=ConnectionConfig(compression=compression, max_message_size=MAX_MESSAGE_SIZE))
    return app


async def conversation_app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            await send({"type": f"{(await receive())['type']}.complete"})
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


def room_app(*, compression: bool) -> App:
    """Return an app in which each connection is alone in a room, and hears itself there."""
    app = App()
    numbers = itertools.count()

    class Alone:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.room = app.room(str(next(numbers)))
            self.room.join(sink)

        async def on_message(self, message: str | bytes) -> None:
            await self.room.broadcast(message)

    config = ConnectionConfig(
        compression=compression, max_message_size=MAX_MESSAGE_SIZE, max_outbox=4 * MAX_MESSAGE_SIZE
    )
    app.add("/", Alone, config=config)
    return app


APPS: Final = ("direct", "conversation", "room", "library")


@pytest.fixture(params=APPS)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every app that echoes, one after the other."""
    found: str = request.param
    if found == "library":
        monkeypatch.setattr("wsdeco.transport.protocol.Framing", ReferenceFraming)
    return found


def make_app(name: str, *, compression: bool) -> ASGIApp:
    match name:
        case "direct":
            return direct_app(compression=compression)
        case "room":
            return room_app(compression=compression)
        case _:
            return conversation_app


async def verdicts_of(
    app: ASGIApp,
    *,
    compression: bool,
    timeout: float,  # noqa: ASYNC109 - a process is killed at its end
    cases: Sequence[str] = (),
    excluded: Sequence[str] = (),
    concurrency: int = 4,
) -> list[Verdict]:
    """Serve an app and run cases against it."""
    protocol = "wsdeco.protocol:WebSocketProtocol"
    serve = uvicorn_serve(protocol, ws_max_size=MAX_MESSAGE_SIZE, ws_per_message_deflate=compression)
    async with serve(app) as server:
        command = [sys.executable, "-m", "tests.support.autobahn", f"ws://127.0.0.1:{server.port}/"]
        command += [f"--concurrency={concurrency}"]
        command += [f"--case={case}" for case in cases]
        command += [f"--exclude={case}" for case in excluded]
        client = await asyncio.create_subprocess_exec(*command, cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(timeout):
                output, _ = await client.communicate()
        except BaseException:
            client.kill()
            await client.communicate()
            raise
    assert client.returncode == 0
    return [Verdict(**fields) for fields in json.loads(output)]


async def whole_suite(app: ASGIApp, *, compression: bool) -> list[Verdict]:
    """Return the verdicts of all cases; those that had too little time beside others have had another try, alone."""
    excluded = () if compression else COMPRESSION
    verdicts = await verdicts_of(app, compression=compression, timeout=WHOLE, excluded=excluded, concurrency=2)
    late = [verdict.case for verdict in verdicts if verdict.seconds >= MOST_SECONDS]
    if not late:
        return verdicts
    again = await verdicts_of(app, compression=compression, timeout=WHOLE, cases=late, concurrency=1)
    return [verdict for verdict in verdicts if verdict.case not in late] + again


def assert_conforming(verdicts: list[Verdict], number: int, name: str) -> None:
    """Fail unless at least `number` cases have run, and each has passed."""
    print(Counter(verdict.behavior for verdict in verdicts))  # noqa: T201 - `pytest -s` shows the counts
    assert [verdict for verdict in verdicts if not is_conforming(verdict, name)] == []
    assert len(verdicts) >= number


LATE: Final = "6.4."
"""Cases that are not strict: a text that cannot become valid is refused at the end of the frame that spoils it."""

BEFORE_A_FAULT: Final = (*(f"{group}.{number}" for group in ("3", "4.1", "4.2") for number in range(1, 8)), "5.15")
"""Cases of messages in front of a bad frame. They are answered, but not through rooms: with its fault a peer leaves."""

UNCOMPRESSED: Final = "Strings must be encoded before hashing"
"""Where kosoku fails by itself, at an uncompressed message where compression was agreed on (RFC 7692, section 6).

Rooms send such, where compression gains nothing; `test_shared_frames` has the client of `websockets` take them.
"""


def is_conforming(verdict: Verdict, name: str) -> bool:
    if name == "room" and UNCOMPRESSED in verdict.explanation:
        return True
    is_known = verdict.case.startswith(LATE) or (name == "room" and verdict.case in BEFORE_A_FAULT)
    is_late = verdict.behavior == "NON-STRICT" and is_known
    return (is_late or verdict.behavior in {"OK", "INFORMATIONAL"}) and verdict.closing in {"OK", "INFORMATIONAL"}


async def test_all_but_performance_and_compression(name: str) -> None:
    app = make_app(name, compression=False)
    excluded = (PERFORMANCE, *COMPRESSION)
    verdicts = await verdicts_of(app, compression=False, timeout=FAST, excluded=excluded, concurrency=8)
    assert_conforming(verdicts, CASES_WITHOUT_PERFORMANCE, name)


async def test_each_kind_of_compression(name: str) -> None:
    app = make_app(name, compression=True)
    verdicts = await verdicts_of(app, compression=True, timeout=FAST, cases=FIRST_OF_EACH_COMPRESSION)
    assert_conforming(verdicts, len(FIRST_OF_EACH_COMPRESSION), name)


@pytest.mark.conformance
@pytest.mark.timeout(2 * WHOLE)
async def test_every_case_without_compression(name: str) -> None:
    verdicts = await whole_suite(make_app(name, compression=False), compression=False)
    assert_conforming(verdicts, CASES_WITHOUT_COMPRESSION, name)


@pytest.mark.conformance
@pytest.mark.timeout(2 * WHOLE)
async def test_every_case_with_compression(name: str) -> None:
    verdicts = await whole_suite(make_app(name, compression=True), compression=True)
    assert_conforming(verdicts, CASES, name)
