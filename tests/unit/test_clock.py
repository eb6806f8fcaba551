"""The wheel: all that waits for a time of one clock, by one timer."""

import asyncio
import gc
import random
import weakref
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from tests.support.in_memory import FakeClock
from tests.support.wire import CountingClock
from wsdeco.clock import Clock, Deadline, Timer, wheel_of


class Member:
    """Waits, and logs when it was told.

    Attributes:
        then: What it does then.
    """

    def __init__(self, clock: Clock, then: Callable[[], object] = int) -> None:
        self.due: float | None = None
        self.told: list[float] = []
        self._clock = clock
        self.then = then

    def wait(self, due: float | None) -> None:
        wheel_of(self._clock).set(self, due)

    def time_over(self, now: float) -> None:
        assert self.due is None
        self.told.append(now)
        self.then()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_each_is_told_at_its_time_and_by_one_timer(clock: FakeClock) -> None:
    source = random.Random(1)  # noqa: S311 - the same in every run
    members = [Member(clock) for _ in range(1000)]
    expected: list[float | None] = []
    for member in members:
        for _ in range(source.randrange(1, 5)):
            due = None if source.random() < 0.2 else clock.now + source.randrange(100) / 8
            member.wait(due)
            assert member.due == due
            assert clock.pending <= 1
        expected.append(member.due)
    clock.advance(1000)
    assert [member.told for member in members] == [[] if due is None else [due] for due in expected]
    assert clock.pending == 0


def test_ten_milliseconds_are_ten_milliseconds_beside_an_hour(clock: FakeClock) -> None:
    far, near = Member(clock), Member(clock)
    far.wait(clock.now + 3600)
    near.wait(clock.now + 0.01)
    clock.advance(0.0099)
    assert near.told == []
    clock.advance(0.0001)
    assert near.told == [1000.01]
    clock.advance(3600)
    assert far.told == [4600]


def test_those_of_one_time_are_told_in_the_order_in_which_they_came(clock: FakeClock) -> None:
    order: list[int] = []
    members = [Member(clock, partial(order.append, number)) for number in range(5)]
    for member in members:
        member.wait(1001)
    members[1].wait(None)
    members[0].wait(None)
    members[0].wait(1001)
    clock.advance(1)
    assert order == [2, 3, 4, 0]


def test_a_group_that_has_left_leaves_no_time_behind(clock: FakeClock) -> None:
    one, other = Member(clock), Member(clock)
    for member in (one, other):
        member.wait(1001)
    for member in (one, other):
        member.wait(None)
    assert clock.pending == 0
    clock.advance(2)
    assert one.told == other.told == []


def test_one_may_take_the_other_away_at_the_moment_of_both(clock: FakeClock) -> None:
    second = Member(clock)
    third = Member(clock)

    def change_others() -> None:
        second.wait(None)
        third.wait(1005)

    first = Member(clock, change_others)
    for member in (first, second, third):
        member.wait(1001)
    clock.advance(10)
    assert (first.told, second.told, third.told) == ([1001], [], [1005])


def test_what_is_due_at_once_comes_in_a_turn_of_its_own(clock: FakeClock) -> None:
    again = Member(clock)
    first = Member(clock, lambda: again.wait(clock.now))
    first.wait(1001)
    clock.advance(1)
    assert (first.told, again.told) == ([1001], [1001])


def test_one_that_fails_keeps_the_others_from_nothing(clock: FakeClock) -> None:
    def fail() -> None:
        raise RuntimeError("fails")

    first, second, later = Member(clock, fail), Member(clock), Member(clock)
    first.wait(1001)
    second.wait(1001)
    later.wait(1002)
    with pytest.raises(RuntimeError, match="fails"):
        clock.advance(1)
    clock.advance(2)
    assert (first.told, second.told, later.told) == ([1001], [1001], [1002])


async def test_thousands_of_one_time_give_the_loop_to_others_in_between() -> None:
    clock = CountingClock()
    seen: list[str] = []
    members = [Member(clock, lambda: seen.append("told")) for _ in range(1000)]
    for member in members:
        member.wait(1)
    members[0].wait(0.5)
    loop = asyncio.get_running_loop()
    members[0].then = lambda: loop.call_soon(note)

    def note() -> None:
        seen.append("turn")
        if len(seen) < 1000:
            loop.call_soon(note)

    await clock.advance(0.5)
    await clock.advance(1)
    assert sum(each == "told" for each in seen) == 999
    turns = [place for place, each in enumerate(seen) if each == "turn"]
    assert max(later - before for before, later in pairwise(turns)) <= 257


