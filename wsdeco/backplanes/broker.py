"""A backplane over a broker, whichever it is: one connection at a time, kept up by a supervisor.

What is published waits in a queue of bounded size, and one batch after the other goes to the broker. The next one goes
when the broker has confirmed the last, so all that a lost connection leaves in doubt is one batch. Nothing is sent
twice. Each message carries its number, by which every receiver counts what it has missed.

While there is no connection, publishing fails at once; only what is published before the first attempt to connect has
ended waits for it. Which rooms are subscribed is a set of names that each connection is brought in line with, so a room
that is left and joined in a tight loop costs nothing, and every new connection subscribes what the last one had.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, cast

from wsdeco.backplanes.envelope import ENVELOPE_BYTES, PUBLISHER_BYTES, Payload, open_envelope, seal, subject_of
from wsdeco.backplanes.interface import BackplaneCounters, BackplaneState
from wsdeco.clock import Clock
from wsdeco.reasons import BackplaneError, printable

__all__ = ["Broker", "BrokerBackplane", "BrokerRefusal", "Done", "Link", "Message", "Receive", "Supervision"]

logger = logging.getLogger("wsdeco")

Message: TypeAlias = tuple[str, bytes]
"""A subject and what is published there."""

Done: TypeAlias = Callable[[bool], None]
"""Called for each message of a batch, in order: whether the broker has taken it."""

Receive: TypeAlias = Callable[[str, bytes], None]
"""Called with each message that comes."""

_MAX_BATCH_BYTES: Final = 256 * 1024
_MAX_BATCH_MESSAGES: Final = 1024

_PER_MESSAGE: Final = 128
"""Bytes that a message in the queue takes besides its own."""

_MAX_ERRORS_LOGGED: Final = 3
"""Different errors that are logged while there is no connection: some brokers say something else each time."""

_MAX_ERROR_LENGTH: Final = 200

_NUMBERED_ROOMS: Final = 16 * 1024
"""Rooms a publisher keeps the number of the last message for; one it has forgotten begins at 1 again."""

_KNOWN_PUBLISHERS: Final = 1024
"""Publishers a room remembers the last number of."""


class BrokerRefusal(BackplaneError):
    """The broker refuses the credentials."""


class Link(Protocol):
    """One connection to a broker.

    Attributes:
        max_payload: The largest message it takes, in bytes.
    """

    max_payload: int

    async def subscribe(self, subjects: Sequence[str]) -> None:
        """Have what is published on `subjects` received."""

    async def unsubscribe(self, subjects: Sequence[str]) -> None:
        """Have it received no longer."""

    async def publish(self, messages: Sequence[Message], done: Done) -> None:
        """Publish a batch, and return when the broker has confirmed all of it."""

    async def ping(self) -> None:
        """Return when the broker has answered."""

    async def lost(self) -> None:
        """Wait for the end of the connection, and raise why it has ended."""

    async def close(self) -> None:
        """Close the connection, without waiting for a broker that does not read."""


class Broker(Protocol):
    """A broker that can be connected to.

    Attributes:
        name: What it is called in the log: its address, without credentials.
        max_payload: The largest message it takes as far as is known before it has been connected to, in bytes.
    """

    name: str
    max_payload: int

    async def connect(self, receive: Receive) -> Link:
        """Return a new connection.

        Raises:
            BrokerRefusal: It refuses the credentials.
        """
        ...


@dataclass(frozen=True, slots=True)
class Supervision:
    """How a connection is kept up. All times in seconds.

    Attributes:
        connect_timeout: For a connection to be made.
        ping_interval: Between two looks whether the broker is there.
        answer_timeout: For the broker to take and confirm a batch, or to answer a ping.
        close_timeout: At the end, for what is still in the queue.
        first_delay: Before the second attempt to connect; doubled before each further one.
        max_delay: The longest delay. A connection that has lasted as long sets it back to the first.
        max_queue: Bytes in the queue above which nothing more is taken.
        high_water: Bytes in the queue above which `drained` waits.
        clock: What the delays are measured by; by default the event loop.
        jitter: A random number between 0 and 1: that part of the second half of a delay is waited for.
    """

    connect_timeout: float = 5.0
    ping_interval: float = 10.0
    answer_timeout: float = 5.0
    close_timeout: float = 2.0
    first_delay: float = 0.1
    max_delay: float = 2.0
    max_queue: int = 8 * 1024 * 1024
    high_water: int = 1024 * 1024
    clock: Clock | None = None
    jitter: Callable[[], float] = random.random


class BrokerBackplane:
    """Broadcasts to the same rooms in other processes, through a broker.

    Attributes:
        counters: What has become of the messages.
        error: Why there is no connection; `None` while there is one, and before the first attempt has ended.
    """

    def __init__(self, broker: Broker, prefix: str, supervision: Supervision) -> None:
        self.counters = BackplaneCounters()
        self.error: str | None = None
        self.broker = broker
        self.supervision = supervision
        self.wanted: dict[str, str] = {}
        self.max_payload = broker.max_payload
        self._prefix = prefix
        self._session: _Session | None = None

    @property
    def state(self) -> BackplaneState:
        """Whether there is a connection to the broker."""
        return "closed" if self._session is None else self._session.state

    def start(self, deliver: Callable[[str, Payload], None], /) -> None:
        """Connect in the running event loop, and stay connected."""
        if self._session is not None:
            self._session.abandon()
        self._session = _Session(self, deliver)

    def subscribe(self, key: str, /) -> None:
        """Have the broadcasts to the room `key` delivered."""
        subject = self.subject_of(key)
        self.wanted[subject] = key
        if self._session is not None:
            self._session.subscription_changed(subject)

    def unsubscribe(self, key: str, /) -> None:
        """Have them delivered no longer."""
        subject = self.subject_of(key)
        self.wanted.pop(subject, None)
        if self._session is not None:
            self._session.subscription_changed(subject)

    def publish_nowait(self, key: str, data: Payload, /) -> bool:
        """Broadcast to the other processes; return whether that is on its way.

        Raises:
            ValueError: `data` is more than the broker takes.
        """
        payload = data.encode() if isinstance(data, str) else data
        largest = self.max_payload - ENVELOPE_BYTES
        if len(payload) > largest:
            raise ValueError(
                f"a broadcast of {len(payload)} bytes is more than {self.broker.name} takes, which is {largest} bytes: "
                "send less, or raise the limit of the broker (NATS: max_payload)"
            )
        session = self._session
        if session is not None and session.runs_here():
            return session.publish(self.subject_of(key), payload, is_text=isinstance(data, str))
        self.counters.lost += 1
        return False

    async def drained(self) -> None:
        """Wait while the broker has too much to read."""
        if self._session is not None:
            await self._session.drained()

    async def close(self) -> None:
        """Send what is in the queue, unless that takes too long, and disconnect."""
        session, self._session = self._session, None
        if session is not None:
            await session.end()

    def subject_of(self, key: str) -> str:
        """Return what a room is called at the broker."""
        return subject_of(self._prefix, key)

    def __repr__(self) -> str:
        trouble = "" if self.error is None else f": {self.error}"
        return f"<Backplane {self.broker.name} {self.state}{trouble}>"


class _Session:
    """What a backplane does in one event loop, from `start` to `close`."""

    def __init__(self, backplane: BrokerBackplane, deliver: Callable[[str, Payload], None]) -> None:
        self.state: BackplaneState = "connecting"
        self._backplane = backplane
        self._counters = backplane.counters
        self._supervision = backplane.supervision
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._clock: Clock = backplane.supervision.clock or self._loop
        # Made here and not once for all, as processes that were forked must not share it.
        self._publisher = os.urandom(PUBLISHER_BYTES)
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._seen: dict[str, dict[bytes, int]] = {}
        self._queue: deque[Message] = deque()
        self._queued = 0
        self._unsettled = 0
        self._changed: set[str] = set()
        self._errors_logged: set[str] = set()
        self._work = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        backplane.error = None
        self._task = self._loop.create_task(self._run(), name=f"wsdeco backplane {backplane.broker.name}")

    def runs_here(self) -> bool:
        """Whether the caller is in the event loop of the session."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    # Publishing and subscribing, without waiting.

    def publish(self, subject: str, payload: bytes, *, is_text: bool) -> bool:
        """Put a message into the queue; return whether it went in."""
        # Numbered also when it is lost, so that receivers see the gap.
        number = self._numbers[subject] = self._numbers.pop(subject, 0) + 1
        if len(self._numbers) > _NUMBERED_ROOMS:
            self._numbers.popitem(last=False)
        message = subject, seal(self._publisher, number, payload, is_text=is_text)
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
        self._work.set()
        return True

    def subscription_changed(self, subject: str) -> None:
        """Take notice that a subject is wanted, or no longer."""
        self._seen.pop(subject, None)
        self._changed.add(subject)
        if self.runs_here():
            self._work.set()

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
        try:
            # A client library may keep a cancellation to itself.
            while not task.cancelling():
                link = await self._connect()
                if link is not None:
                    connected_at = self._clock.time()
                    await self._use(link)
                    if self._clock.time() - connected_at >= self._supervision.max_delay:
                        delays = self._delays()
                if not task.cancelling():
                    await self._sleep(next(delays))
        finally:
            self._lose_queue()
            self.state = "closed"

    def _delays(self) -> Iterator[float]:
        delay = self._supervision.first_delay
        while True:
            yield delay * (1 + self._supervision.jitter()) / 2
            delay = min(2 * delay, self._supervision.max_delay)

    async def _sleep(self, seconds: float) -> None:
        slept = asyncio.Event()
        timer = self._clock.call_at(self._clock.time() + seconds, slept.set)
        try:
            await slept.wait()
        finally:
            timer.cancel()

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
        was_lost = self.state == "reconnecting"
        self.state = "connected"
        if was_lost:
            # Of the same level as the loss, so that whoever has read of that reads of its end.
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
        self._counters.unconfirmed += self._unsettled
        self._counters.lost += len(self._queue)
        self._unsettled = self._queued = 0
        self._queue.clear()

    async def _use(self, link: Link) -> None:
        lost = self._loop.create_task(link.lost())
        writing = self._loop.create_task(self._write(link))
        tasks = (lost, writing)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            failure = next(exc for task in tasks if task.done() and (exc := task.exception()) is not None)
            self._disconnected(failure, "the connection was lost")
        finally:
            await _to_its_end(_leave(link, tasks))

    # The writing side.

    async def _write(self, link: Link) -> None:
        active: set[str] = set()
        self._changed = set(self._backplane.wanted)
        ping_at = self._loop.time() + self._supervision.ping_interval
        while True:
            if not (self._changed or self._queue):
                await self._wait_for_work(ping_at)
            async with asyncio.timeout(self._supervision.answer_timeout):
                await self._subscribe(link, active)
            if self._queue:
                await self._publish(link)
            if self._loop.time() >= ping_at:
                async with asyncio.timeout(self._supervision.answer_timeout):
                    await link.ping()
                ping_at = self._loop.time() + self._supervision.ping_interval

    async def _wait_for_work(self, until: float) -> None:
        self._work.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._work.wait()

    async def _subscribe(self, link: Link, active: set[str]) -> None:
        while self._changed:
            changed, self._changed = self._changed, set()
            wanted = changed & self._backplane.wanted.keys()
            if left := (changed - wanted) & active:
                active -= left
                await link.unsubscribe(sorted(left))
            if joined := wanted - active:
                active |= joined
                await link.subscribe(sorted(joined))

    async def _publish(self, link: Link) -> None:
        batch = self._next_batch()
        async with asyncio.timeout(self._supervision.answer_timeout):
            await link.publish(batch, self._settle)
        self._note_room()

    def _next_batch(self) -> list[Message]:
        batch: list[Message] = []
        size = 0
        while self._queue and size < _MAX_BATCH_BYTES and len(batch) < _MAX_BATCH_MESSAGES:
            message = self._queue.popleft()
            batch.append(message)
            size += _size(message)
        self._queued -= size
        self._unsettled = len(batch)
        self._note_room()
        return batch

    def _settle(self, taken: bool) -> None:
        self._unsettled -= 1
        if taken:
            self._counters.published += 1
        else:
            self._counters.lost += 1

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
        self._counters.missed += self._gap(subject, envelope.publisher, envelope.number)
        try:
            self._deliver(key, envelope.data)
        except Exception:
            # That of one room is not to end the connection of all.
            logger.exception("backplane %s: a message was not delivered", self._backplane.broker.name)

    def _gap(self, subject: str, publisher: bytes, number: int) -> int:
        seen = self._seen.setdefault(subject, {})
        last = seen.pop(publisher, number - 1)
        seen[publisher] = number
        if len(seen) > _KNOWN_PUBLISHERS:
            del seen[next(iter(seen))]
        # A number that is not higher is that of a publisher that has forgotten the last one.
        return max(0, number - last - 1)


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
