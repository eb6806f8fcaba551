"""Worker processes that import while their parent dies; that they end for real is shown with those that serve."""

import os
import threading
from collections.abc import Iterator
from multiprocessing import current_process
from typing import Final

import pytest

from tests.support.programs import wait_until
from wsdeco.server.orphans import WORKER_NAME, end_with_parent, is_worker, leave_to_link

TICK: Final = 0.005


@pytest.fixture(autouse=True)
def left_to_the_link() -> Iterator[None]:
    yield
    leave_to_link()


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current_process(), "name", f"{WORKER_NAME} 1")


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "wsdeco-orphan"]


def test_other_processes_do_not_care() -> None:
    assert not is_worker()
    end_with_parent(TICK)
    assert watchers() == []


@pytest.mark.usefixtures("worker")
def test_a_worker_whose_parent_has_died_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []

    def exit_process(status: int) -> None:
        statuses.append(status)
        leave_to_link()

    monkeypatch.setattr(os, "_exit", exit_process)
    end_with_parent(TICK)
    assert len(watchers()) == 1
    parent = os.getppid()
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    wait_until(lambda: watchers() == [])
    assert statuses == [1]


@pytest.mark.usefixtures("worker")
def test_a_worker_that_has_a_link_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    parent = os.getppid()

    def look() -> int:
        looks.append(parent)
        return parent

    monkeypatch.setattr(os, "getppid", look)
    end_with_parent(TICK)
    wait_until(lambda: len(looks) > 2)
    assert len(watchers()) == 1
    leave_to_link()
    wait_until(lambda: watchers() == [])
