"""What a backplane does in one event loop: one connection at a time, kept up by a supervisor.

What is published waits in a queue of bounded size (`wsdeco.backplanes.pending`). It is written in the next turn of the
loop, as far as the broker has confirmed what was written before, and nothing is sent twice. Each message carries its
number, by which every receiver counts what it has missed.

While there is no connection, publishing fails at once; only what is published before the first attempt to connect has
ended waits for it. Every new connection subscribes what the last one had (`wsdeco.backplanes.subscriptions`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from wsdeco.backplanes.envelope import PUBLISHER_AT, PUBLISHER_BYTES, open_envelope, seal
from wsdeco.backplanes.interface import BackplaneState
from wsdeco.backplanes.link import BrokerRefusal, Link
from wsdeco.backplanes.numbers import Gaps, Numbers
from wsdeco.backplanes.pending import Pending
from wsdeco.backplanes.subscriptions import Subscriptions
from wsdeco.clock import Clock, running_loop, sleep
from wsdeco.messages import Data
from wsdeco.reasons import printable

if TYPE_CHECKING:
    from wsdeco.backplanes.broker import BrokerBackplane

__all__ = ["Session"]

logger: Final = logging.getLogger("wsdeco")

_MAX_ERRORS_LOGGED: Final = 3
"""Different errors that are logged while there is no connection: some brokers say something else each time."""

_MAX_ERROR_LENGTH: Final = 200


class Session:
    """What a backplane does in one event loop, from `start` to `close`."""

    def __init__(self, backplane: BrokerBackplane, deliver: Callable[[str, Data], None]) -> None:
        self.state: BackplaneState = "connecting"
        self._backplane = backplane
        self._counters = backplane.counters
        self._supervision = backplane.supervision
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._clock: Clock = backplane.supervision.clock or self._loop
        # Not made at import: processes that were forked must not share it.
        self._publisher = os.urandom(PUBLISHER_BYTES)
        self._numbers = Numbers(backplane.supervision.numbered_rooms)
        self._gaps = Gaps(backplane.supervision.known_publishers)
        self._work = asyncio.Event()
        self._pending = Pending(backplane.supervision, backplane.counters)
        self._subscriptions = Subscriptions(backplane.wanted, backplane.supervision, self._clock, self._work.set)
        self._flushing = False
        self._confirming: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        # The connection.
        self._link: Link | None = None
        self._used_at = 0.0
        self._ping_at = 0.0
        self._ping_interval = backplane.supervision.ping_interval
        self._is_stalled = False
        self._errors_logged: set[str] = set()
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
        if self.state not in ("connecting", "connected") or not self._pending.put(message):
            self._counters.lost += 1
            return False
        self._flush_soon()
        return True

    def subscribe(self, subject: str) -> None:
        """Note that a subject is wanted."""
        self._gaps.forget(subject)
        if self.runs_here():
            self._subscriptions.join(subject)
        else:
            self._subscriptions.note(subject)

    def unsubscribe(self, subject: str) -> None:
        """Note that a subject is no longer wanted."""
        self._gaps.forget(subject)
        if self.runs_here():
            self._subscriptions.leave(subject)
        else:
            self._subscriptions.note(subject)

    @property
    def has_room(self) -> bool:
        """Whether `drained` returns at once, as it nearly always does: a call of it costs more than this."""
        return self._pending.has_room.is_set()

    async def drained(self) -> None:
        """Wait until there is room in the queue, or no connection to send it on."""
        await self._pending.has_room.wait()

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
                    await self._pending.idle.wait()
        finally:
            self._task.cancel()
        await asyncio.wait((self._task,))

    def abandon(self) -> None:
        """Let go of everything, from outside of the event loop, which may have been closed."""
        self.state = "closed"
        try:
            self._loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:
            self._pending.count_as_lost()

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
        if self._pending:
            logger.warning(
                "backplane %s: ended before %d messages were sent, which are lost: `await app.shut_down()` at the "
                "end of a script waits for them",
                self._backplane.broker.name,
                len(self._pending),
            )
        self._pending.lose()
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
        self._pending.lose_too_large(link.max_payload)
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
        self._pending.lose()
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
        if self._supervision.shortest_quiet <= quiet < self._ping_interval:
            self._ping_interval = max(quiet / 2, self._supervision.frequent_ping)

    def _let_go(self) -> None:
        self._link = None
        self._subscriptions.end()
        for timer in (self._confirming, self._watching):
            if timer is not None:
                timer.cancel()
        self._confirming = self._watching = None

    # What waits, and what is in doubt.

    def _flush_soon(self) -> None:
        if not self._flushing and self._link is not None:
            # Other messages of this turn of the loop go with it.
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        link = self._link
        now = self._loop.time()
        if link is None or not (batch := self._pending.next_batch(now)):
            return
        self._used_at = now
        link.publish(batch, self._settle)
        if self._pending:
            # What was written is confirmed before more is.
            link.confirm()
        elif self._confirming is None and self._pending.in_doubt:
            self._confirming = self._loop.call_later(self._supervision.confirm_delay, self._confirm)
        if self._watching is None and self._pending.in_doubt:
            self._watching = self._loop.call_later(self._supervision.answer_timeout, self._watch)

    def _confirm(self) -> None:
        if self._confirming is not None:
            self._confirming.cancel()
            self._confirming = None
        if self._link is not None and self._pending.in_doubt:
            self._link.confirm()

    def _settle(self, messages: int, taken: bool) -> None:
        self._pending.settle(messages, self._loop.time(), taken=taken)
        if self._pending:
            self._flush_soon()

    def _watch(self) -> None:
        # One timer for all messages in doubt.
        self._watching = None
        if self._pending.in_doubt:
            due = self._pending.settled_at + self._supervision.answer_timeout
            if due <= self._loop.time():
                self._is_stalled = True
                self._work.set()
            else:
                self._watching = self._loop.call_at(due, self._watch)

    # The writing side.

    async def _write(self, link: Link) -> None:
        self._subscriptions.begin()
        self._is_stalled = False
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
        left, joined = self._subscriptions.changes()
        if left:
            for subject in left:
                self._numbers.forget(subject)
            await link.unsubscribe(left)
        if joined:
            await link.subscribe(joined)

    # The reading side.

    def _receive(self, subject: str, sealed: bytes) -> None:
        key = self._backplane.wanted.get(subject)
        # Redis tells a publisher as well what it has published.
        if key is None or sealed.startswith(self._publisher, PUBLISHER_AT):
            return
        try:
            envelope = open_envelope(sealed, self._backplane.max_payload)
        except ValueError as exc:
            if not self._counters.malformed:
                logger.warning("backplane %s: a message was dropped: %s", self._backplane.broker.name, exc)
            self._counters.malformed += 1
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
