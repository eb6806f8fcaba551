"""What a backplane does in one event loop: one connection at a time, kept up by a supervisor.

What is published waits in a queue of bounded size and is written in the next turn of the loop, as far as the broker has
confirmed what was written before: all that a lost connection leaves in doubt is a window of bounded size. Nothing is
sent twice. Each message carries its number, by which every receiver counts what it has missed.

While there is no connection, publishing fails at once; only what is published before the first attempt to connect has
ended waits for it. Which rooms are subscribed is a set of names that each connection is brought in line with, so a room
that is left and joined in a tight loop costs nothing, and every new connection subscribes what the last one had.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from wsdeco.backplanes.envelope import PUBLISHER_BYTES, open_envelope, seal
from wsdeco.backplanes.interface import BackplaneCounters, BackplaneState, Propagator
from wsdeco.backplanes.link import Broker, BrokerRefusal, Link, Message
from wsdeco.backplanes.numbers import Gaps, Numbers
from wsdeco.clock import Clock, Timer, running_loop, sleep
from wsdeco.messages import Data
from wsdeco.reasons import printable

__all__ = ["Session", "Standing", "Supervision"]

logger: Final = logging.getLogger("wsdeco")

_MAX_BATCH_BYTES: Final = 256 * 1024
_MAX_BATCH_MESSAGES: Final = 1024
"""What the broker may be given before it has confirmed any of it."""

_PER_MESSAGE: Final = 128
"""Bytes that a message in the queue takes besides its own."""

_MAX_ERRORS_LOGGED: Final = 3
"""Different errors that are logged while there is no connection: some brokers say something else each time."""

_MAX_ERROR_LENGTH: Final = 200

_MAX_LINGERING: Final = 4096
"""Rooms without members that are subscribed for a while yet; more of them are unsubscribed earlier."""

_SHORTEST_QUIET: Final = 1.0
"""Seconds a connection must have been quiet for its end to be taken for that of a quiet one."""

_FREQUENT_PING: Final = 0.5
"""The shortest interval of pings, in seconds."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """How a connection is kept up. All times in seconds.

    Attributes:
        connect_timeout: For a connection to be made.
        ping_interval: Between two looks whether the broker is there; less if it, or something on the way, has ended
            a connection that was quiet for less.
        answer_timeout: For the broker to confirm something of what it was given, or to answer a ping.
        confirm_delay: After a message, for others to follow it before the broker is asked to confirm all of them.
        linger: That a room goes on being subscribed when nobody is left in it, as the next one may be about to come.
        close_timeout: At the end, for what is still in the queue.
        first_delay: Before the second attempt to connect; doubled before each further one.
        max_delay: The longest delay. A connection that has lasted as long sets it back to the first.
        max_queue: Bytes in the queue above which nothing more is taken.
        high_water: Bytes in the queue above which `drained` waits.
        clock: What the delays before attempts and `linger` are measured by; by default the event loop.
        jitter: A random number between 0 and 1: that part of the second half of a delay is waited for.
    """

    connect_timeout: float = 5.0
    ping_interval: float = 10.0
    answer_timeout: float = 5.0
    confirm_delay: float = 0.05
    linger: float = 1.0
    close_timeout: float = 2.0
    first_delay: float = 0.1
    max_delay: float = 2.0
    max_queue: int = 8 * 1024 * 1024
    high_water: int = 1024 * 1024
    clock: Clock | None = None
    jitter: Callable[[], float] = random.random


class Standing(Protocol):
    """What outlasts a session: the backplane it belongs to.

    Attributes:
        broker: What to connect to.
        supervision: How.
        counters: What has become of the messages.
        wanted: The rooms to subscribe, by their subjects.
        error: Why there is no connection.
        max_payload: The largest message that the broker takes, in bytes.
        propagator: What reads the context of traces; `None` while they are off.
    """

    broker: Broker
    supervision: Supervision
    counters: BackplaneCounters
    wanted: dict[str, str]
    error: str | None
    max_payload: int
    propagator: Propagator | None


class Session:
    """What a backplane does in one event loop, from `start` to `close`."""

    def __init__(self, backplane: Standing, deliver: Callable[[str, Data], None]) -> None:
        self.state: BackplaneState = "connecting"
        self._backplane = backplane
        self._counters = backplane.counters
        self._supervision = backplane.supervision
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._clock: Clock = backplane.supervision.clock or self._loop
        # Not made at import: processes that were forked must not share it.
        self._publisher = os.urandom(PUBLISHER_BYTES)
        self._numbers = Numbers()
        self._gaps = Gaps()
        # Where messages are: in the queue, or written and not confirmed.
        self._queue: deque[Message] = deque()
        self._queued = 0
        self._unsettled: deque[int] = deque()
        self._unsettled_bytes = 0
        self._flushing = False
        self._settled_at = 0.0
        self._confirming: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        # The connection.
        self._link: Link | None = None
        self._used_at = 0.0
        self._ping_at = 0.0
        self._ping_interval = backplane.supervision.ping_interval
        self._is_stalled = False
        self._active: set[str] = set()
        self._changed: set[str] = set()
        self._leaving: dict[str, float] = {}
        self._lingering: Timer | None = None
        self._errors_logged: set[str] = set()
        self._work = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        backplane.error = None
        self._task = self._loop.create_task(self._run(), name=f"wsdeco backplane {backplane.broker.name}")
        self._task.add_done_callback(self._ended)

    def runs_here(self) -> bool:
        """Whether the caller is in the event loop of the session."""
        return running_loop() is self._loop

    # Publishing and subscribing, without waiting.

    def publish(self, subject: str, payload: bytes, context: bytes = b"", *, is_text: bool) -> bool:
        """Put a message, with the context of its trace, into the queue; return whether it went in."""
        # A message that is lost has a number too, so that receivers see the gap.
        message = subject, seal(self._publisher, self._numbers.next(subject), payload, context, is_text=is_text)
        size = _size(message)
        is_full = self._queue and self._queued + size > self._supervision.max_queue
        if is_full or self.state not in ("connecting", "connected"):
            self._counters.lost += 1
            return False
        self._queue.append(message)
        self._queued += size
        if self._queued > self._supervision.high_water:
            self._has_room.clear()
        self._idle.clear()
        self._flush_soon()
        return True

    def subscribe(self, subject: str) -> None:
        """Note that a subject is wanted."""
        self._gaps.forget(subject)
        if not self.runs_here():
            self._changed.add(subject)
        elif self._leaving.pop(subject, None) is None or subject not in self._active:
            self._changed.add(subject)
            self._work.set()

    def unsubscribe(self, subject: str) -> None:
        """Note that a subject is no longer wanted."""
        self._gaps.forget(subject)
        if not self.runs_here():
            self._changed.add(subject)
        elif subject in self._active:
            # It costs the broker as much as the connection that has come and gone, and the next one would again.
            self._leaving[subject] = self._clock.time() + self._supervision.linger
            if self._lingering is None:
                self._linger()
            elif len(self._leaving) > _MAX_LINGERING:
                self._work.set()

    def _linger(self) -> None:
        first = next(iter(self._leaving.values()), None)
        self._lingering = None if first is None else self._clock.call_at(first, self._work.set)

    async def drained(self) -> None:
        """Wait until there is room in the queue, or no connection to send it on."""
        await self._has_room.wait()

    # The end.

    async def end(self) -> None:
        """Send what waits, and let go of everything."""
        if not self.runs_here():
            self.abandon()
            return
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._supervision.close_timeout):
                    self._flush()
                    self._confirm()
                    await self._idle.wait()
        finally:
            self._task.cancel()
        await asyncio.wait((self._task,))

    def abandon(self) -> None:
        """Let go of everything, from outside of the event loop, which may have been closed."""
        self.state = "closed"
        try:
            self._loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:
            self._count_queue_as_lost()

    # The supervisor.

    async def _run(self) -> None:
        delays = self._delays()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        # A client library may keep a cancellation to itself.
        while not task.cancelling():
            link = await self._connect()
            if link is not None:
                connected_at = self._clock.time()
                await self._use(link)
                if self._clock.time() - connected_at >= self._supervision.max_delay:
                    delays = self._delays()
            if not task.cancelling():
                await sleep(self._clock, next(delays))

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Not in the task itself, which a script may cancel before it has begun.
        if self._queue:
            logger.warning(
                "backplane %s: ended before %d messages were sent, which are lost: `await app.shut_down()` at the "
                "end of a script waits for them",
                self._backplane.broker.name,
                len(self._queue),
            )
        self._lose_queue()
        self.state = "closed"

    def _delays(self) -> Iterator[float]:
        delay = self._supervision.first_delay
        while True:
            yield delay * (1 + self._supervision.jitter()) / 2
            delay = min(2 * delay, self._supervision.max_delay)

    async def _connect(self) -> Link | None:
        backplane = self._backplane
        try:
            async with asyncio.timeout(self._supervision.connect_timeout):
                link = await backplane.broker.connect(self._receive)
        except Exception as exc:
            # Whatever a client library raises, the next attempt may succeed.
            self._disconnected(exc, "cannot connect")
            return None
        backplane.max_payload = link.max_payload
        self._lose_too_large(link.max_payload)
        backplane.error = None
        self._errors_logged.clear()
        self._counters.connections += 1
        was_lost = self.state == "reconnecting"
        self.state = "connected"
        if was_lost:
            # The level of the loss, so that whoever has read of the loss reads this.
            logger.warning(
                "backplane %s: connected again; %d broadcasts have been lost until now, and %d may have been",
                backplane.broker.name,
                self._counters.lost,
                self._counters.unconfirmed,
            )
        else:
            logger.info("backplane %s: connected", backplane.broker.name)
        return link

    def _disconnected(self, exc: BaseException, what: str) -> None:
        backplane = self._backplane
        self.state = "reconnecting"
        self._lose_queue()
        reason = "no answer in time" if isinstance(exc, TimeoutError) else str(exc) or type(exc).__name__
        backplane.error = error = printable(f"{what}: {reason}")[:_MAX_ERROR_LENGTH]
        if error not in self._errors_logged and len(self._errors_logged) < _MAX_ERRORS_LOGGED:
            self._errors_logged.add(error)
            level = logging.ERROR if isinstance(exc, BrokerRefusal) else logging.WARNING
            logger.log(level, "backplane %s: %s; it is tried again and again", backplane.broker.name, error)

    async def _use(self, link: Link) -> None:
        self._used_at = self._loop.time()
        self._ping_at = self._used_at + self._ping_interval
        lost = self._loop.create_task(link.lost())
        writing = self._loop.create_task(self._write(link))
        tasks = (lost, writing)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            failure = next(exc for task in tasks if task.done() and (exc := task.exception()) is not None)
            self._learn_from_end()
            self._disconnected(failure, "the connection was lost")
        finally:
            self._let_go()
            await _to_its_end(_leave(link, tasks))

    def _learn_from_end(self) -> None:
        # Redis, and what may stand between, can be configured to end connections that are quiet.
        quiet = self._loop.time() - self._used_at
        if _SHORTEST_QUIET <= quiet < self._ping_interval:
            self._ping_interval = max(quiet / 2, _FREQUENT_PING)

    def _let_go(self) -> None:
        self._link = None
        for timer in (self._confirming, self._watching, self._lingering):
            if timer is not None:
                timer.cancel()
        self._confirming = self._watching = self._lingering = None

    # What waits, and what is in doubt.

    def _lose_too_large(self, max_payload: int) -> None:
        # Published before it was known what the broker takes.
        kept = deque(message for message in self._queue if len(message[1]) <= max_payload)
        self._counters.lost += len(self._queue) - len(kept)
        self._queue = kept
        self._queued = sum(map(_size, kept))
        self._note_room()

    def _lose_queue(self) -> None:
        self._count_queue_as_lost()
        self._note_room()

    def _note_room(self) -> None:
        if self._queued <= self._supervision.high_water:
            self._has_room.set()
        if not self._queue and not self._unsettled:
            self._idle.set()

    def _count_queue_as_lost(self) -> None:
        self._counters.unconfirmed += len(self._unsettled)
        self._counters.lost += len(self._queue)
        self._unsettled.clear()
        self._queue.clear()
        self._unsettled_bytes = self._queued = 0

    def _flush_soon(self) -> None:
        if not self._flushing and self._link is not None:
            # Other messages of this turn of the loop go with it.
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        link = self._link
        if link is None or not (batch := self._next_batch()):
            return
        self._used_at = self._loop.time()
        link.publish(batch, self._settle)
        self._note_room()
        if self._queue:
            # What was written is confirmed before more is.
            link.confirm()
        elif self._confirming is None and self._unsettled:
            self._confirming = self._loop.call_later(self._supervision.confirm_delay, self._confirm)
        if self._watching is None and self._unsettled:
            self._watching = self._loop.call_later(self._supervision.answer_timeout, self._watch)

    def _next_batch(self) -> list[Message]:
        batch: list[Message] = []
        if not self._unsettled:
            self._settled_at = self._loop.time()
        while self._queue and self._unsettled_bytes < _MAX_BATCH_BYTES and len(self._unsettled) < _MAX_BATCH_MESSAGES:
            message = self._queue.popleft()
            size = _size(message)
            batch.append(message)
            self._queued -= size
            self._unsettled_bytes += size
            self._unsettled.append(size)
        return batch

    def _confirm(self) -> None:
        if self._confirming is not None:
            self._confirming.cancel()
            self._confirming = None
        if self._link is not None and self._unsettled:
            self._link.confirm()

    def _settle(self, taken: bool) -> None:
        if not self._unsettled:
            # The confirmation comes from a connection that was given up.
            return
        self._settled_at = self._loop.time()
        self._unsettled_bytes -= self._unsettled.popleft()
        if taken:
            self._counters.published += 1
        else:
            self._counters.lost += 1
        if self._queue:
            self._flush_soon()
        elif not self._unsettled:
            self._idle.set()

    def _watch(self) -> None:
        # One timer for all messages in doubt.
        self._watching = None
        if self._unsettled:
            due = self._settled_at + self._supervision.answer_timeout
            if due <= self._loop.time():
                self._is_stalled = True
                self._work.set()
            else:
                self._watching = self._loop.call_at(due, self._watch)

    # The writing side.

    async def _write(self, link: Link) -> None:
        self._active = set()
        self._leaving.clear()
        self._is_stalled = False
        self._changed = set(self._backplane.wanted)
        while True:
            async with asyncio.timeout(self._supervision.answer_timeout):
                await self._subscribe(link)
            if self._link is None:
                self._link = link
                self._flush_soon()
            if self._loop.time() >= self._ping_at:
                async with asyncio.timeout(self._supervision.answer_timeout):
                    await link.ping()
                self._used_at = self._loop.time()
                self._ping_at = self._used_at + self._ping_interval
            await self._wait_for_work()
            if self._is_stalled:
                raise TimeoutError

    async def _wait_for_work(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._ping_at):
                await self._work.wait()
        self._work.clear()

    async def _subscribe(self, link: Link) -> None:
        # What changes meanwhile is more work.
        changed, self._changed = self._changed, set()
        wanted = changed & self._backplane.wanted.keys()
        if left := ((changed - wanted) & self._active) | self._expired():
            self._active -= left
            for subject in left:
                self._numbers.forget(subject)
            await link.unsubscribe(sorted(left))
        if joined := wanted - self._active:
            self._active |= joined
            await link.subscribe(sorted(joined))

    def _expired(self) -> set[str]:
        now = self._clock.time()
        expired: set[str] = set()
        for subject, due in tuple(self._leaving.items()):
            if due > now and len(self._leaving) <= _MAX_LINGERING:
                break
            del self._leaving[subject]
            expired.add(subject)
        if self._lingering is not None:
            self._lingering.cancel()
        self._linger()
        return expired & self._active

    # The reading side.

    def _receive(self, subject: str, sealed: bytes) -> None:
        key = self._backplane.wanted.get(subject)
        if key is None:
            return
        try:
            envelope = open_envelope(sealed, self._backplane.max_payload)
        except ValueError as exc:
            if not self._counters.malformed:
                logger.warning("backplane %s: a message was dropped: %s", self._backplane.broker.name, exc)
            self._counters.malformed += 1
            return
        if envelope.publisher == self._publisher:
            return
        self._counters.received += 1
        self._counters.missed += self._gaps.before(subject, envelope.publisher, envelope.number)
        propagator = self._backplane.propagator
        try:
            if envelope.context and propagator is not None:
                with propagator.delivering(key, envelope.context):
                    self._deliver(key, envelope.data)
            else:
                self._deliver(key, envelope.data)
        except Exception:
            # The failure of one room must not end the connection of all.
            logger.exception("backplane %s: a message was not delivered", self._backplane.broker.name)


def _size(message: Message) -> int:
    return len(message[1]) + _PER_MESSAGE


async def _leave(link: Link, tasks: Sequence[asyncio.Task[None]]) -> None:
    # The link first, since what waits for its answers may not be cancelled while they can come.
    await link.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _to_its_end(coroutine: Coroutine[Any, Any, None]) -> None:
    """Await what must not be left half done, also when the caller is cancelled meanwhile."""
    task = asyncio.create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
    task.result()
