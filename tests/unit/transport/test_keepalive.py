"""The keepalive on a clock that the test moves."""

from __future__ import annotations

import pytest

from tests.support.in_memory import FakeClock
from wsdeco.transport.keepalive import Keepalive


class Peer:
    """A connection that keeps a log."""

    def __init__(self, clock: FakeClock, keepalive: Keepalive | None = None) -> None:
        self.clock = clock
        self.keepalive = keepalive
        self.heard = False
        self.is_reading = True
        self.silent_for = 0.0
        self.pings: list[float] = []
        self.lost: list[float] = []

    def has_vanished(self, seconds: float) -> bool:
        return self.silent_for >= seconds

    def send_keepalive_ping(self) -> None:
        self.pings.append(self.clock.now - 1000)

    def lose_keepalive(self) -> None:
        self.lost.append(self.clock.now - 1000)
        if self.keepalive is not None:
            self.keepalive.discard(self)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def joined(clock: FakeClock, interval: float = 20, timeout: float | None = 10) -> tuple[Keepalive, Peer]:
    keepalive = Keepalive(clock, interval, timeout)
    peer = Peer(clock, keepalive)
    keepalive.add(peer)
    return keepalive, peer


def close_to(*moments: float) -> list[object]:
    return [pytest.approx(moment, abs=0.2) for moment in moments]


def test_a_peer_that_answers_is_pinged_at_the_interval(clock: FakeClock) -> None:
    _, peer = joined(clock)
    for _ in range(100):
        clock.advance(1)
        peer.heard = True
    assert peer.pings == close_to(20, 40, 60, 80, 100)
    assert peer.lost == []


@pytest.mark.parametrize(("interval", "timeout"), [(20, 10), (10, 20), (10, 10), (1, 35)])
def test_a_peer_that_vanishes_is_lost_within_interval_and_timeout(
    clock: FakeClock, interval: float, timeout: float
) -> None:
    keepalive, peer = joined(clock, interval, timeout)
    for _ in range(55):
        clock.advance(1)
        peer.heard = True
    clock.advance(100)
    assert len(peer.lost) == 1
    assert timeout <= peer.lost[0] - 55 + interval
    assert peer.lost[0] <= 55 + interval + timeout + 0.2
    assert len(keepalive) == 0
    assert clock.pending == 0


def test_without_a_timeout_nobody_is_judged(clock: FakeClock) -> None:
    _, peer = joined(clock, 20, None)
    clock.advance(100)
    clock.stall(50)
    clock.advance(1)
    assert len(peer.pings) >= 6
    assert peer.lost == []


def test_a_stalled_loop_loses_nobody(clock: FakeClock) -> None:
    keepalive, peer = joined(clock)
    silent = Peer(clock, keepalive)
    keepalive.add(silent)
    clock.advance(25)
    clock.stall(30)
    assert peer.lost == []
    clock.advance(0.1)
    peer.heard = True
    clock.advance(9.8)
    assert silent.lost == []
    clock.advance(0.5)
    assert silent.lost == close_to(65.1)
    assert peer.lost == []


def test_a_stall_while_in_doubt_loses_nobody(clock: FakeClock) -> None:
    _, peer = joined(clock)
    clock.advance(30.03)
    clock.stall(30)
    clock.advance(5)
    peer.heard = True
    clock.advance(10)
    assert peer.lost == []


def test_bytes_read_right_after_the_deadline_count(clock: FakeClock) -> None:
    _, peer = joined(clock)
    clock.advance(30.05)
    peer.heard = True
    clock.advance(5)
    assert peer.lost == []


def test_a_peer_that_is_not_read_is_not_judged(clock: FakeClock) -> None:
    _, peer = joined(clock)
    peer.is_reading = False
    clock.advance(39)
    assert peer.lost == []
    peer.is_reading = True
    clock.advance(12)
    assert peer.lost == close_to(50)


def test_a_peer_that_is_not_read_is_judged_by_what_its_system_acknowledges(clock: FakeClock) -> None:
    _, peer = joined(clock)
    peer.is_reading = False
    peer.silent_for = 9.9
    clock.advance(39)
    assert peer.lost == []
    peer.silent_for = 10
    clock.advance(12)
    assert peer.lost == close_to(50)


def test_a_short_interval_does_not_put_the_deadline_off(clock: FakeClock) -> None:
    _, peer = joined(clock, 3, 10)
    clock.advance(30)
    assert peer.lost == close_to(13)


def test_discard_stops_the_timer(clock: FakeClock) -> None:
    keepalive, peer = joined(clock)
    other = Peer(clock)
    keepalive.add(other)
    keepalive.discard(peer)
    assert clock.pending == 1
    keepalive.discard(other)
    keepalive.discard(other)
    assert clock.pending == 0
    keepalive.add(peer)
    clock.advance(21)
    assert peer.pings == close_to(20)


def test_many_peers_share_one_timer(clock: FakeClock) -> None:
    keepalive = Keepalive(clock, 20, 10)
    peers = [Peer(clock, keepalive) for _ in range(1000)]
    for peer in peers:
        keepalive.add(peer)
        clock.now += 0.001
    assert clock.pending == 1
    clock.advance(60)
    assert all(20 <= peer.pings[0] <= 21.1 for peer in peers)
    assert all(len(peer.lost) == 1 for peer in peers)
