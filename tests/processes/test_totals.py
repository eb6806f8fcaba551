"""Connections counted over several processes: never too many, and nothing lost with one that dies."""

import logging
import multiprocessing
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from typing import Any, Final

import pytest

from tests.support.programs import PATIENCE, echo_app
from wsdeco import ServerError
from wsdeco.connection.slots import Slots
from wsdeco.workers import run as workers
from wsdeco.workers import totals
from wsdeco.workers.totals import NoShare, Totals

LOCK: Final = (0, 0)
"""What lets another process hold the lock for ever."""


@pytest.fixture
def counts() -> Iterator[Totals]:
    with closing(Totals.create(3)) as created:
        yield created


class Process:
    """Another process that takes."""

    def __init__(self, counts: Totals, worker: int) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=obey, args=(theirs, counts, worker), daemon=True)
        self.process.start()
        theirs.close()
        self.receive()

    def receive(self) -> Any:
        assert self.connection.poll(PATIENCE)
        return self.connection.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(PATIENCE)


def obey(connection: Connection, counts: Totals, worker: int) -> None:
    share = counts.share(worker)
    connection.send("ready")
    while True:
        attempts, total = connection.recv()
        taken = [share.take("name", total) for _ in range(attempts)]
        connection.send(sum(taken) if taken else share.lock())


@contextmanager
def process(counts: Totals, worker: int) -> Generator[Process]:
    started = Process(counts, worker)
    try:
        yield started
    finally:
        started.kill()
        started.process.close()
        started.connection.close()


def test_workers_take_of_one_total(counts: Totals) -> None:
    one, two = counts.share(1), counts.share(2)
    assert [one.take("a", 3), two.take("a", 3), one.take("a", 3), two.take("a", 3)] == [True, True, True, False]
    assert one.take("b", 1)
    assert not two.take("b", 1)
    one.give_back("a")
    assert two.take("a", 3)
    assert not one.take("a", 3)


def test_what_a_worker_had_that_has_died_is_free_and_nothing_else(counts: Totals) -> None:
    one, two, three = (counts.share(number) for number in (1, 2, 3))
    for name, number in (("a", 2), ("b", 1)):
        for share in (one, two, three):
            assert all(share.take(name, 100) for _ in range(number))
    counts.note_death(2)
    assert [one.take("a", 6) for _ in range(3)] == [True, True, False]
    assert [counts.share(2).take("b", 3) for _ in range(2)] == [True, False]


def test_a_name_that_nobody_has_any_of_makes_room_for_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with closing(Totals.create(2, names=2)) as counts:
        one, two = counts.share(1), counts.share(2)
        assert all(one.take(name, 1) for name in ("a", "b"))
        assert not any(two.take(name, 5) for name in ("c", "d"))
        assert caplog.messages == ["no more than 2 clients and routes can be counted over all workers at a time"]
        one.give_back("b")
        assert two.take("c", 1)
        assert not one.take("c", 1)
        assert not one.take("b", 1)
        two.give_back("c")
        assert one.take("b", 1)
        assert not two.take("b", 1)


def test_of_clients_that_are_gone_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Totals.create(2, names=256)) as counts:
        monkeypatch.setattr(Slots, "share", counts.share(1))
        here, there = Slots(None, None, "name"), counts.share(2)
        for number in range(2000):
            client = f"192.0.2.{number}"
            assert here.take_for(client, 2)
            assert there.take(f"name\0{client}", 2)
            assert not here.take_for(client, 2)
            here.give_back_for(client)
            assert here.take_for(client, 2)
            here.give_back_for(client)
            there.give_back(f"name\0{client}")
        assert here.by_client == {}
        assert counts.share(1).take("name", 1)


def test_processes_that_take_at_the_same_time_take_no_more_than_the_total(counts: Totals) -> None:
    with process(counts, 1) as one, process(counts, 2) as two:
        for each in (one, two):
            each.connection.send((1000, 1234))
        taken = one.receive(), two.receive()
        assert sum(taken) == 1234
        two.kill()
        counts.note_death(2)
        one.connection.send((2000, 1234))
        assert one.receive() == taken[1]


def test_a_process_that_is_stopped_with_the_lock_lets_nobody_wait_for_it(
    counts: Totals, caplog: pytest.LogCaptureFixture
) -> None:
    share = counts.share(1)
    with process(counts, 2) as other:
        other.connection.send(LOCK)
        assert other.receive()
        assert not any(share.take("name", 5) for _ in range(3))
        assert caplog.record_tuples == [
            (
                "wsdeco",
                logging.WARNING,
                "connections over all workers cannot be counted: is a worker process stopped?",
            )
        ]
        other.kill()
        assert other.process.exitcode == -signal.SIGKILL
    # The system has let go of the lock.
    assert share.take("name", 1)


def test_a_lock_that_is_free_soon_is_waited_for(counts: Totals, monkeypatch: pytest.MonkeyPatch) -> None:
    share = counts.share(1)
    with process(counts, 2) as other:
        other.connection.send(LOCK)
        assert other.receive()

        def sleep(_seconds: float) -> None:
            other.kill()

        monkeypatch.setattr("time.sleep", sleep)
        assert share.take("name", 1)


def test_slots_count_against_both_limits(counts: Totals, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Slots(2, 3)
    assert [alone.take() for _ in range(3)] == [True, True, False]
    alone.give_back()
    assert alone.taken == 1
    only_total = Slots(None, 1)
    assert [only_total.take() for _ in range(2)] == [True, False]

    monkeypatch.setattr(Slots, "share", counts.share(1))
    here = Slots(2, 3, "name")
    assert [here.take() for _ in range(3)] == [True, True, False]
    there = counts.share(2)
    assert [there.take("name", 3) for _ in range(2)] == [True, False]
    here.give_back()
    assert there.take("name", 3)
    assert not here.take()
    assert here.taken == 1
    without = Slots(None, None, "name")
    assert all(without.take() for _ in range(5))
    without.give_back()


# Where it cannot be.


def test_a_disk_without_room_is_an_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(ServerError, match=r"^there is no room for counting connections over all workers: .*No space"):
        Totals.create(2)


@pytest.mark.parametrize("limit", ["max_connections_total", "max_connections_per_client"])
def test_a_system_without_locks_refuses_to_count(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    reason = (
        r"^the connections of {} cannot be counted over several processes on this system, which has no fcntl locks: "
        r"leave out workers, or write max_connections in the place of max_connections_total and "
        r"max_connections_per_client$"
    )
    assert totals.has_locks()
    monkeypatch.setattr(workers, "has_locks", lambda: False)
    limits: dict[str, Any] = {limit: 5}
    app, _ = echo_app(**limits)
    for name, value in (("some_app", app), ("__file__", __file__)):
        monkeypatch.setattr(sys.modules["__main__"], name, value, raising=False)
    with pytest.raises(SystemExit, match=reason.format("/ws")):
        app.run(port=0, workers=2)
    with pytest.raises(ServerError, match=reason.format("name")):
        NoShare().take("name", 5)
