"""The supervisor of a backplane: when it connects, what it counts and says, with a broker that does as it is told."""

import asyncio
import logging
import threading
import tracemalloc
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.stacks import soon, until
from tests.support.wire import Logged
from wsdeco import BackplaneCounters
from wsdeco.backplanes.broker import BrokerBackplane
from wsdeco.backplanes.envelope import (
    ENVELOPE_BYTES,
    PUBLISHER_BYTES,
    open_envelope,
    seal,
    subject_of,
)
from wsdeco.backplanes.interface import MAX_CONTEXT
from wsdeco.backplanes.link import BrokerRefusal, Done, Link, Message, Receive
from wsdeco.backplanes.supervision import Supervision
from wsdeco.testing import ManualClock

LOBBY = "room:lobby"
SUBJECT = subject_of("test", LOBBY)
AGAIN = "connected again; {} broadcasts have been lost until now, and 0 may have been"


class FakeLink:
    """A connection that takes everything, until it is told otherwise.

    Attributes:
        subscribed: What is subscribed now.
        commands: What was subscribed (+) and unsubscribed (-), in order.
        published: What has been published, without the envelopes.
        answers: Whether it answers.
        refuses: How many more messages of a batch are confirmed before the connection ends, if it does.
        pings: How often it was asked whether it is there.
        confirms: How often it was asked to confirm.
        closed: Whether it was closed.
        closes: Whether that comes to an end.
    """

    max_payload = 1000

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.subscribed: list[str] = []
        self.commands: list[str] = []
        self.published: list[str | bytes] = []
        self.batches: list[int] = []
        self.sealed: list[bytes] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.breaks_after: int | None = None
        self.refused: set[str | bytes] = set()
        self.pings = 0
        self.confirms = 0
        self.done: Done | None = None
        self.unanswered: list[bytes] = []
        self.answering: asyncio.Task[None] | None = None
        self.closed = False
        self.closes = asyncio.Event()
        self.closes.set()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, exc: Exception) -> None:
        self.failure.set_exception(exc)

    async def subscribe(self, subjects: Sequence[str]) -> None:
        await asyncio.sleep(0)
        self.subscribed += subjects
        self.commands += [f"+{subject}" for subject in subjects]

    async def unsubscribe(self, subjects: Sequence[str]) -> None:
        await asyncio.sleep(0)
        for subject in subjects:
            self.subscribed.remove(subject)
            self.commands.append(f"-{subject}")

    def publish(self, messages: Sequence[Message], done: Done) -> None:
        self.done = done
        self.batches.append(len(messages))
        self.unanswered += [sealed for _, sealed in messages]
        if self.answering is None or self.answering.done():
            self.answering = asyncio.create_task(self.answer(done))

    async def answer(self, done: Done) -> None:
        await self.answers.wait()
        if self.failure.done():
            return
        answered, self.unanswered = self.unanswered, []
        for number, sealed in enumerate(answered):
            if number == self.breaks_after:
                self.fail(ConnectionError("broken"))
                return
            data = open_envelope(sealed).data
            self.sealed.append(sealed)
            self.published.append(data)
            done(1, data not in self.refused)

    def confirm(self) -> None:
        self.confirms += 1

    async def ping(self) -> None:
        self.pings += 1
        await self.answers.wait()

    async def lost(self) -> None:
        await self.failure

    async def close(self) -> None:
        await self.closes.wait()
        if self.answering is not None:
            self.answering.cancel()
        self.closed = True


class FakeBroker:
    """A broker that lets connect, or not.

    Attributes:
        failures: What the next attempts raise.
        attempts: How many there were.
        links: The connections.
        reachable: Whether an attempt ends.
        swallows: Whether a cancelled attempt ends as if it had failed, as those of client libraries do at times.
    """

    name = "fake://broker"
    max_payload = 2000

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.attempts = 0
        self.links: list[FakeLink] = []
        self.reachable = asyncio.Event()
        self.reachable.set()
        self.swallows = False

    async def connect(self, receive: Receive) -> Link:
        self.attempts += 1
        try:
            await self.reachable.wait()
        except asyncio.CancelledError:
            if not self.swallows:
                raise
            raise OSError("I was busy") from None
        if self.failures:
            raise self.failures.pop(0)
        self.links.append(FakeLink(receive))
        return self.links[-1]


