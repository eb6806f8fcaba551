"""What a child that a hook forks does with signals: here step by step, and with real children in `processes/`."""

import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from wsdeco.server import signals
from wsdeco.server.signals import handle_signal

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")

block: Callable[[], None] = vars(signals)["_block"]
unblock: Callable[[], None] = vars(signals)["_unblock"]
restore: Callable[[], None] = vars(signals)["_restore"]


@pytest.fixture
def received() -> Iterator[list[int]]:
    """Handle SIGHUP, behind another handler of this module, and one of the program."""
    taken: list[int] = []

    def of_program(number: int, _frame: FrameType | None) -> None:
        taken.append(-number)

    def of_server(number: int, _frame: FrameType | None) -> None:
        taken.append(number)

    found = signal.signal(signal.SIGHUP, of_program)
    assert handle_signal(signal.SIGHUP, of_server) is of_program
    handle_signal(signal.SIGHUP, of_server)
    yield taken
    signal.signal(signal.SIGHUP, found)


def test_a_signal_waits_while_the_process_forks(received: list[int]) -> None:
    block()
    signal.raise_signal(signal.SIGHUP)
    assert received == []
    unblock()
    assert received == [signal.SIGHUP]


def test_a_child_has_the_handlers_of_before(received: list[int]) -> None:
    block()
    signal.raise_signal(signal.SIGHUP)
    restore()
    assert received == [-signal.SIGHUP]


@pytest.fixture
def unhandled() -> Iterator[None]:
    """No server has run in this process."""
    found = {number: signal.signal(number, signal.SIG_DFL) for number in signals.ENDING_SIGNALS}
    yield
    for number, handler in found.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("unhandled")
def test_a_process_without_a_server_blocks_nothing() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    block()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    restore()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
