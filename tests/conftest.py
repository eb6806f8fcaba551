"""The leak gate: a test fails when it leaves a task, a thread, a socket or an unreported error behind.

`process_gate` goes around everything else, so that it looks once fixtures, servers and the event loop are gone.
`loop_gate` lives inside the loop of an asynchronous test, and looks before the runner cancels what is left.
"""

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import settings
from pytest_asyncio import is_async_test

from tests.support.brokers import BrokerProcess, nats_server, redis_server
from tests.support.crowd import Serve, SoakServer
from tests.support.stacks import GRANIAN, STACKS, Stack
from wsdeco import App

# How long an example takes says nothing on a machine that does other work as well.
settings.register_profile("without deadlines", settings.default, deadline=None)
settings.load_profile("without deadlines")

PATIENCE: Final = 1.0
"""Seconds that what is on its way out gets to be gone."""

POLL: Final = 0.005
"""Seconds between two looks."""

SHARED_THREADS: Final = ("Dummy-", "pytest_timeout")
"""How the names of threads begin that no test owns: foreign threads that called into Python, and the watchdog."""

OPEN_FILES: Final = Path("/dev/fd")
"""Lists the descriptors of this process, on Linux and macOS; without it sockets are not looked at."""


class ErrorLog(logging.Handler):
    """Keeps what a logger reports as an error, however logging is configured by the test."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


def describe_socket(descriptor: int) -> str:
    with socket.socket(fileno=os.dup(descriptor)) as opened:
        try:
            peer: object = opened.getpeername()
        except OSError:
            peer = "no peer"
        return f"{opened.family.name} {opened.type.name} {opened.getsockname()!r} -> {peer!r}"


def open_sockets() -> dict[tuple[int, int], str]:
    """Return the sockets of this process: identity (device and inode), and description."""
    found: dict[tuple[int, int], str] = {}
    for entry in OPEN_FILES.iterdir() if OPEN_FILES.is_dir() else ():
        # What was closed since it was listed is no leak; the descriptor of the listing itself is such a one.
        with contextlib.suppress(OSError):
            status = os.fstat(int(entry.name))
            if stat.S_ISSOCK(status.st_mode):
                found[status.st_dev, status.st_ino] = describe_socket(int(entry.name))
    return found


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith(SHARED_THREADS)}


def unfinished_tasks(before: set["asyncio.Task[Any]"]) -> list[str]:
    current = asyncio.current_task()
    return [repr(task) for task in asyncio.all_tasks() - before if task is not current]


def wait_until_gone(look: Callable[[], list[str]]) -> list[str]:
    deadline = time.monotonic() + PATIENCE
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(POLL)
    return left


async def wait_in_loop_until_gone(look: Callable[[], list[str]]) -> list[str]:
    deadline = time.monotonic() + PATIENCE
    # Nobody announces the end of a leaked task, so there is no event to wait for.
    while (left := look()) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(POLL)
    return left


def fail_if_any(what: str, found: list[str]) -> None:
    if found:
        pytest.fail("\n  ".join([f"the test leaves {what} behind:", *found]), pytrace=False)


def pytest_collection_finish() -> None:
    # It looks for references to the random numbers of trio, where that is installed, and finds none of frozen objects.
    importlib.import_module("hypothesis")

    # What collection imported lives as long as the process: without it, the collection after each test takes no time.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Let reports cross processes (pytest-xdist) that show what UTF-8 has no form for, as some tests log it."""
    return encodable((yield))


def encodable(data: Any) -> Any:
    kind: Any = data.__class__
    if issubclass(kind, str):
        return data.encode(errors="backslashreplace").decode()
    if issubclass(kind, dict):
        return {encodable(key): encodable(value) for key, value in data.items()}
    if issubclass(kind, list):
        return list(map(encodable, data))
    # Where a test was skipped is told by a tuple, and looked for as one.
    return tuple(map(encodable, data)) if issubclass(kind, tuple) else data


