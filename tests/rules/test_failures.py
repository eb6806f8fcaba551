"""The cross product of failures: where a hook does something x what it does x what ends the connection, and when.

`expected` is a model of the rules of a connection. It knows nothing of tasks, timers or channels, and says for each
cell the whole event log (with the time of each event), what the client sees, and what is logged.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import pytest
from starlette.exceptions import HTTPException

from tests.support.wire import Logged, Seen, Wire, assert_at_rest
from wsdeco import Address, App, Close, ConnectionClosed, DisconnectReason, Error, Sink, Timeout, Unknown
from wsdeco.config import ConnectionConfig, Limits
from wsdeco.testing import ManualClock

Place: TypeAlias = Literal["before_send", "after_send", "message", "stream", "disconnect"]
"""Where: in on_connect before and after its first send, in on_message, in the middle of a stream, in on_disconnect."""

How: TypeAlias = Literal[
    "returns",
    "exception",
    "base_exception",
    "system_exit",
    "group",
    "http_exception",
    "cancels_itself",
    "swallows_and_returns",
    "swallows_and_goes_on",
    "never_returns",
]
Ending: TypeAlias = Literal["peer_close", "own_close", "expired", "idle", "duration", "connect", "lost", "shut_down"]
First: TypeAlias = Literal["hook", "ending"]
"""Which comes first. What waits to be cancelled needs an ending that cancels it, so there the ending comes first."""

PLACES: Final[tuple[Place, ...]] = ("before_send", "after_send", "message", "stream", "disconnect")
RAISES: Final[tuple[How, ...]] = (
    *("exception", "base_exception", "system_exit", "group"),
    *("http_exception", "cancels_itself"),
)
WAITS: Final[tuple[How, ...]] = ("swallows_and_returns", "swallows_and_goes_on", "never_returns")
ENDINGS: Final[tuple[Ending, ...]] = (
    *("peer_close", "own_close", "expired", "idle"),
    *("duration", "connect", "lost", "shut_down"),
)

IDLE: Final = 60.0
DURATION: Final = 100.0
CONNECT: Final = 5.0
CLOSE: Final = 10.0
GRACE: Final = 30.0
AGAIN: Final = 1.0
"""Seconds after which a swallowed cancellation is repeated."""
LONG: Final = 1000.0
"""Longer than all of them."""

LIMITS: Final[dict[Ending, Limits]] = {
    "idle": {"idle_timeout": IDLE},
    "duration": {"max_connection_duration": DURATION},
}
"""Each limit is set for its own ending only, but for the connect_timeout, which is always there."""

PASSES: Final[dict[Ending, float]] = {"idle": IDLE, "duration": DURATION, "connect": CONNECT}
"""The time that is let pass in order to bring the ending about."""

HOOKS: Final[dict[Place, str]] = {
    "before_send": "on_connect",
    "after_send": "on_connect",
    "message": "on_message",
    "stream": "on_message",
    "disconnect": "on_disconnect",
}

REASONS: Final[dict[Ending, DisconnectReason]] = {
    "peer_close": Close(4001, "bye", by="client"),
    "own_close": Close(4002, "enough", by="server"),
    "expired": Close(4401, "token expired", by="server"),
    "idle": Timeout("idle_timeout of 60 s is over", "idle_timeout"),
    "duration": Timeout("max_connection_duration of 100 s is over", "max_connection_duration"),
    "connect": Timeout("connect_timeout of 5 s is over", "connect_timeout"),
    "lost": Unknown(),
    "shut_down": Close(1012, "service restart", by="server"),
}

CLOSE_FRAMES: Final[dict[Ending, Seen]] = {
    "own_close": ("close", 4002, "enough"),
    "expired": ("close", 4401, "token expired"),
    "idle": ("close", 1001, "idle_timeout of 60 s is over"),
    "duration": ("close", 1001, "max_connection_duration of 100 s is over"),
    "shut_down": ("close", 1012, "service restart"),
}


class FatalError(BaseException):
    """Not an `Exception`."""


ERRORS: Final[dict[How, Callable[[], BaseException]]] = {
    "exception": lambda: ValueError("secret"),
    "base_exception": lambda: FatalError("secret"),
    "system_exit": lambda: SystemExit("secret"),
    "group": lambda: ExceptionGroup("secret", [ValueError("secret"), KeyError("secret")]),
    "http_exception": lambda: HTTPException(401, "secret"),
    "cancels_itself": asyncio.CancelledError,
}


@dataclass(frozen=True)
class Cell:
    place: Place
    how: How
    first: First
    ending: Ending

    def __str__(self) -> str:
        return f"{self.place}-{self.how}-{self.first}_first-{self.ending}"

    @property
    def hook(self) -> str:
        return HOOKS[self.place]

    @property
    def handler(self) -> str:
        return "Streams" if self.place == "stream" else "Replies"


def all_cells() -> list[Cell]:
    cells: list[Cell] = []
    for place in PLACES:
        for how in ("returns", *RAISES, *WAITS):
            # on_disconnect comes behind the ending, whatever it does.
            only = how in WAITS or place == "disconnect"
            orders: tuple[First, ...] = ("ending",) if only else ("hook", "ending")
            cells += [Cell(place, how, first, ending) for first in orders for ending in ENDINGS]
    return cells


@dataclass
class Outcome:
    """All that can be seen of a connection.

    Attributes:
        events: When, in which hook, and what.
        client: What the client saw.
        logged: Level, hook, and the exception whose traceback is there, if any.
    """

    events: list[tuple[float, str, object]] = field(default_factory=list[tuple[float, str, object]])
    client: list[Seen] = field(default_factory=list[Seen])
    logged: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])


# The model.


def expected(cell: Cell) -> Outcome:
    """Return what the rules of a connection say of the cell."""
    out = Outcome([(0.0, "on_connect", "entered")])
    if cell.place == "disconnect":
        ending = cell.ending
        at = PASSES.get(ending, 0.0)
        if ending == "connect":
            # on_connect does not get to its first send.
            out.logged.append(("WARNING", "on_connect", ""))
        else:
            out.client += ["accepted", "welcome"]
        over(out, cell, ending, REASONS[ending], at)
        return out
    if cell.place != "before_send":
        out.client += ["accepted", "welcome"]
    if cell.hook == "on_message":
        out.events.append((0.0, "on_message", "go"))
    if cell.place == "stream":
        out.client.append("first")
    out.events.append((0.0, cell.hook, "reached"))
    if cell.first == "hook" or cannot_set_in(cell):
        hook_first(out, cell)
    else:
        ending_first(out, cell)
    return out


def cannot_set_in(cell: Cell) -> bool:
    """Return whether the ending is a limit that does not count as long as the hook runs."""
    if cell.place == "before_send":
        # The upgrade is not accepted yet: the limits from then on do not count, but the connect_timeout does.
        return False
    return cell.ending in {"idle", "connect"}


def hook_first(out: Outcome, cell: Cell) -> None:
    """The hook does what it does while the connection is alive, and then comes the ending."""
    passed = PASSES.get(cell.ending, 0.0)
    now = passed if cell.first == "ending" else 0.0
    if cell.how in WAITS:
        # Nothing happens until the peer is lost, after a long time.
        waits_for_cancellation(out, cell, passed + LONG + GRACE)
        over(out, cell, "lost", Unknown(), out.events[-1][0])
    elif cell.how == "http_exception" and cell.place == "before_send":
        # The handshake is refused: no failure, and no on_disconnect.
        raises(out, cell, now, None)
        out.client.append(("http", 401))
    elif cell.how in RAISES:
        raises(out, cell, now, ("ERROR", cell.hook, kind_of(cell)))
        failure = ("http", 500) if cell.place == "before_send" else ("close", 1011, "internal error")
        out.client.append(failure)
        text = "" if cell.how == "cancels_itself" else str(ERRORS[cell.how]())
        out.events.append((now, "on_disconnect", Error(f"{cell.handler}.{cell.hook} raised {kind_of(cell)}: {text}")))
    else:
        out.events.append((now, cell.hook, "done"))
        goes_on: dict[Place, list[Seen]] = {
            "before_send": ["accepted", "welcome"],
            "message": ["reply"],
            "stream": ["second"],
        }
        out.client += goes_on.get(cell.place, [])
        if cell.ending == "connect":
            # The upgrade has been accepted, so this limit is off.
            over(out, cell, "lost", Unknown(), passed + LONG)
        else:
            over(out, cell, cell.ending, REASONS[cell.ending], now + passed)


def ending_first(out: Outcome, cell: Cell) -> None:
    """The connection ends while the hook runs."""
    ending, reason = cell.ending, REASONS[cell.ending]
    if cell.place == "before_send":
        if ending in PASSES:
            ending, reason = "connect", REASONS["connect"]
        elif ending == "peer_close":
            # There is no close frame before the upgrade.
            ending, reason = "lost", Unknown()
    at = PASSES.get(ending, 0.0)
    if ending in PASSES and cell.how not in WAITS:
        # A hard limit cancels the hook before it can do what it was to do.
        raises(out, cell, at, ("WARNING", cell.hook, ""), "CancelledError")
    elif ending in PASSES:
        waits_for_cancellation(out, cell, at)
    elif cell.how in WAITS:
        waits_for_cancellation(out, cell, CLOSE if ending == "shut_down" else GRACE)
    elif cell.how in RAISES:
        raises(out, cell, at, blamed(cell))
    else:
        out.events.append((at, cell.hook, "done"))
    over(out, cell, ending, reason, out.events[-1][0])


def over(out: Outcome, cell: Cell, ending: Ending, reason: DisconnectReason, at: float) -> None:
    """What the client sees of the ending, and on_disconnect."""
    handshake = "accepted" not in out.client
    if handshake and ending in {"connect", "expired", "shut_down"}:
        out.client.append(("http", 503))
    elif ending in CLOSE_FRAMES:
        if handshake:
            # `sink.close()` accepts first, so that its code arrives.
            out.client.append("accepted")
        out.client.append(CLOSE_FRAMES[ending])
    out.events.append((at, "on_disconnect", reason))
    if cell.place != "disconnect":
        return
    out.events.append((at, "on_disconnect", "reached"))
    if cell.how in WAITS:
        waits_for_cancellation(out, cell, at + (CLOSE if ending == "shut_down" else max(GRACE, CLOSE)))
    elif cell.how in RAISES:
        raises(out, cell, at, blamed(cell))
    else:
        out.events.append((at, "on_disconnect", "done"))


def waits_for_cancellation(out: Outcome, cell: Cell, at: float) -> None:
    if cell.how == "never_returns":
        raises(out, cell, at, ("WARNING", cell.hook, ""), "CancelledError")
        return
    out.events.append((at, cell.hook, "swallowed"))
    if cell.how == "swallows_and_goes_on":
        raises(out, cell, at + AGAIN, ("WARNING", cell.hook, ""), "CancelledError")
    else:
        out.events.append((at, cell.hook, "done"))


def raises(out: Outcome, cell: Cell, at: float, line: tuple[str, str, str] | None, kind: str | None = None) -> None:
    out.events.append((at, cell.hook, kind_of(cell) if kind is None else kind))
    if line is not None:
        out.logged.append(line)


def blamed(cell: Cell) -> tuple[str, str, str] | None:
    """Return the line that is logged when the hook raises after the end."""
    if cell.how == "http_exception" and cell.place == "before_send" and cell.ending != "own_close":
        # A refusal that comes too late is no failure; but an own close has accepted the upgrade.
        return None
    if cell.how == "cancels_itself" and cell.ending == "shut_down":
        # Cancellation belongs to a shutdown, whoever asks for it.
        return ("WARNING", cell.hook, "")
    return ("ERROR", cell.hook, kind_of(cell))


def kind_of(cell: Cell) -> str:
    return type(ERRORS[cell.how]()).__name__


# The run.


class Story:
    """What the hook of the cell does, and the log of all hooks."""

    def __init__(self, cell: Cell, clock: ManualClock) -> None:
        self.cell = cell
        self.outcome = Outcome()
        self.gate = asyncio.Event()
        self.sinks: list[Sink] = []
        self._clock = clock

    def log(self, hook: str, what: object) -> None:
        self.outcome.events.append((self._clock.time(), hook, what))

    async def reach(self, place: Place) -> None:
        cell = self.cell
        if place == "before_send" and cell.place == "disconnect" and cell.ending == "connect":
            await asyncio.Event().wait()
        if place != cell.place:
            return
        self.log(cell.hook, "reached")
        try:
            await self._act()
        except BaseException as exc:
            self.log(cell.hook, type(exc).__name__)
            raise
        self.log(cell.hook, "done")

    async def _act(self) -> None:
        if self.cell.how in WAITS:
            await self._wait_for_cancellation()
            return
        await self.gate.wait()
        if self.cell.how == "cancels_itself":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        elif self.cell.how in RAISES:
            error = ERRORS[self.cell.how]()
            raise error

    async def _wait_for_cancellation(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.cell.how == "never_returns":
                raise
            self.log(self.cell.hook, "swallowed")
        if self.cell.how == "swallows_and_goes_on":
            await asyncio.Event().wait()


class Handler:
    def __init__(self, story: Story) -> None:
        self.story = story

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.story.sinks.append(sink)
        self.story.log("on_connect", "entered")
        await self.story.reach("before_send")
        await sink.send("welcome")
        await self.story.reach("after_send")

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        self.story.log("on_disconnect", reason)
        await self.story.reach("disconnect")


class Replies(Handler):
    async def on_message(self, text: str) -> str:
        self.story.log("on_message", text)
        await self.story.reach("message")
        return "reply"


class Streams(Handler):
    async def on_message(self, text: str) -> AsyncIterator[str]:
        self.story.log("on_message", text)
        yield "first"
        await self.story.reach("stream")
        yield "second"


class Run:
    """The cell, on the real thing."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.clock = ManualClock()
        self.story = Story(cell, self.clock)
        self.app = App(clock=self.clock)
        self.app.add(
            "/ws",
            Streams if cell.place == "stream" else Replies,
            factory=self._make,
            config=ConnectionConfig(connect_timeout=CONNECT, close_timeout=CLOSE, disconnect_grace=GRACE),
            **LIMITS.get(cell.ending, Limits()),
        )
        self.wire = Wire(self.app)
        self._others: list[asyncio.Task[None]] = []

    def _make(self, headers: object) -> Handler:
        return Streams(self.story) if self.cell.place == "stream" else Replies(self.story)

    async def run(self) -> Outcome:
        self.wire.connect()
        if self.cell.hook == "on_message":
            self.wire.message("go")
        await self.clock.settle()
        if self.cell.first == "hook" or self.cell.place == "disconnect":
            self.story.gate.set()
            await self.clock.settle()
        await self._end()
        self.story.gate.set()
        await self.clock.advance(LONG)
        if not self.wire.task.done():
            self.wire.lose()
            await self.clock.advance(LONG)
        await self.wire.done()
        for task in self._others:
            await task
        self.story.outcome.client = self.wire.seen
        return self.story.outcome

    async def _end(self) -> None:
        match self.cell.ending:
            case "peer_close" if "accepted" in self.wire.seen:
                self.wire.close(4001, "bye")
            case "peer_close" | "lost":
                self.wire.lose()
            case "own_close":
                self._others.append(asyncio.create_task(self.story.sinks[0].close(4002, "enough")))
            case "expired":
                # What has ended before cannot expire.
                with suppress(ConnectionClosed):
                    self.story.sinks[0].expire_at(time.time())
                await self.clock.advance(0)
            case "shut_down":
                self._others.append(asyncio.create_task(self.app.shut_down()))
            case "idle" | "duration" | "connect":
                await self.clock.advance(PASSES[self.cell.ending])
        await self.clock.settle()


LINE: Final = re.compile(
    r"(?:Replies|Streams)\.(\w+)(?: failed for 192.0.2.1:4321| for 192.0.2.1:4321 was cancelled: .+)"
)


ANNOUNCEMENT: Final = (
    "idle_timeout on /ws counts messages only: this server does not show pings to the app "
    "(uvicorn does with --ws wsdeco.protocol:WebSocketProtocol)"
)


def logged_lines(logged: Logged) -> list[tuple[str, str, str]]:
    lines: list[tuple[str, str, str]] = []
    for record in logged.records:
        if record.getMessage() == ANNOUNCEMENT:
            continue
        matched = LINE.fullmatch(record.getMessage())
        assert matched is not None, record.getMessage()
        exception = record.exc_info[1] if record.exc_info is not None else None
        lines.append((record.levelname, matched[1], "" if exception is None else type(exception).__name__))
    return lines


@pytest.mark.parametrize("cell", all_cells(), ids=str)
async def test_every_cell_is_as_the_rules_say(cell: Cell, caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    run = Run(cell)
    found = await run.run()
    found.logged = logged_lines(logged)
    assert found == expected(cell)
    assert_at_rest(run.app, run.clock)