class Party:
    """A backplane over a fake broker, on a clock that the test advances."""

    def __init__(self, *failures: Exception, **options: Any) -> None:
        self.clock = ManualClock()
        self.broker = FakeBroker(*failures)
        settings: dict[str, Any] = {"clock": self.clock, "jitter": lambda: 1.0, **options}
        supervision = Supervision(**settings)
        self.backplane = BrokerBackplane(self.broker, "test", supervision)
        self.got: list[tuple[str, str | bytes]] = []

    @property
    def state(self) -> str:
        return self.backplane.state

    @property
    def link(self) -> FakeLink:
        return self.broker.links[-1]

    @property
    def counters(self) -> BackplaneCounters:
        return self.backplane.counters

    def start(self) -> None:
        self.backplane.start(lambda key, data: self.got.append((key, data)))

    def publish(self, *data: str | bytes) -> list[bool]:
        return [self.backplane.publish_nowait(LOBBY, each) for each in data]

    async def settle(self) -> None:
        await self.clock.settle()


@asynccontextmanager
async def started(*failures: Exception, **options: Any) -> AsyncGenerator[Party]:
    party = Party(*failures, **options)
    party.start()
    try:
        yield party
    finally:
        await party.backplane.close()
        assert all(link.closed for link in party.broker.links)


# Connecting.


async def test_what_is_published_while_the_first_attempt_goes_on_waits_for_it() -> None:
    party = Party()
    assert (party.state, party.backplane.error) == ("closed", None)
    party.backplane.subscribe(LOBBY)
    party.broker.reachable.clear()
    party.start()
    await party.settle()
    assert party.state == "connecting"
    assert party.publish("a", b"b") == [True, True]
    party.broker.reachable.set()
    await party.settle()
    assert party.state == "connected"
    assert party.link.published == ["a", b"b"]
    assert party.link.subscribed == [SUBJECT]
    assert party.counters == BackplaneCounters(published=2)
    await party.backplane.close()
    assert party.state == "closed"
    assert party.link.closed


async def test_what_waited_is_counted_as_lost_when_the_first_attempt_fails(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    async with started(ConnectionRefusedError("refused"), ConnectionRefusedError("refused")) as party:
        assert party.publish("a", "b") == [True, True]
        await party.settle()
        assert party.state == "reconnecting"
        assert party.backplane.error == "cannot connect: refused"
        assert repr(party.backplane) == "<Backplane fake://broker reconnecting: cannot connect: refused>"
        assert party.publish("c") == [False]
        assert party.counters == BackplaneCounters(lost=3)
        await soon(party.backplane.drained())
        await party.clock.advance(0.35)
        assert party.state == "connected"
        assert party.backplane.error is None
        assert repr(party.backplane) == "<Backplane fake://broker connected>"
        assert party.publish("d") == [True]
        await party.settle()
        # What was lost has had a number, so that receivers see the gap.
        assert [open_envelope(sealed).number for sealed in party.link.sealed] == [4]
    assert logged.lines(logging.INFO) == [
        "WARNING backplane fake://broker: cannot connect: refused; it is tried again and again",
        f"WARNING backplane fake://broker: {AGAIN.format(3)}",
    ]


async def test_attempts_become_rare() -> None:
    async with started(*[OSError()] * 9) as party:
        times: list[float] = []
        for _ in range(400):
            await party.clock.advance(0.03125)
            if len(times) < party.broker.attempts - 1:
                times.append(party.clock.time())
        assert len(times) == 9
        gaps = [after - before for before, after in zip([0, *times], times, strict=False)]
        assert gaps == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2, 2], abs=0.05)
        assert party.state == "connected"
        # A connection that ends soon does not set them back, one that lasts does.
        party.link.fail(OSError())
        await party.clock.advance(1.9)
        assert party.state == "reconnecting"
        await party.clock.advance(0.2)
        assert party.state == "connected"
        await party.clock.advance(2)
        party.link.fail(OSError())
        await party.clock.advance(0.15)
        assert party.state == "connected"


async def test_delays_are_spread() -> None:
    async with started(OSError(), jitter=lambda: 0.0, first_delay=1.0) as party:
        await party.clock.advance(0.49)
        assert party.broker.attempts == 1
        await party.clock.advance(0.02)
        assert party.broker.attempts == 2


async def test_an_attempt_that_takes_too_long_is_given_up() -> None:
    async with started(connect_timeout=0.01) as party:
        party.broker.reachable.clear()
        await until(lambda: party.state == "reconnecting")
        assert party.backplane.error == "cannot connect: no answer in time"


