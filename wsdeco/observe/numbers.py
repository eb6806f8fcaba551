"""The numbers of an app: what happens to its connections, counted in plain integers.

A connection counts its own messages, and its numbers are added to those of the app when it ends, or when somebody asks.
So a message costs two additions, and never a call into a library.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from time import perf_counter
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from starlette.types import Scope

from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data, payload_estimate
from wsdeco.channels.observer import Observer
from wsdeco.observe.access import AccessLog
from wsdeco.reasons import Close, CloseCode, ConnectionClosed, DisconnectReason, Error, Timeout
from wsdeco.routing.endpoints import Context

__all__ = ["Histogram", "Numbers", "Stats", "Visit", "numbers_of"]

_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds: those of Prometheus' own clients, from a millisecond on."""

_KINDS: Final = 64
"""How many ends are told apart."""

_SAMPLE: Final = 16
"""Of so many messages to a peer the outbox is looked at for one, since that costs as much as all else."""


@dataclass(slots=True)
class Histogram:
    """How long something took, by upper bounds in seconds.

    Attributes:
        counts: How often it took at most each of `bounds`, and longer than the one before; the last is for all above.
        total: The sum of all, in seconds.
        bounds: The upper bounds, in seconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    total: float = 0.0
    bounds: tuple[float, ...] = _BOUNDS

    def add(self, seconds: float) -> None:
        """Count one that took `seconds`."""
        self.counts[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """How often it happened."""
        return sum(self.counts)

    def __add__(self, other: Histogram) -> Histogram:
        """Return both together."""
        counts = [mine + others for mine, others in zip(self.counts, other.counts, strict=True)]
        return Histogram(counts, self.total + other.total)


@dataclass(slots=True)
class Stats:
    """The numbers of an app, as `App.stats` returns them: a copy, which changes no more.

    The numbers of several worker processes of `run` are added up.

    Attributes:
        open: Connections that are open now.
        accepted: Upgrades that were accepted.
        refused: Handshakes that were refused, by cause: `full`, `client`, `shutdown`, `origin`, `host`, `handler`,
            `failure`, `connect_timeout`, `gone`, and what other limits call theirs.
        ended: Connections that have ended, by close code and by whom, such as `"1000 client"`; `"lost"` without a close
            frame. After 64 of these, what is new is counted under `"other client"` and `"other server"`.
        messages_received: Messages that arrived.
        bytes_received: Their payload, in bytes; that of long texts beyond ASCII is estimated.
        messages_sent: Messages that were handed to the server, the copy of each member of a broadcast included.
        bytes_sent: Their payload, in bytes, as estimated.
        rooms: Rooms that have members now; one with members in several processes counts in each.
        members: Their members: a connection counts in each of its rooms, and none in that of its route.
        dropped: Outgoing messages that were dropped for a slow consumer, or closed it.
        over_rate: Messages over `message_rate` or `byte_rate`, which waited, were dropped, or closed their connection.
        invalid: Messages that were not of the type that `on_message` is annotated with, or answered no request.
        undelivered: Incoming messages that reached no hook.
        slow_consumers: Connections that were closed because their peer read too slowly (1013).
        hook_failures: Exceptions of hooks, by hook.
        lag: How late the event loop ran a timer in the last second, in seconds; the worst of all processes.
        inbox_high_water: Most bytes that messages of one connection have taken at a time, as they waited for a hook; of
            the worst process, and from when on `hooks` counts.
        outbox_high_water: Most bytes that one peer has had to make room for at a time, as seen at one of 16 messages
            and as far as the server shows it; as above.
        hooks: Time that each hook took, sending included, by its name: of connections that began after the first call
            of `App.stats`, or with `App(metrics=...)`, since it costs two calls for each message.
        handshakes: Time from the handshake to the upgrade.
        lives: Time from the upgrade to the end, of connections that have ended.
    """

    open: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    ended: Counter[str] = field(default_factory=Counter[str])
    messages_received: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    bytes_sent: int = 0
    rooms: int = 0
    members: int = 0
    dropped: int = 0
    over_rate: int = 0
    invalid: int = 0
    undelivered: int = 0
    slow_consumers: int = 0
    hook_failures: Counter[str] = field(default_factory=Counter[str])
    lag: float = 0.0
    inbox_high_water: int = 0
    outbox_high_water: int = 0
    hooks: dict[str, Histogram] = field(default_factory=dict[str, Histogram])
    handshakes: Histogram = field(default_factory=Histogram)
    lives: Histogram = field(default_factory=Histogram)

    def __add__(self, other: Stats) -> Stats:
        """Return the numbers of both together."""
        both = Stats()
        for name in (each.name for each in fields(Stats)):
            mine, others = getattr(self, name), getattr(other, name)
            setattr(both, name, max(mine, others) if name in _WORST else _both(mine, others))
        return both


_WORST: Final = frozenset({"lag", "inbox_high_water", "outbox_high_water"})
"""What several processes have the worst of, and not the sum."""


def _both(mine: Any, others: Any) -> Any:
    if type(mine) is not dict:
        return mine + others
    histograms = cast("dict[str, Histogram]", mine)
    return others | {name: each + others.get(name, Histogram()) for name, each in histograms.items()}


class Visit(Observer):
    """Counts what happens to one connection.

    Attributes:
        messages_in: Messages that arrived.
        bytes_in: Their payload, in bytes.
        messages_out: Messages that were handed to the server.
        bytes_out: Their payload, in bytes.
        began: The clock's time of the handshake, and from the upgrade on that of the upgrade.
        path: The path of the handshake.
    """

    __slots__ = ("_numbers", "began", "bytes_in", "bytes_out", "messages_in", "messages_out", "path")

    def __init__(self, numbers: Numbers, channel: Channel) -> None:
        self._numbers = numbers
        self.began: float = channel.clock.time()
        self.messages_in: int = 0
        self.bytes_in: int = 0
        self.messages_out: int = 0
        self.bytes_out: int = 0
        self.path: str = channel.request.scope["path"]

    def refused(self, scope: Scope, status: int, cause: str) -> None:
        """Count and log the refusal."""
        self._numbers.refused(scope, status, cause)

    def accepted(self, channel: Channel) -> None:
        """Count and log the upgrade."""
        now = channel.clock.time()
        numbers = self._numbers
        numbers.stats.accepted += 1
        numbers.stats.handshakes.add(now - self.began)
        numbers.enter(self, channel.loop)
        self.began = now
        if numbers.log is not None:
            numbers.log.accepted(channel.addr, self.path)

    def messages_received(self, channel: Channel, messages: list[Data]) -> None:
        """Count messages that arrived."""
        self.messages_in += len(messages)
        size = 0
        for message in messages:
            # Most messages are text in ASCII, and a call costs more than this.
            size += len(message) if message.__class__ is str and message.isascii() else payload_estimate(message)
        self.bytes_in += size

    def message_sent(self, channel: Channel, size: int) -> None:
        """Count a message that was sent."""
        self.messages_out += 1
        self.bytes_out += size

    def message_dropped(self, channel: Channel) -> None:
        """Count a message that was not sent."""
        self._numbers.stats.dropped += 1

    def message_over_rate(self, channel: Channel) -> None:
        """Count a message that came too early."""
        self._numbers.stats.over_rate += 1

    def message_invalid(self, channel: Channel) -> None:
        """Count a message that could not be read."""
        self._numbers.stats.invalid += 1

    def hook_ended(self, channel: Channel, hook: str, exception: BaseException | None) -> None:
        """Count a failure."""
        expected = ConnectionClosed, asyncio.CancelledError
        if exception is not None and not isinstance(exception, expected):
            self._numbers.stats.hook_failures[hook] += 1

    def ended(self, channel: Channel) -> None:
        """Add what this connection has counted, and log its end."""
        numbers, stats = self._numbers, self._numbers.stats
        seconds = channel.clock.time() - self.began
        numbers.visits.discard(self)
        self.add_to(stats)
        stats.lives.add(seconds)
        stats.undelivered += channel.undelivered
        reason = channel.reason
        kind = _kind(reason)
        if kind not in stats.ended and len(stats.ended) >= _KINDS:
            # Peers choose their codes, among thousands.
            kind = f"other {kind.partition(' ')[2]}"
        stats.ended[kind] += 1
        if isinstance(reason, Close) and reason.code == CloseCode.TRY_AGAIN_LATER and reason.by == "server":
            stats.slow_consumers += 1
        if numbers.log is not None:
            sent = self.messages_out, self.bytes_out
            numbers.log.ended(channel.addr, self.path, reason, seconds, (self.messages_in, self.bytes_in), sent)

    def add_to(self, stats: Stats) -> None:
        """Add the messages of this connection."""
        stats.messages_received += self.messages_in
        stats.bytes_received += self.bytes_in
        stats.messages_sent += self.messages_out
        stats.bytes_sent += self.bytes_out


class DetailedVisit(Visit):
    """Measures hooks and what waits besides."""

    __slots__ = ("_hook_began", "_time")

    messages_in: int
    bytes_in: int
    messages_out: int
    bytes_out: int

    def __init__(self, numbers: Numbers, channel: Channel) -> None:
        super().__init__(numbers, channel)
        # The clock of uvloop stands still in each turn of the loop, and so while a hook blocks.
        self._time = perf_counter if channel.clock is channel.loop else channel.clock.time
        self._hook_began = 0.0

    def messages_received(self, channel: Channel, messages: list[Data]) -> None:
        """Count messages that arrived, and those that wait."""
        # Not by the method of the base, whose call costs 0.2 us more for each read.
        self.messages_in += len(messages)
        size = 0
        for message in messages:
            size += len(message) if message.__class__ is str and message.isascii() else payload_estimate(message)
        self.bytes_in += size
        waiting = channel.inbox_size + size
        stats = self._numbers.stats
        if waiting > stats.inbox_high_water:  # noqa: PLR1730 - max() is a call
            stats.inbox_high_water = waiting

    def message_sent(self, channel: Channel, size: int) -> None:
        """Count a message that was sent, and what waits."""
        if not self.messages_out % _SAMPLE:
            stats = self._numbers.stats
            stats.outbox_high_water = max(stats.outbox_high_water, channel.unsent)
        self.messages_out += 1
        self.bytes_out += size

    def hook_started(self, channel: Channel, hook: str) -> None:
        """Take the time."""
        self._hook_began = self._time()

    def hook_ended(self, channel: Channel, hook: str, exception: BaseException | None) -> None:
        """Count the time and a failure."""
        seconds = self._time() - self._hook_began
        times = self._numbers.stats.hooks.get(hook)
        if times is None:
            times = self._numbers.stats.hooks[hook] = Histogram()
        times.add(seconds)
        if exception is not None:
            super().hook_ended(channel, hook, exception)


_hook_began: Final[ContextVar[float]] = ContextVar("wsdeco_hook_began", default=0.0)
"""When the hook began that this task calls."""


class SideBySideVisit(DetailedVisit):
    """Measures hooks of which several run at a time."""

    def hook_started(self, channel: Channel, hook: str) -> None:
        """Take the time of this task."""
        _hook_began.set(self._time())

    def hook_ended(self, channel: Channel, hook: str, exception: BaseException | None) -> None:
        """Count the time since then and a failure."""
        self._hook_began = _hook_began.get()
        super().hook_ended(channel, hook, exception)


def _kind(reason: DisconnectReason | None) -> str:
    match reason:
        case Close(code, _, by):
            return f"{code} {by}"
        case Timeout():
            return f"{reason.code} server"
        case Error():
            return f"{CloseCode.INTERNAL_ERROR} server"
        case _:
            return "lost"


def numbers_of(context: Context) -> Numbers:
    """Return what counts the connections of an app, from the first call on."""
    numbers = _numbers.get(context)
    if numbers is None:
        numbers = _numbers[context] = Numbers(context.census)
        context.observe(numbers)
    return numbers


class Numbers(Observer):
    """Counts what happens to all connections of an app.

    Args:
        census: Returns how many rooms have members, and how many these are.

    Attributes:
        stats: What has ended, without the messages of connections that are open.
        visits: The connections that are open.
        log: Where their beginning and end is written; `None` for nowhere.
        is_detailed: Whether connections that begin from now on are measured in detail.
        lag_interval: Seconds between two looks at the lag of the event loop.
        together: Returns the numbers of all worker processes, given those of this one; `None` if there is no other.
    """

    def __init__(self, census: Callable[[], tuple[int, int]]) -> None:
        self.stats: Stats = Stats()
        self.visits: set[Visit] = set()
        self.log: AccessLog | None = None
        self.is_detailed = False
        self.lag_interval: float = 1.0
        self.together: Callable[[Stats], Stats] | None = None
        self._census = census
        self._measures_lag = False

    def begin(self, channel: Channel) -> Visit:
        """Return what counts for one connection."""
        if not self.is_detailed:
            return Visit(self, channel)
        return (DetailedVisit if channel.config.parallel == 1 else SideBySideVisit)(self, channel)

    def refused(self, scope: Scope, status: int, cause: str) -> None:
        """Count and log a handshake that was refused."""
        self.stats.refused[cause] += 1
        if self.log is not None:
            self.log.refused(scope, status, cause)

    def taken(self) -> Stats:
        """Return the numbers of this moment, of all worker processes if there are several; from any thread."""
        own = self.own()
        return own if self.together is None else self.together(own)

    def own(self) -> Stats:
        """Return those of this process; from any thread."""
        taken = self.stats + Stats()
        visits = tuple(self.visits)
        taken.open = len(visits)
        taken.rooms, taken.members = self._census()
        for visit in visits:
            visit.add_to(taken)
        return taken

    def _measure_lag(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        # As long as somebody is connected, so that no timer is left behind at the end.
        now = loop.time()
        self.stats.lag = max(0.0, now - due)
        self._measures_lag = bool(self.visits)
        if self._measures_lag:
            due = now + self.lag_interval
            loop.call_at(due, self._measure_lag, loop, due)

    def enter(self, visit: Visit, loop: asyncio.AbstractEventLoop) -> None:
        """Note that a connection is open."""
        self.visits.add(visit)
        if not self._measures_lag:
            self._measure_lag(loop, loop.time())


_numbers: Final[WeakKeyDictionary[Context, Numbers]] = WeakKeyDictionary()
