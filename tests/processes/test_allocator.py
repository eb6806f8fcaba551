"""What the allocator keeps while a server has the process for itself."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from wsdeco.server.allocator import keep_pages

MIB: Final = 1024 * 1024

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")


class FakeLibc:
    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def gnu_get_libc_version(self) -> bytes:
        return b"2.39"

    def mallopt(self, option: int, value: int) -> int:
        self.calls.append((option, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.calls.append((pad,))
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeLibc:
    libc = FakeLibc()
    monkeypatch.setattr("ctypes.CDLL", {None: libc}.get)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in [name for name in os.environ if name == "GLIBC_TUNABLES" or name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    tell(tmp_path, 1000)
    return libc


def tell(directory: Path, pages: int) -> None:
    (directory / "statm").write_text(f"9999 {pages} 1 1 0 1 0")


def test_pages_are_kept_until_the_server_has_ended(libc: FakeLibc, tmp_path: Path) -> None:
    with keep_pages(tmp_path / "statm"):
        assert libc.calls == [(-2, 32 * MIB), (-3, 32 * MIB)]
        libc.calls.clear()
    assert libc.calls == [(-2, MIB // 8), (-3, MIB // 8), (0,)]


def test_they_are_given_back_a_few_seconds_after_the_process_has_grown(libc: FakeLibc, tmp_path: Path) -> None:
    with keep_pages(tmp_path / "statm") as look:
        libc.calls.clear()
        for pages, trims in ((1000, 0), (1400, 0), (2000, 1), (2000, 1), (1000, 1), (1400, 1), (1600, 2)):
            tell(tmp_path, pages)
            for _ in range(49):
                look()
            # What is not given back now is in use.
            look()
            assert libc.calls == [(0,)] * trims


def test_what_the_environment_says_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    monkeypatch.setattr("ctypes.CDLL", used.append)
    for name in ("MALLOC_TOP_PAD_", "MALLOC_CONF", "GLIBC_TUNABLES"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            with keep_pages() as look:
                look()
    assert used == []


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with keep_pages() as look:
        look()


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: object) -> object:
        return object()

    monkeypatch.setattr("ctypes.CDLL", load)
    with keep_pages() as look:
        look()


PROGRAM: Final = """
import resource
from pathlib import Path
from wsdeco.server.allocator import keep_pages


def resident():
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * 4096


before = resident()
with keep_pages() as look:
    for round in range(200):
        if round == 20:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        several = [b"x" * (1 << 20) for _ in range(4)]
        del several
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    for _ in range(100):
        look()
    print(faults, resident() - before)
"""


@glibc_only
def test_large_messages_take_no_new_pages_and_leave_none_behind() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    faults, left = map(int, done.stdout.split())
    assert faults < 200
    assert left < 4 * MIB
