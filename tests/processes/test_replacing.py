"""Workers that are replaced while they serve: by SIGHUP, because they hang, and because they have served enough."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import psutil
import pytest
from websockets.asyncio.client import connect as dial

from tests.support.checkout import CHECKOUT
from tests.support.programs import PATIENCE, Program, client, close_code, receive, wait_until, workers_of
from tests.support.restarts import restart_again_and_again
from tests.support.stacks import until
from wsdeco import App, ServerError
from wsdeco.workers.reload import watching

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the signal does not exist here"),
]

PROGRAM: Final = """
import os
import sys
import time
from pathlib import Path

sys.modules["nats"] = None
from wsdeco import ws

SETUP

if __name__ == "__mp_main__" and Path("broken").exists():
    raise RuntimeError("no database")

if __name__ == "__mp_main__":
    while Path("hang").exists():
        time.sleep(0.01)

VERSION = Path("version").read_text() if Path("version").exists() else "1"

@ws.handler("/ws", close_timeout=0.5)
class Echo:
    async def on_connect(self, addr, sink):
        await sink.send(f"{VERSION} {os.getpid()}")

    async def on_message(self, text):
        if text == "block":
            while True:
                time.sleep(0.01)
        return text

ws.run(port=0, access_log=False, OPTIONS)
"""


def write_program(directory: Path, options: str, setup: str = "") -> None:
    (directory / "program.py").write_text(PROGRAM.replace("OPTIONS", options).replace("SETUP", setup), "utf-8")


@contextmanager
def running(directory: Path, options: str, setup: str = "") -> Generator[tuple[Program, str]]:
    write_program(directory, options, setup)
    program = Program(directory, "program.py")
    try:
        url = program.url()
        program.expect("Press Ctrl-C to stop")
        yield program, url
        program.send_signal(signal.SIGTERM)
        ended = program.end()
        assert ended.code == 0, ended.errors
    finally:
        left = psutil.Process(program.process.pid).children(recursive=True) if program.process.poll() is None else []
        program.discard()
        _, alive = psutil.wait_procs(left, PATIENCE)
        assert alive == []


def pids(program: Program) -> set[int]:
    return {each.pid for each in workers_of(program.process.pid)}


async def test_a_restart_refuses_nobody_and_brings_new_code(tmp_path: Path) -> None:
    with running(tmp_path, "workers=2, drain_timeout=0.5") as (program, url):
        before = pids(program)
        over = asyncio.Event()
        versions: list[str] = []
        reasons: set[str] = set()

        async def keep_connecting() -> None:
            while not over.is_set():
                async with dial(f"{url}/ws", proxy=None, open_timeout=PATIENCE) as connection:
                    versions.append(str(await connection.recv()).split()[0])

        async def stay() -> None:
            async with dial(f"{url}/ws", proxy=None, open_timeout=PATIENCE) as connection:
                await connection.recv()
                await connection.wait_closed()
                reasons.add(connection.close_reason or "")

        staying = [asyncio.create_task(stay()) for _ in range(20)]
        load = [asyncio.create_task(keep_connecting()) for _ in range(3)]
        await until(lambda: versions != [])
        (tmp_path / "version").write_text("2", "utf-8")
        program.send_signal(signal.SIGHUP)
        await asyncio.to_thread(program.expect_words, "SIGHUP: the worker processes are replaced one by one")
        await asyncio.to_thread(program.expect_words, "the worker processes have been replaced")
        after = pids(program)
        over.set()
        # A handshake that is refused fails here.
        await asyncio.wait_for(asyncio.gather(*load, *staying), PATIENCE)
    assert len(after) == 2
    assert before.isdisjoint(after)
    assert (versions[0], versions[-1]) == ("1", "2")
    assert reasons == {"service restart; retry=1"}


def test_a_new_worker_that_fails_leaves_the_old_ones_in_place_and_says_why(tmp_path: Path) -> None:
    with running(tmp_path, "workers=2") as (program, url):
        before = pids(program)
        (tmp_path / "broken").touch()
        program.send_signal(signal.SIGHUP)
        program.expect_words("RuntimeError: no database")
        program.expect_words("a new worker process could not start (exit status 1); the old ones go on")
        assert pids(program) == before
        with client(f"{url}/ws") as connection:
            assert str(receive(connection)).startswith("1 ")
        (tmp_path / "broken").unlink()
        program.send_signal(signal.SIGHUP)
        program.expect_words("the worker processes have been replaced")
        assert pids(program).isdisjoint(before)


def test_a_worker_that_dies_while_its_successor_starts_needs_no_other_one(tmp_path: Path) -> None:
    with running(tmp_path, "workers=2") as (program, _):
        before = pids(program)
        (tmp_path / "hang").touch()
        program.send_signal(signal.SIGHUP)
        wait_until(lambda: len(pids(program)) == 3)
        (new,) = pids(program) - before
        for victim in before:
            os.kill(victim, signal.SIGKILL)
        program.expect_words("has ended (SIGKILL): another one starts now")
        (tmp_path / "hang").unlink()
        program.expect_words("the worker processes have been replaced")
        assert new in pids(program)
        assert len(pids(program)) == 2


def test_a_new_worker_that_never_serves_is_killed(tmp_path: Path) -> None:
    impatient = "from wsdeco.workers import supervisor; supervisor.START = 0.5"
    with running(tmp_path, "workers=2", impatient) as (program, _):
        before = pids(program)
        (tmp_path / "hang").touch()
        program.send_signal(signal.SIGHUP)
        program.expect_words("a new worker process could not start (SIGKILL); the old ones go on")
        assert pids(program) == before
        (tmp_path / "hang").unlink()


def test_a_worker_whose_loop_hangs_is_replaced_and_says_where(tmp_path: Path) -> None:
    with running(tmp_path, "workers=2, worker_timeout=1") as (program, url):
        with client(f"{url}/ws") as connection:
            pid = int(str(receive(connection)).split()[1])
            connection.send("block")
            # Either process may write first.
            said = ""
            while f"worker process {pid} hangs for 1 s and is replaced" not in said or "in on_message" not in said:
                line = program.read_error()
                assert line, said
                said += line
            assert close_code(connection) is None
        wait_until(lambda: pid not in pids(program) and len(pids(program)) == 2)


def test_a_worker_that_has_been_stopped_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path, "workers=2, worker_timeout=1") as (program, _):
        stopped = min(pids(program))
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: stopped not in pids(program) and len(pids(program)) == 2)


def test_a_worker_that_has_had_its_connections_makes_way(tmp_path: Path) -> None:
    with running(tmp_path, "workers=2, max_connections_per_worker=3") as (program, url):
        before = pids(program)

        def connect_until_all_are_new() -> bool:
            with client(f"{url}/ws") as connection:
                receive(connection)
            return before.isdisjoint(pids(program))

        wait_until(connect_until_all_are_new)


def test_changed_code_serves_soon_in_spite_of_open_connections_and_a_stuck_hook(tmp_path: Path) -> None:
    with running(tmp_path, "reload=True") as (program, url), client(f"{url}/ws") as stuck, client(f"{url}/ws") as idle:
        first = int(str(receive(stuck)).split()[1])
        receive(idle)
        source = (tmp_path / "program.py").read_text("utf-8")
        stuck.send("block")
        (tmp_path / "program.py").write_text("this is no Python\n" + source, "utf-8")
        program.expect_words("program.py has changed")
        program.expect_words("this is no Python")
        program.expect_words("the old ones go on")
        assert pids(program) == {first}
        (tmp_path / "program.py").write_text(source.replace("{VERSION}", "new"), "utf-8")
        program.expect_words("program.py has changed")
        program.expect_words("has not ended: it is killed")
        program.expect_words("the worker processes have been replaced")
        with client(f"{url}/ws") as connection:
            assert str(receive(connection)).startswith("new ")
        assert first not in pids(program)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="nothing tells what a process has")
@pytest.mark.parametrize("kind", ["rolling", "reload"])
def test_restarts_in_a_row_leave_nothing_behind(kind: Literal["rolling", "reload"], tmp_path: Path) -> None:
    restarted = restart_again_and_again(tmp_path, kind, 2)
    # A hundred are in `tests/long/test_soak_operations.py`.
    assert restarted.seen > restarted.processes
    assert restarted.memory < 4 << 20


def test_a_missing_watcher_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(ServerError, match=r"pip install 'wsdeco\[reload\]'"), watching(tmp_path, print):
        pass


TERMINAL: Final = """
import os, sys
# What a session opens first is its terminal.
os.close(os.open(os.ttyname(0), os.O_RDWR))
os.execv(sys.executable, [sys.executable, "program.py"])
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_of_the_terminal_ends_the_program(workers: int, tmp_path: Path) -> None:
    options = f"workers={workers}" if workers > 1 else "loop='auto'"
    write_program(tmp_path, options)
    terminal, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", TERMINAL],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        assert program.stdout is not None
        while "Press Ctrl-C" not in (line := program.stdout.readline()):
            assert line
        os.close(terminal)
        _, errors = program.communicate(timeout=PATIENCE)
    finally:
        program.kill()
        program.communicate()
    assert (program.returncode, "replaced" in errors) == (0, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker_timeout": 1}, "worker_timeout is for worker processes: set workers to 2 or more"),
        ({"max_connections_per_worker": 5}, "max_connections_per_worker is for worker processes"),
        ({"max_connections_per_worker": 0, "workers": 2}, "max_connections_per_worker must be 1 or more, not 0"),
        ({"worker_timeout": -1, "workers": 2}, "worker_timeout must be 0 or more seconds"),
    ],
)
def test_options_of_workers_that_cannot_hold_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        App().run(**options)