def test_a_loop_that_stood_still_reads_before_any_is_told(clock: FakeClock) -> None:
    member, later = Member(clock), Member(clock)
    member.wait(1001)
    later.wait(1100)
    clock.stall(5)
    assert member.told == []
    clock.advance(0.09)
    assert member.told == []
    clock.advance(0.02)
    assert member.told == [pytest.approx(1005.1)]
    assert later.told == []


def test_a_loop_that_is_late_each_time_tells_at_the_second(clock: FakeClock) -> None:
    member = Member(clock)
    for due, told in ((1001, 1005), (2001, 2005)):
        member.wait(due)
        clock.advance(due - 1 - clock.now)
        clock.stall(2)
        assert told not in member.told
        clock.stall(told - clock.now)
        assert member.told[-1] == told


def test_a_moment_to_read_that_nobody_waited_for_is_none_for_the_next(clock: FakeClock) -> None:
    wheel, member = wheel_of(clock), Member(clock)
    for _ in range(2):
        member.wait(clock.now + 1)
        clock.stall(5)
        assert member.told == []
        member.wait(None)
    assert wheel is wheel_of(clock)


def test_a_loop_that_is_a_little_late_tells_at_once(clock: FakeClock) -> None:
    member = Member(clock)
    member.wait(1001)
    clock.stall(1.4)
    assert member.told == [1001.4]


async def test_a_timer_that_is_early_by_a_rounding_is_no_reason_to_wait_again() -> None:
    class EarlyClock(CountingClock):
        def call_at(self, when: float, callback: Callable[[], object], /) -> Any:
            return super().call_at(when - 0.0004, callback)

    clock = EarlyClock()
    member = Member(clock)
    member.wait(5)
    await clock.advance(5)
    assert member.told == [5]
    assert clock.made == 1


def test_times_that_nobody_waits_for_are_not_kept(clock: FakeClock) -> None:
    held = Member(clock)
    held.wait(5000)
    member = Member(clock)
    for number in range(10_000):
        member.wait(2000 + number / 7)
    times: list[float] = getattr(wheel_of(clock), "_times")  # noqa: B009 - memory is what this is about
    assert len(times) < 100
    clock.advance(5000)
    assert (len(member.told), held.told) == (1, [5000])


def test_who_has_left_the_wheel_is_free(clock: FakeClock) -> None:
    gc.disable()
    try:
        member = Member(clock)
        member.wait(2000)
        Member(clock).wait(3000)
        gone = weakref.ref(member)
        member.wait(None)
        del member
        assert gone() is None
    finally:
        gc.enable()


def test_each_clock_has_its_own_and_it_lives_as_long_as_somebody_waits() -> None:
    clock, other = CountingClock(), CountingClock()
    member = Member(clock)
    member.wait(1)
    wheel = weakref.ref(wheel_of(clock))
    assert wheel() is wheel_of(clock)
    assert wheel() is not wheel_of(other)
    member.wait(None)
    assert wheel() is None


class LoopTime:
    """The time of whatever event loop runs."""

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        return asyncio.get_running_loop().call_at(when, callback)


def test_a_clock_may_serve_one_event_loop_after_the_other() -> None:
    clock = LoopTime()

    async def leave_one() -> Deadline:
        return Deadline(clock, 0.05, int)

    async def wait_for_one() -> None:
        over = asyncio.Event()
        Deadline(clock, 0.1, over.set)
        await asyncio.wait_for(over.wait(), 10)

    left = asyncio.run(leave_one())
    asyncio.run(wait_for_one())
    left.cancel()
    assert left.due is None


def test_one_whose_event_loop_is_gone_waits_no_more() -> None:
    loop = asyncio.new_event_loop()
    member = Member(loop)
    member.wait(loop.time() + 1000)
    loop.close()
    gc.collect()
    member.wait(None)
    assert member.due is None


def test_a_deadline_is_over_once(clock: FakeClock) -> None:
    calls: list[float] = []
    deadline = Deadline(clock, 5, lambda: calls.append(clock.now))
    assert deadline.left == 5
    clock.advance(2)
    assert deadline.left == 3
    clock.advance(10)
    assert calls == [1005]
    assert deadline.left == 0
    deadline.cancel()
    cancelled = Deadline(clock, 5, lambda: calls.append(clock.now))
    cancelled.cancel()
    cancelled.cancel()
    clock.advance(10)
    assert calls == [1005]
