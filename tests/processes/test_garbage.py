"""When the garbage collector looks for cycles while a server has the process for itself."""

import gc
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

from wsdeco.server.garbage import collect_garbage_rarely

SIZE: Final = 1024 * 1024


@pytest.fixture(autouse=True)
def thresholds() -> Generator[None]:
    before = gc.get_threshold()
    yield
    gc.enable()
    gc.set_threshold(*before)


@pytest.mark.parametrize(("chosen", "kept"), [(700, False), (50_000, True), (0, True)])
def test_the_garbage_collector_counts_to_a_higher_number(chosen: int, kept: bool) -> None:
    gc.set_threshold(chosen, 5, 5)
    with collect_garbage_rarely() as look:
        youngest, *older = gc.get_threshold()
        assert youngest == (chosen if kept else 20_000)
        assert older == [5, 5]
        look()
    assert gc.get_threshold() == (chosen, 5, 5)


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    with collect_garbage_rarely():
        assert gc.get_threshold()[0] < 20_000


def test_nothing_changes_where_the_system_does_not_tell_the_memory(tmp_path: Path) -> None:
    before = gc.get_threshold()
    with collect_garbage_rarely(tmp_path / "statm"):
        assert gc.get_threshold() == before


class Node:
    def __init__(self, size: int) -> None:
        self.held = bytearray(size)
        self.itself = self


PROGRAM: Final = """
import gc
from pathlib import Path
from tests.processes.test_garbage import SIZE, Node
from wsdeco.server.garbage import collect_garbage_rarely


def resident():
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * 4096


gc.collect()
kept = []
before = most = resident()
with collect_garbage_rarely() as look:
    for number in range(500):
        Node(SIZE).held[:] = bytes([1]) * SIZE
        if number % 100 == 0:
            # Gets older than the youngest, and is left then.
            kept = [Node(SIZE) for _ in range(10)]
        look()
        most = max(most, resident())
print((most - before) // SIZE)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the memory there")
def test_a_hook_that_leaves_cycles_around_large_messages_keeps_no_gigabytes() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150