@pytest.fixture(scope="session", autouse=True)
def granian_has_run() -> None:
    """Let granian open what it keeps as long as the process: the socket pair of its runtime's signal handling."""

    async def start_and_stop() -> None:
        async with GRANIAN.serve(App()):
            pass

    asyncio.run(start_and_stop())


CONFIGURED: Final = ("wsdeco", "wsdeco.access", "asyncio", "uvicorn.access")
"""Loggers that a server which `run` starts configures for the whole process."""


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """Undo what a server in this process has set up for its log, such as holding floods back."""
    loggers = [logging.getLogger(name) for name in CONFIGURED]
    before = [(each.level, each.filters.copy(), each.handlers.copy(), each.propagate) for each in loggers]
    yield
    for each, (level, filters, handlers, propagate) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.filters, each.handlers, each.propagate = filters, handlers, propagate


@pytest.fixture(autouse=True)
def process_gate() -> Iterator[None]:
    """Fail a test that leaves threads or sockets behind, or whose event loop reported an error."""
    logger = logging.getLogger("asyncio")
    errors = ErrorLog()
    logger.addHandler(errors)
    threads = own_threads()
    sockets = open_sockets()
    # What has outlived the test before lives on: without it the collections around this test take 0.1 ms, not 30.
    gc.collect()
    gc.freeze()
    yield
    # Destructors run now, so that pytest charges their ResourceWarning and their exceptions to this test.
    gc.collect()
    left_threads = wait_until_gone(lambda: [repr(thread) for thread in own_threads() - threads])
    left_sockets = wait_until_gone(
        lambda: [text for identity, text in open_sockets().items() if identity not in sockets]
    )
    logger.removeHandler(errors)
    fail_if_any("threads", left_threads)
    fail_if_any("open sockets", left_sockets)
    fail_if_any("errors reported by asyncio", errors.messages)


@pytest.fixture
async def loop_gate() -> AsyncIterator[None]:
    """Fail a test that leaves tasks behind, or whose event loop had to handle an exception."""
    loop = asyncio.get_running_loop()
    contexts: list[str] = []

    def remember(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        contexts.append(repr(context))

    loop.set_exception_handler(remember)
    before = asyncio.all_tasks()
    yield
    gc.collect()
    tasks = await wait_in_loop_until_gone(lambda: unfinished_tasks(before))
    loop.set_exception_handler(None)
    fail_if_any("tasks", tasks)
    fail_if_any("exceptions in the event loop", contexts)


@pytest.fixture(autouse=True)
def leak_gate(request: pytest.FixtureRequest, process_gate: None) -> None:
    """Close the gates that fit the test: a synchronous test gets no event loop for it."""
    if is_async_test(request.node):
        request.getfixturevalue("loop_gate")


@pytest.fixture
def no_errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which something is logged as an error, unless the test has looked at it and cleared it."""
    yield
    errors = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    fail_if_any("errors in the log", errors)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers in processes of their own."""
    servers: list[SoakServer] = []

    def start(**options: Any) -> SoakServer:
        servers.append(SoakServer(tmp_path, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(params=STACKS, ids=lambda stack: stack.name)
def stack(request: pytest.FixtureRequest) -> Stack:
    """Every server that behaviour is tested on, one after the other."""
    found: Stack = request.param
    return found


@pytest.fixture(scope="session")
def nats() -> Iterator[BrokerProcess]:
    """A NATS server that every test may use and none may stop."""
    with nats_server() as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[BrokerProcess]:
    """A Redis server that every test may use and none may stop."""
    with redis_server() as server:
        yield server


@pytest.fixture(params=["nats", "redis"])
def broker(request: pytest.FixtureRequest) -> BrokerProcess:
    """Each of them, one after the other."""
    found: BrokerProcess = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=[nats_server, redis_server], ids=["nats", "redis"])
def own_broker(request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    """A server of each kind that the test may stop."""
    with request.param() as server:
        yield server