async def test_refused_credentials_are_an_error_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    async with started(*[BrokerRefusal("not you")] * 3) as party:
        await party.clock.advance(0.35)
        assert party.broker.attempts == 3
        assert party.backplane.error == "cannot connect: not you"
        assert logged.lines() == ["ERROR backplane fake://broker: cannot connect: not you; it is tried again and again"]


# A connection that ends.


async def test_a_lost_connection_is_made_again_with_its_rooms(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    async with started() as party:
        party.backplane.subscribe(LOBBY)
        party.backplane.subscribe("room:other")
        await party.settle()
        party.backplane.unsubscribe("room:other")
        await party.clock.advance(1)
        assert party.link.subscribed == [SUBJECT]
        party.link.fail(ConnectionResetError())
        await party.settle()
        assert party.state == "reconnecting"
        assert party.backplane.error == "the connection was lost: ConnectionResetError"
        assert party.publish("x") == [False]
        party.backplane.subscribe("room:third")
        await party.clock.advance(0.1)
        assert party.state == "connected"
        assert party.link.subscribed == [SUBJECT, subject_of("test", "room:third")]
        assert len(party.broker.links) == 2
        assert party.broker.links[0].closed
    assert logged.lines(logging.INFO) == [
        "INFO backplane fake://broker: connected",
        "WARNING backplane fake://broker: the connection was lost: ConnectionResetError; it is tried again and again",
        f"WARNING backplane fake://broker: {AGAIN.format(1)}",
    ]


async def test_what_a_lost_connection_leaves_in_doubt_is_counted() -> None:
    async with started(batch_messages=5) as party:
        await party.settle()
        party.link.answers.clear()
        party.link.breaks_after = 2
        party.publish("1", "2", "3", "4", "5")
        await party.settle()
        party.publish("6", "7", "8")
        party.link.answers.set()
        await party.settle()
        # Those that were confirmed made room for two more.
        assert party.counters == BackplaneCounters(published=2, unconfirmed=5, lost=1)
        assert party.backplane.error == "the connection was lost: broken"


async def test_what_the_broker_refuses_is_lost() -> None:
    async with started() as party:
        await party.settle()
        party.link.refused = {"2"}
        party.publish("1", "2", "3")
        await party.settle()
        assert party.counters == BackplaneCounters(published=2, lost=1)
        assert party.state == "connected"


async def test_a_broker_that_does_not_answer_is_left() -> None:
    async with started(answer_timeout=0.01) as party:
        await party.settle()
        party.link.answers.clear()
        party.publish("1")
        await until(lambda: party.state == "reconnecting")
        assert party.backplane.error == "the connection was lost: no answer in time"
        assert party.counters == BackplaneCounters(unconfirmed=1)


async def test_an_idle_connection_is_looked_at() -> None:
    async with started(ping_interval=0.001, answer_timeout=0.05) as party:
        await until(lambda: bool(party.broker.links) and party.link.pings >= 3)
        assert party.state == "connected"
        party.link.answers.clear()
        await until(lambda: party.state == "reconnecting")


async def test_a_connection_that_is_ended_for_being_quiet_is_looked_at_more_often() -> None:
    async with started(shortest_quiet=0.005, frequent_ping=0.001) as party:
        await party.settle()
        first = party.link
        await asyncio.sleep(0.01)
        first.fail(ConnectionResetError())
        await until(lambda: party.state == "reconnecting")
        await party.clock.advance(0.1)
        assert party.link is not first
        await until(lambda: party.link.pings >= 2)


async def test_a_broker_that_has_confirmed_all_is_kept() -> None:
    async with started(answer_timeout=0.1) as party:
        await party.settle()
        party.publish("1")
        await party.settle()
        await asyncio.sleep(0.11)
        assert party.state == "connected"
        assert party.counters.published == 1


async def test_a_broker_that_confirms_slowly_is_kept() -> None:
    async with started(answer_timeout=1) as party:
        await party.settle()
        for number in range(8):
            party.link.answers.clear()
            party.publish(str(number))
            # All together take longer than one may, and one is far from it also on a machine with other work.
            await asyncio.sleep(0.2)
            party.link.answers.set()
            await party.settle()
        assert party.state == "connected"
        assert party.counters.published == 8


async def test_what_a_connection_confirms_after_it_was_given_up_counts_for_nothing() -> None:
    async with started() as party:
        await party.settle()
        first = party.link
        first.closes.clear()
        first.answers.clear()
        party.publish("1")
        await party.settle()
        first.failure.set_exception(ConnectionResetError())
        await party.settle()
        assert first.done is not None
        first.done(1, True)
        assert party.counters == BackplaneCounters(unconfirmed=1)
        first.closes.set()


async def test_what_waits_at_an_abrupt_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    party = Party(close_timeout=0.001)
    party.broker.reachable.clear()
    party.start()
    party.publish("1", "2")
    await soon(party.backplane.close())
    assert party.counters == BackplaneCounters(lost=2)
    assert any("ended before 2 messages were sent, which are lost" in line for line in logged.lines())


async def test_a_broker_is_asked_to_confirm_when_more_waits_and_otherwise_soon() -> None:
    async with started(batch_messages=2, confirm_delay=0.001) as party:
        await party.settle()
        party.link.answers.clear()
        party.publish("1")
        await party.settle()
        await until(lambda: party.link.confirms == 1)
        party.publish("2", "3")
        await party.settle()
        assert party.link.confirms == 2
        party.link.answers.set()
        await until(lambda: party.counters.published == 3)


# The queue.


async def test_the_queue_is_bounded() -> None:
    async with started(batch_messages=7, max_queue=1100, high_water=400) as party:
        await party.settle()
        party.link.answers.clear()
        assert party.publish(*"abcdefg") == [True] * 7
        waiting = asyncio.create_task(party.backplane.drained())
        assert party.publish("h") == [False]
        await party.settle()
        # The first batch is on its way, and the queue empty.
        assert waiting.done()
        assert party.publish(*"ijklmnop") == [True] * 7 + [False]
        waiting = asyncio.create_task(party.backplane.drained())
        await party.settle()
        assert not waiting.done()
        party.link.answers.set()
        await soon(waiting)
        await party.settle()
        assert party.link.published == [*"abcdefgijklmno"]
        assert party.counters == BackplaneCounters(published=14, lost=2)


async def test_a_message_may_be_larger_than_the_queue() -> None:
    async with started(max_queue=100) as party:
        await party.settle()
        assert party.publish(b"x" * 500) == [True]
        await party.settle()
        assert party.counters.published == 1


async def test_batches_are_bounded() -> None:
    async with started(batch_messages=3) as party:
        party.publish(*"abcdefgh")
        await party.settle()
        assert party.link.batches == [3, 3, 2]
    async with started(batch_bytes=700) as party:
        party.publish(*[b"x" * 500] * 3)
        await party.settle()
        assert party.link.batches == [2, 1]


async def test_a_batch_may_leave_too_much_in_the_queue() -> None:
    async with started(batch_messages=3, high_water=300) as party:
        await party.settle()
        party.link.answers.clear()
        party.publish(*"abcdefgh")
        waiting = asyncio.create_task(party.backplane.drained())
        await party.settle()
        assert party.link.batches == [3]
        assert not waiting.done()
        party.link.answers.set()
        await soon(waiting)


async def test_a_connection_in_use_is_looked_at_too_and_its_rooms_are_kept() -> None:
    async with started(ping_interval=0.001) as party:
        await party.settle()

        async def talk() -> None:
            while True:
                party.publish("x")
                await asyncio.sleep(0)

        talking = asyncio.create_task(talk())
        await until(lambda: party.link.pings >= 3)
        party.backplane.subscribe(LOBBY)
        await until(lambda: party.link.subscribed == [SUBJECT])
        talking.cancel()


async def test_a_message_over_the_limit_is_refused() -> None:
    async with started() as party:
        await party.settle()
        largest = FakeLink.max_payload - ENVELOPE_BYTES
        with pytest.raises(
            ValueError, match=f"of {largest + 1} bytes is more than fake://broker takes, which is {largest}"
        ):
            party.publish(b"x" * (largest + 1))
        with pytest.raises(ValueError, match="of 999 bytes"):
            party.publish("\u20ac" * 333)
        assert party.publish("x" * largest) == [True]


# Subscriptions.


async def test_a_room_that_is_left_before_the_backplane_starts_is_not_subscribed() -> None:
    party = Party()
    party.backplane.subscribe(LOBBY)
    party.backplane.unsubscribe(LOBBY)
    party.start()
    await party.settle()
    assert party.link.commands == []
    await party.backplane.close()


async def test_a_room_left_and_joined_in_a_loop_is_subscribed_once() -> None:
    async with started() as party:
        await party.settle()
        for _ in range(100):
            party.backplane.subscribe(LOBBY)
            party.backplane.unsubscribe(LOBBY)
        party.backplane.subscribe(LOBBY)
        await party.settle()
        assert party.link.subscribed == [SUBJECT]
        for _ in range(50):
            party.backplane.unsubscribe(LOBBY)
            await asyncio.sleep(0)
            party.backplane.subscribe(LOBBY)
            await asyncio.sleep(0)
        party.backplane.unsubscribe(LOBBY)
        await party.clock.advance(1)
        assert party.link.subscribed == []


async def test_connections_that_come_and_go_subscribe_their_room_once() -> None:
    async with started() as party:
        await party.settle()
        for _ in range(20):
            party.backplane.subscribe(LOBBY)
            await party.clock.advance(0.3)
            party.backplane.unsubscribe(LOBBY)
            party.link.receive(*message(1, "nobody is there"))
            await party.clock.advance(0.3)
        assert party.got == []
        assert party.link.commands == [f"+{SUBJECT}"]
        party.backplane.subscribe("room:other")
        party.backplane.unsubscribe("room:other")
        await party.clock.advance(0.7)
        assert party.link.commands == [f"+{SUBJECT}", f"-{SUBJECT}"]
        party.backplane.unsubscribe("room:other")


async def test_rooms_that_are_left_are_unsubscribed_early_where_there_are_many() -> None:
    async with started(max_lingering=2) as party:
        await party.settle()
        for name in "abcd":
            party.backplane.subscribe(name)
        await party.settle()
        for name in "abcd":
            party.backplane.unsubscribe(name)
        await party.settle()
        assert party.link.subscribed == ["test.c", "test.d"]
        await party.clock.advance(1)
        assert party.link.subscribed == []


async def test_nothing_is_kept_of_the_names_of_rooms_that_all_have_left() -> None:
    async with started() as party:
        await party.settle()
        tracemalloc.start()
        try:
            for repeat in range(2):
                before = tracemalloc.get_traced_memory()[0]
                names = [f"room:{number:04}{'x' * 1000}" for number in range(1000)]
                for name in names:
                    party.backplane.subscribe(name)
                await party.settle()
                for name in names:
                    party.backplane.publish_nowait(name, "x")
                    party.link.receive(subject_of("test", name), message(1, "x")[1])
                await party.settle()
                for name in names:
                    party.backplane.unsubscribe(name)
                await party.clock.advance(1)
                del names
                party.got.clear()
                party.link.sealed.clear()
                party.link.published.clear()
                party.link.commands.clear()
                if repeat:
                    # 1,000 names of 1 KB, or their digests, would be seen.
                    assert tracemalloc.get_traced_memory()[0] - before < 50_000
        finally:
            tracemalloc.stop()


# Receiving.


def message(number: int, data: str, publisher: bytes = b"somebody") -> tuple[str, bytes]:
    return SUBJECT, seal(publisher, number, data.encode(), is_text=True)


async def test_gaps_are_counted() -> None:
    async with started() as party:
        party.backplane.subscribe(LOBBY)
        await party.settle()
        for number in (7, 8, 11, 12):
            party.link.receive(*message(number, str(number)))
        party.link.receive(*message(3, "another", b"12345678"))
        assert party.counters == BackplaneCounters(received=5, missed=2)
        # A publisher that has forgotten the room begins again.
        party.link.receive(*message(1, "1"))
        party.link.receive(*message(3, "3"))
        assert party.counters == BackplaneCounters(received=7, missed=3)
        assert [data for _, data in party.got] == ["7", "8", "11", "12", "another", "1", "3"]
        # What is published to a room that nobody is in is not missed.
        party.backplane.unsubscribe(LOBBY)
        party.link.receive(*message(4, "nobody"))
        party.backplane.subscribe(LOBBY)
        party.link.receive(*message(9, "9"))
        assert party.counters == BackplaneCounters(received=8, missed=3)


async def test_forged_numbers_count_for_a_bounded_gap() -> None:
    async with started() as party:
        party.backplane.subscribe(LOBBY)
        await party.settle()
        for number in (0, 2**64 - 1, 0, 2**64 - 1):
            party.link.receive(*message(number, "forged"))
        assert party.counters == BackplaneCounters(received=4, missed=2_000_000)


async def test_what_is_remembered_of_rooms_and_publishers_is_bounded() -> None:
    async with started(known_publishers=2, numbered_rooms=2) as party:
        party.backplane.subscribe(LOBBY)
        await party.settle()
        for publisher in (b"11111111", b"22222222", b"33333333"):
            party.link.receive(*message(1, "x", publisher))
        party.link.receive(*message(5, "x", b"33333333"))
        party.link.receive(*message(5, "x", b"11111111"))
        assert party.counters.missed == 3
        for key in ("1", "2", "1", "3", "2", "1"):
            party.backplane.publish_nowait(key, key)
        await party.settle()
        assert [open_envelope(sealed).number for sealed in party.link.sealed] == [1, 1, 2, 1, 1, 1]


async def test_what_comes_back_from_the_broker_is_not_delivered_again() -> None:
    async with started() as party:
        party.backplane.subscribe(LOBBY)
        party.publish("mine")
        await party.settle()
        party.link.receive(SUBJECT, party.link.sealed[0])
        party.link.receive(*message(1, "theirs"))
        assert party.got == [(LOBBY, "theirs")]
        assert party.counters == BackplaneCounters(published=1, received=1)


@pytest.mark.parametrize(
    "sealed",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="short"),
        pytest.param(b"\x02" + message(1, "x")[1][1:], id="version"),
        pytest.param(b"\x01\x04" + message(1, "x")[1][2:], id="kind"),
        pytest.param(b"\x01\x02" + message(1, "")[1][2:], id="no length"),
        pytest.param(b"\x01\x03" + message(1, "")[1][2:] + b"\x05four", id="short context"),
        pytest.param(message(1, "")[1] + b"\xff", id="utf-8"),
        pytest.param(b"\x80\x04\x95" + b"." * 40, id="pickle"),
    ],
)
async def test_what_is_no_envelope_is_dropped_and_counted(sealed: bytes, caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    async with started() as party:
        party.backplane.subscribe(LOBBY)
        await party.settle()
        party.link.receive(SUBJECT, sealed)
        party.link.receive(SUBJECT, sealed)
        party.link.receive(*message(1, "x"))
        assert party.got == [(LOBBY, "x")]
        assert party.counters == BackplaneCounters(received=1, malformed=2)
        assert len(logged.lines()) == 1
        assert logged.lines()[0].startswith("WARNING backplane fake://broker: a message was dropped: ")


# What an envelope holds, and the context of traces.


@given(
    publisher=st.binary(min_size=PUBLISHER_BYTES, max_size=PUBLISHER_BYTES),
    number=st.integers(0, 2**64 - 1),
    data=st.one_of(st.binary(max_size=300), st.text(max_size=300)),
    context=st.binary(max_size=MAX_CONTEXT),
)
def test_an_envelope_gives_what_was_put_into_it(
    publisher: bytes, number: int, data: str | bytes, context: bytes
) -> None:
    payload = data.encode() if isinstance(data, str) else data
    sealed = seal(publisher, number, payload, is_text=isinstance(data, str), context=context)
    assert open_envelope(sealed) == (publisher, number, data, context)
    assert len(sealed) == ENVELOPE_BYTES + len(payload) + bool(context) + len(context)


@given(st.binary(max_size=2 * ENVELOPE_BYTES + MAX_CONTEXT), st.integers(0, 255))
def test_of_an_envelope_that_somebody_else_has_made_all_is_understood_or_nothing(rest: bytes, kind: int) -> None:
    sealed = bytes((1, kind)) + rest
    try:
        opened = open_envelope(sealed)
    except ValueError:
        return
    # A bit that has no meaning yet may say that the payload is no longer what it was.
    assert kind < 4
    payload = opened.data.encode() if isinstance(opened.data, str) else opened.data
    assert isinstance(opened.data, bytes) is bool(kind & 1)
    again = seal(opened.publisher, opened.number, payload, is_text=not kind & 1, context=opened.context)
    # An empty context is none.
    assert again == sealed or (kind & 2 and not opened.context and sealed.endswith(b"\0" + payload))


class Carried:
    """A propagator that notes what it delivers."""

    def __init__(self) -> None:
        self.context = b"of mine"
        self.entered: list[tuple[str, bytes]] = []

    def inject(self, key: str, /) -> bytes:
        return self.context

    @contextmanager
    def delivering(self, key: str, context: bytes, /) -> Generator[None]:
        self.entered.append((key, context))
        yield


async def test_a_context_goes_with_a_message_as_far_as_the_broker_takes_both() -> None:
    async with started() as party:
        propagator = party.backplane.propagator = Carried()
        await party.settle()
        largest = FakeLink.max_payload - ENVELOPE_BYTES
        party.publish("x", b"y" * (largest - 8), b"y" * (largest - 7))
        propagator.context = b""
        party.publish("x")
        await party.settle()
        contexts = [open_envelope(sealed).context for sealed in party.link.sealed]
        assert contexts == [b"of mine", b"of mine", b"", b""]


async def test_a_message_with_a_context_arrives_whether_traces_are_on_or_not() -> None:
    async with started() as party:
        party.backplane.subscribe(LOBBY)
        await party.settle()
        sealed = seal(b"another!", 1, b"x", is_text=True, context=b"theirs")
        party.link.receive(SUBJECT, sealed)
        propagator = party.backplane.propagator = Carried()
        party.link.receive(SUBJECT, sealed)
        party.link.receive(*message(2, "x"))
        assert party.got == [(LOBBY, "x")] * 3
        assert propagator.entered == [(LOBBY, b"theirs")]


# The end, other threads and other loops.


async def test_what_is_in_the_queue_at_the_end_is_sent() -> None:
    party = Party()
    party.start()
    party.publish("bye")
    await party.backplane.close()
    assert party.link.published == ["bye"]
    assert party.counters == BackplaneCounters(published=1)
    await party.backplane.drained()
    await party.backplane.close()


async def test_the_end_does_not_wait_for_ever() -> None:
    party = Party(close_timeout=0.01)
    party.start()
    await party.settle()
    party.link.answers.clear()
    party.publish("1")
    await party.settle()
    party.publish("2", "3")
    await soon(party.backplane.close())
    assert party.counters == BackplaneCounters(unconfirmed=3)
    assert party.link.closed


async def test_an_end_that_is_cancelled_is_one() -> None:
    party = Party()
    party.start()
    await party.settle()
    party.link.answers.clear()
    party.publish("1")
    closing = asyncio.create_task(party.backplane.close())
    await party.settle()
    closing.cancel()
    await until(lambda: party.link.closed)
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert party.state == "closed"


async def test_the_end_comes_while_an_attempt_goes_on() -> None:
    party = Party(close_timeout=0.01)
    party.broker.reachable.clear()
    party.start()
    await party.settle()
    await soon(party.backplane.close())
    assert party.broker.links == []


async def test_the_end_comes_though_the_client_library_takes_no_notice() -> None:
    party = Party(close_timeout=0.01)
    party.broker.reachable.clear()
    party.broker.swallows = True
    party.start()
    await party.settle()
    await soon(party.backplane.close())
    assert party.broker.attempts == 1


async def test_the_end_comes_between_two_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party()
    attempts = 0

    async def connect(receive: Receive) -> Link:
        nonlocal attempts
        attempts += 1
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        raise OSError("too late")

    monkeypatch.setattr(party.broker, "connect", connect)
    party.start()
    await party.settle()
    assert party.state == "closed"
    await soon(party.backplane.close())
    assert attempts == 1


async def test_an_end_while_a_lost_connection_is_being_closed_leaves_nothing() -> None:
    party = Party()
    party.start()
    await party.settle()
    party.link.closes.clear()
    party.link.fail(OSError())
    await party.settle()
    closing = asyncio.create_task(party.backplane.close())
    await party.settle()
    assert not closing.done()
    party.link.closes.set()
    await soon(closing)
    assert party.link.closed
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_was_too_large_for_the_broker_is_lost_once_that_is_known() -> None:
    async with started() as party:
        party.publish("a", b"x" * 1500, "b")
        await party.settle()
        assert party.link.published == ["a", "b"]
        assert party.counters == BackplaneCounters(published=2, lost=1)
    party.backplane.unsubscribe("room:never joined")


async def test_what_is_larger_than_anybody_may_publish_is_dropped() -> None:
    async with started() as party:
        party.backplane.subscribe(LOBBY)
        await party.settle()
        for size in (FakeLink.max_payload - ENVELOPE_BYTES, FakeLink.max_payload - ENVELOPE_BYTES + 1):
            party.link.receive(SUBJECT, seal(b"0" * 8, 1, b"x" * size, is_text=True))
        assert [len(data) for _, data in party.got] == [FakeLink.max_payload - ENVELOPE_BYTES]
        assert (party.counters.received, party.counters.malformed) == (1, 1)


async def test_errors_that_differ_each_time_are_not_all_logged(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)
    async with started(*(OSError(f"{number} {'x' * 500}") for number in range(6))) as party:
        for _ in range(6):
            await party.settle()
            await party.clock.advance(2)
        assert party.state == "connected"
    lines = logged.lines()
    assert [line.partition(": cannot connect: ")[2][:1] for line in lines] == ["0", "1", "2", ""]
    assert all(len(line) < 300 for line in lines)
    assert lines[-1].endswith(AGAIN.format(0))


async def test_nobody_waits_for_what_was_too_large() -> None:
    async with started(high_water=1000, close_timeout=3600) as party:
        party.publish(b"x" * 1500)
        await soon(party.backplane.drained())
        await soon(party.backplane.close())
        assert party.counters == BackplaneCounters(lost=1)


async def test_a_delivery_that_fails_ends_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged(caplog)

    def fail(key: str, data: str | bytes) -> None:
        raise RuntimeError("on purpose")

    party = Party()
    party.backplane.subscribe(LOBBY)
    party.backplane.start(fail)
    await party.settle()
    party.link.receive(SUBJECT, seal(b"0" * 8, 1, b"x", is_text=True))
    await party.settle()
    assert (party.state, party.counters.received) == ("connected", 1)
    assert logged.lines() == ["ERROR backplane fake://broker: a message was not delivered"]
    assert [str(exc) for exc in logged.exceptions()] == ["on purpose"]
    await party.backplane.close()


async def test_a_subscription_that_changes_in_another_thread_is_seen() -> None:
    async with started(ping_interval=0.001) as party:
        await party.settle()
        await asyncio.to_thread(party.backplane.subscribe, LOBBY)
        await until(lambda: party.link.subscribed == [SUBJECT])
        await asyncio.to_thread(party.backplane.unsubscribe, LOBBY)
        await until(lambda: party.link.subscribed == [])


async def test_what_is_published_elsewhere_is_lost() -> None:
    party = Party()
    assert party.publish("before") == [False]
    party.start()
    await party.settle()
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.extend(party.publish("in a thread")))
    thread.start()
    thread.join()
    assert taken == [False]
    await party.backplane.close()
    assert party.publish("after") == [False]
    assert party.counters == BackplaneCounters(lost=3)


