"""The machine: its cores, its limits, and what is installed on it."""

import contextlib
import os
import platform
import resource
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

DESCRIPTOR_RESERVE: Final = 200
"""File descriptors a process needs besides its connections."""

LOAD: Final = "load before the run"


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of a run.

    Attributes:
        server: Where the server runs.
        client: Where the client runs; the same one where there is no other.
    """

    server: int
    client: int

    @property
    def shared(self) -> bool:
        return self.server == self.client


def choose_cores() -> Cores:
    """Return the first and the last core this process may use: siblings of one physical core lie closer together."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(server=allowed[0], client=allowed[-1])


@contextlib.contextmanager
def pinned(core: int) -> Generator[None]:
    """Run this thread, and processes it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def many_descriptors() -> Generator[int]:
    """Raise the limit of file descriptors as far as it may be raised, and yield the connections that it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard - DESCRIPTOR_RESERVE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def version_of(distribution: str) -> str | None:
    """Return the installed version of a Python distribution, or `None`."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def describe_machine(cores: Cores) -> dict[str, str]:
    """Return what a reader has to know about the machine, line by line."""
    pinning = f"server on core {cores.server}, client on core {cores.client}"
    if cores.shared:
        pinning = f"only one core: server and client share core {cores.server}, so times include the client's"
    return {
        "processor": _processor(),
        "cores": f"{os.cpu_count()} ({pinning})",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        LOAD: " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def command_version(command: str) -> str | None:
    """Return the first line of `command --version`, or `None` when there is no such command."""
    try:
        # The command is one of ours, found as a shell would find it.
        run = subprocess.run([command, "--version"], capture_output=True, check=True, text=True, timeout=30)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.partition("\n")[0]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
