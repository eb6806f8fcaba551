"""SIGTERM and SIGHUP in a program that does not look for them: here in steps, and with real ones in `processes/`."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from wsdeco import ServerError
from wsdeco.server.termination import ended_by_signals

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")


class Served:
    """A server that is told to end."""

    def __init__(self, error: str = "") -> None:
        self.ended = 0
        self.error = error

    def end(self) -> None:
        self.ended += 1
        if self.error:
            raise ServerError(self.error)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The signals that the process sends, which do not arrive."""
    found: list[tuple[int, int]] = []

    def note(pid: int, number: int) -> None:
        found.append((pid, number))

    monkeypatch.setattr(os, "kill", note)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGTERM)}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_servers_end_before_the_process(sent: list[tuple[int, int]], caplog: pytest.LogCaptureFixture) -> None:
    servers: list[Any] = [Served(), Served("it hangs")]
    with ended_by_signals(servers[0]), ended_by_signals(servers[1]):
        signal.raise_signal(signal.SIGHUP)
        for thread in threading.enumerate():
            if thread.name == "wsdeco-termination":
                thread.join()
    assert [each.ended for each in servers] == [1, 1]
    assert caplog.messages == ["it hangs"]
    assert sent == [(os.getpid(), signal.SIGHUP)]
    # The second one ends the process.
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