def test_one_loop_after_another() -> None:
    parties: list[Party] = []

    async def use(*, close: bool) -> None:
        if not parties:
            parties.append(Party())
            parties[0].backplane.subscribe(LOBBY)
        (party,) = parties
        party.broker.reachable = asyncio.Event()
        party.broker.reachable.set()
        party.start()
        await party.settle()
        assert party.state == "connected"
        assert party.link.subscribed == [SUBJECT]
        party.publish("x")
        if close:
            await party.backplane.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    for close in (True, False, True, False, False):
        asyncio.run(use(close=close))
    (party,) = parties
    assert party.state == "closed"
    assert all(link.closed for link in party.broker.links)
    assert party.counters.published >= 2
    assert party.counters.published + party.counters.lost + party.counters.unconfirmed == 5
    publishers = {open_envelope(link.sealed[0]).publisher for link in party.broker.links if link.sealed}
    assert len(publishers) == len([link for link in party.broker.links if link.sealed])
    # In another loop there is nothing to wait for.
    asyncio.run(party.backplane.close())


def test_a_loop_that_was_closed_with_everything_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.new_event_loop()

    async def leave() -> Party:
        party = Party(batch_messages=1)
        party.start()
        await party.settle()
        party.link.answers.clear()
        party.publish("1")
        await party.settle()
        party.publish("2")
        return party

    party = loop.run_until_complete(leave())
    tasks = asyncio.all_tasks(loop)

    def gone(*args: Any) -> None:
        raise RuntimeError("Event loop is closed")

    monkeypatch.setattr(loop, "call_soon_threadsafe", gone)
    asyncio.run(party.backplane.close())
    assert party.state == "closed"
    assert party.counters == BackplaneCounters(unconfirmed=1, lost=1)
    monkeypatch.delattr(loop, "call_soon_threadsafe")
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


async def test_another_start_ends_what_the_first_began() -> None:
    party = Party()
    party.start()
    await party.settle()
    party.start()
    await party.settle()
    assert [link.closed for link in party.broker.links] == [True, False]
    assert party.publish("x") == [True]
    await party.backplane.close()
    assert party.counters == BackplaneCounters(published=1)
