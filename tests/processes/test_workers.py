"""Several processes on one port: they serve, are replaced, and end together, whatever happens to them."""

import asyncio
import errno
import itertools
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any, Final, cast

import nats
import psutil
import pytest
from websockets.asyncio.client import ClientConnection as AsyncClient
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from tests.support.brokers import nats_server
from tests.support.programs import (
    NOTICE,
    PATIENCE,
    Ended,
    Program,
    client,
    close_code,
    echo_app,
    receive,
    wait_until,
    workers_of,
)
from tests.support.stacks import soon
from wsdeco import ServerError
from wsdeco.server.listen import Listeners
from wsdeco.server.serving import Server
from wsdeco.workers.cluster import use_backplane
from wsdeco.workers.link import END, PING, WARNED, Link

# Each starts several interpreters, which a machine that does other things besides takes its time for.
pytestmark = pytest.mark.timeout(300)

PREAMBLE: Final = """
import asyncio
import errno
import logging
import os
import sys
import time
from pathlib import Path

# Tests read what else is said.
logging.getLogger("wsdeco.access").setLevel("WARNING")

if "BROKER" not in os.environ:
    sys.modules["nats"] = None

from wsdeco import App, ws
from wsdeco.server import foreground, serving
from wsdeco.workers import process, supervisor

serving.LEFTOVERS = serving.POLLING = 0.1
process.LONGEST_DELAY = 0.2
# A machine that is busy makes nothing be said.
foreground.NOTICE = 60

def echo(app):
    @app.handler("/ws", close_timeout=0.1)
    class Echo:
        async def on_connect(self, addr, sink):
            self.sink = sink
            await sink.send(f"{os.getpid()} {app.backplane}")

        async def on_message(self, text):
            if text == "block":
                print("blocking", flush=True)
                while True:
                    time.sleep(0.01)
            if text == "join":
                app.room("all").join(self.sink)
            elif text.startswith("tell"):
                await app.room("all").broadcast(f"told: {text[5:]}")
                return
            return f"echo: {text}"

        async def on_disconnect(self, reason):
            print(f"left: {reason}", flush=True)

echo(ws)
"""

RUN: Final = "ws.run(port=0, workers=2)"

SHARED: Final = """
import multiprocessing.context

from wsdeco import WebSocketUpgrade, handle_upgrade

if Path("broken").exists():
    sys.exit(3)

class Counted:
    async def on_connect(self, addr, sink):
        await sink.send(str(os.getpid()))

ws.add("/limited", Counted, max_connections_total=50)
ws.add("/each", Counted, max_connections_per_client=20, client=lambda request: request.query_params["user"])

@ws.route("/upgraded")
async def upgraded(upgrade: WebSocketUpgrade | None):
    await handle_upgrade(upgrade, Counted(), max_connections_total=5)

start = multiprocessing.context.SpawnProcess.start

def start_if_there_is_room(process):
    if Path("full").exists():
        Path("full").unlink()
        raise BlockingIOError(11, "no room")
    start(process)

multiprocessing.context.SpawnProcess.start = start_if_there_is_room
ws.run(port=0, workers=4)
"""
"""Four workers with a broker, of which tests kill what they like: all is there again soon."""

LEFT: Final = "left: closed by the server with 1012 (service restart)"


@contextmanager
def running(directory: Path, source: str = RUN, **environment: str) -> Generator[Program]:
    """Run `PREAMBLE`, then `source`, as a script."""
    script = directory / "program.py"
    script.write_text(PREAMBLE + dedent(source), "utf-8")
    with running_program(Program(directory, str(script), environment=environment)) as program:
        yield program


@contextmanager
def running_program(program: Program) -> Generator[Program]:
    try:
        yield program
    finally:
        # Its end is what the others end with.
        left = family(program)
        program.discard()
        _, alive = psutil.wait_procs(left, PATIENCE)
        assert alive == []


class Shared:
    """The program that many tests use.

    Attributes:
        program: The program.
        directory: Where it runs.
        url: Where it serves.
    """

    def __init__(self, program: Program, directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.url = program.url()
        program.expect("^4 worker processes. Press Ctrl-C to stop.$")

    @property
    def workers(self) -> set[int]:
        return {each.pid for each in workers_of(self.program.process.pid)}

    def expect_error(self, pattern: str) -> None:
        """Read what it says until that comes: workers say for themselves that they have lost their broker."""
        while re.fullmatch(f"(WARNING:  )?{pattern}", line := self.program.read_error().rstrip("\n")) is None:
            assert line


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    directory = tmp_path_factory.mktemp("shared")
    with running(directory, SHARED, BROKER="yes") as program:
        yield Shared(program, directory)
        folder = Path(broker_of(program).cmdline()[-1]).parent
        assert end(program).code == 0
        assert not folder.exists()


def family(program: Program) -> list[psutil.Process]:
    return psutil.Process(program.process.pid).children(recursive=True) if program.process.poll() is None else []


def end(program: Program) -> Ended:
    program.send_signal(signal.SIGTERM)
    return program.end()


@contextmanager
def one_client_each(url: str, workers: int) -> Generator[dict[int, ClientConnection]]:
    """Connect to each worker once; which one accepts is for the system to say."""
    clients: dict[int, ClientConnection] = {}
    deadline = time.monotonic() + PATIENCE
    with ExitStack() as stack:
        while len(clients) < workers:
            assert time.monotonic() < deadline
            with ExitStack() as attempt:
                connection = attempt.enter_context(client(f"{url}/ws"))
                pid = int(str(receive(connection)).split()[0])
                if pid not in clients:
                    clients[pid] = connection
                    stack.push(attempt.pop_all())
        yield clients


@contextmanager
def client_of(url: str, worker: int) -> Generator[ClientConnection]:
    """Connect until this worker is the one that accepts, also where it has yet to start."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with client(f"{url}/ws") as connection:
            if int(str(receive(connection)).split()[0]) == worker:
                yield connection
                return
        assert time.monotonic() < deadline


def broker_of(program: Program) -> psutil.Process:
    (found,) = (each for each in psutil.Process(program.process.pid).children() if "nats.conf" in each.cmdline()[-1])
    return found


def answers(connection: ClientConnection) -> bool:
    connection.send("hello")
    return receive(connection) == "echo: hello"


# They serve, and are replaced.


def test_a_worker_that_is_killed_is_replaced_and_the_others_are_not_disturbed(shared: Shared) -> None:
    with one_client_each(shared.url, 4) as clients:
        workers = shared.workers
        assert workers == set(clients)
        victim = min(clients)
        os.kill(victim, signal.SIGKILL)
        assert close_code(clients.pop(victim)) is None
        begun = time.monotonic()
        wait_until(lambda: len(shared.workers - {victim}) == 4)
        assert time.monotonic() - begun < 5
        (new,) = shared.workers - workers
        with client_of(shared.url, new) as connection:
            assert all(answers(each) for each in (*clients.values(), connection))
    shared.expect_error(rf"worker process {victim} has ended \(SIGKILL\): another one starts now")


def test_a_worker_that_cannot_start_again_is_tried_less_and_less_often(shared: Shared) -> None:
    broken = shared.directory / "broken"
    with one_client_each(shared.url, 4) as clients:
        broken.touch()
        victim = min(clients)
        # One that has no name.
        os.kill(victim, 36)
        close_code(clients.pop(victim))
        shared.expect_error(rf"worker process {victim} has ended \(signal 36\): another one starts now")
        for _ in range(2):
            shared.expect_error(r"worker process \d+ could not start \(exit status 3\): another one starts in 0\.2 s")
        broken.unlink()
        assert all(answers(connection) for connection in clients.values())
    with one_client_each(shared.url, 4) as clients:
        assert victim not in clients


def test_a_system_without_room_for_processes_is_tried_again(shared: Shared) -> None:
    (shared.directory / "full").touch()
    victim = min(shared.workers)
    os.kill(victim, signal.SIGKILL)
    shared.expect_error(rf"worker process {victim} has ended \(SIGKILL\): another one starts now")
    shared.expect_error(r"a worker process cannot be started now: \[Errno 11\] no room")
    with one_client_each(shared.url, 4) as clients:
        assert victim not in clients
    (shared.directory / "full").touch()
    shared.program.send_signal(signal.SIGHUP)
    shared.expect_error(r"a new worker process cannot be started now: \[Errno 11\] no room; the old ones go on")
    with one_client_each(shared.url, 4) as clients:
        assert victim not in clients


@pytest.mark.parametrize(
    ("source", "number"),
    [
        pytest.param(
            "import signal\ndel signal.pthread_sigmask\n"
            "from wsdeco.workers import run\nrun.has_locks = lambda: False\n"
            f'if __name__ == "__main__":\n    {RUN}',
            signal.SIGINT,
            id="guarded, as on Windows",
        ),
        pytest.param(
            "app = App()\necho(app)\ndef main():\n    app.run(port=0, workers=2, background=False)\nmain()",
            signal.SIGTERM,
            id="another app, in a function",
        ),
    ],
)
def test_scripts_of_all_kinds_have_workers_and_a_signal_for_everybody_is_one(
    source: str, number: int, tmp_path: Path
) -> None:
    with running(tmp_path, source) as program:
        with one_client_each(program.url(), 2) as clients:
            assert all(answers(connection) for connection in clients.values())
            # As a terminal sends it to all processes, and service managers do.
            for pid in (*clients, program.process.pid):
                os.kill(pid, number)
            program.send_signal(number)
            assert {close_code(connection) for connection in clients.values()} == {1012}
        ended = program.end()
    assert (ended.code, ended.errors) == (0, "")
    assert ended.output.count(LEFT) == 2


# They cannot start.


@pytest.mark.parametrize(
    ("source", "line"),
    [
        pytest.param(
            f'if __name__ == "__mp_main__":\n    raise RuntimeError("not twice")\n{RUN}',
            "RuntimeError: not twice",
            id="import",
        ),
        pytest.param(
            f"@ws.lifespan\nasync def lifespan(app):\n    raise RuntimeError('no database')\n    yield\n{RUN}",
            "the lifespan of the app has failed, as the log says",
            id="lifespan",
        ),
        pytest.param(
            f'if __name__ == "__main__":\n    @ws.route("/late")\n    def late(): ...\n    {RUN}',
            "a worker process, which imports the module anew, finds nothing on /late: register it at the top level of "
            'the module, outside of `if __name__ == "__main__":`',
            id="guarded handler",
        ),
        pytest.param(
            f'if __name__ == "__main__":\n    app = App()\n    echo(app)\n    app.{RUN[3:]}',
            "'app' of __main__ is not there: it has ws; worker processes import the script anew, "
            'without what stands under `if __name__ == "__main__":`, so write `app = App()` at its top level',
            id="guarded app",
        ),
    ],
)
def test_workers_that_cannot_start_are_not_tried_again(source: str, line: str, tmp_path: Path) -> None:
    with running(tmp_path, source) as program:
        ended = program.end()
    assert ended.code == 1
    assert ended.errors.splitlines()[-1] == line
    assert ended.errors.count(line) == 1
    assert "Serving" not in ended.output


@pytest.mark.parametrize("arguments", [["-c", PREAMBLE + RUN], ["-"]], ids=["-c", "stdin"])
def test_a_script_without_a_file_has_no_workers(arguments: list[str], tmp_path: Path) -> None:
    with (tmp_path / "typed").open("w+", encoding="utf-8") as typed:
        typed.write(PREAMBLE + RUN)
        typed.seek(0)
        program = Program(tmp_path, *arguments, stdin=typed)
        ended = program.end()
    assert ended.code == 1
    assert ended.errors == (
        "worker processes begin by importing the script, and there is none here: write the app into a file, app.py for "
        "instance, and `wsdeco run app.py --workers 4` in a shell\n"
    )


@pytest.fixture
def in_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process have begun with a script, as it has not where pytest-xdist started it."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)


@pytest.mark.usefixtures("in_a_script")
def test_an_app_without_a_name_has_no_workers() -> None:
    app, _ = echo_app()
    with pytest.raises(SystemExit, match=r"^worker processes find the app by its name, and it has none: "):
        app.run(port=0, workers=2)


def test_workers_are_for_the_foreground() -> None:
    app, _ = echo_app()
    with pytest.raises(ServerError, match=r"^workers serve in the foreground of a script, not in a thread"):
        app.run(port=0, workers=2, background=True)


async def test_workers_are_not_for_notebooks() -> None:
    app, _ = echo_app()
    with pytest.raises(ServerError, match=r"^workers serve in the foreground of a script"):
        app.run(port=0, workers=2)


@pytest.mark.usefixtures("in_a_script")
def test_options_of_workers_can_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = echo_app()
    monkeypatch.setattr(sys.modules["__main__"], "some_app", app, raising=False)
    with pytest.raises(SystemExit, match=r"^ssl_context_factory cannot be handed to worker processes"):
        app.run(port=0, workers=2, ssl_context_factory=lambda: None)


@pytest.mark.usefixtures("in_a_script")
def test_a_system_without_room_for_processes_is_an_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(process: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", fail)
    app, _ = echo_app()
    monkeypatch.setattr(sys.modules["__main__"], "some_app", app, raising=False)
    with pytest.raises(SystemExit, match=r"^worker processes cannot be started: .*Resource temporarily unavailable"):
        app.run(port=0, workers=2)


def test_a_worker_that_cannot_join_the_others_ends_all_of_them(tmp_path: Path) -> None:
    source = """
    import multiprocessing.context
    start = multiprocessing.context.SpawnProcess.start
    def fail_later(process):
        if Path("one").exists():
            raise BlockingIOError(11, "no room")
        Path("one").touch()
        start(process)
    multiprocessing.context.SpawnProcess.start = fail_later
    ws.run(port=0, workers=2)
    """
    with running(tmp_path, source) as program:
        ended = program.end()
    assert ended.code == 1
    assert ended.errors == "worker processes cannot be started: [Errno 11] no room\n"


def test_a_worker_that_ends_without_having_served_has_failed(tmp_path: Path) -> None:
    source = f'if __name__ == "__mp_main__":\n    sys.exit(0)\n{RUN}'
    with running(tmp_path, source) as program:
        ended = program.end()
    assert (ended.code, ended.output) == (1, "")


# They end.


def test_a_stuck_worker_ends_itself_and_one_that_does_not_run_any_more_is_killed(tmp_path: Path) -> None:
    source = f"serving.MARGIN = foreground.NOTICE = 0.1\nsupervisor.MARGIN = 1\n{RUN}"
    with running(tmp_path, source) as program, one_client_each(program.url(), 2) as clients:
        stopped, stuck = clients
        clients[stuck].send("block")
        program.expect("blocking")
        os.kill(stopped, signal.SIGSTOP)
        ended = end(program)
    assert ended.code == 1
    assert ended.notice
    dump, _, parent = ended.errors.rpartition("the server has not ended")
    assert "most recent call first" in dump
    assert re.fullmatch(
        r"within \S+ s, a hook blocks its event loop: the process ends\n"
        rf"the worker processes {stopped} have not ended within \S+ s: they are killed\n",
        parent.lstrip(),
    )


def test_a_second_signal_kills_the_workers(tmp_path: Path) -> None:
    source = f"foreground.NOTICE = 0.1\n{RUN}"
    with running(tmp_path, source) as program, client(f"{program.url()}/ws") as connection:
        receive(connection)
        connection.send("block")
        program.expect("blocking")
        program.send_signal(signal.SIGINT)
        notice = program.read_error()
        program.send_signal(signal.SIGINT)
        ended = program.end()
    assert NOTICE.fullmatch(notice) is not None
    assert ended.code == 1
    assert ended.errors == "a second signal ends the process at once; not every on_disconnect has run\n"


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    source = f"""
if Path("hang").exists():
    print("importing", flush=True)
    time.sleep(600)
{RUN}
"""
    with running(tmp_path, source, BROKER="yes") as program:
        with one_client_each(program.url(), 2) as clients:
            program.expect("Press Ctrl-C")
            (tmp_path / "hang").touch()
            victim = min(clients)
            os.kill(victim, signal.SIGKILL)
            close_code(clients.pop(victim))
            # What does not end to import does not read either that its parent is gone.
            program.expect("importing")
            everybody = family(program)
            folder = Path(broker_of(program).cmdline()[-1]).parent
            assert folder.is_dir()
            program.send_signal(signal.SIGKILL)
            assert {close_code(connection) for connection in clients.values()} == {1012}
        _, alive = psutil.wait_procs(everybody, PATIENCE)
        assert alive == []
        wait_until(lambda: not folder.exists())
        output, _ = program.process.communicate(timeout=PATIENCE)
    assert output.count(LEFT) == 1


def test_a_worker_that_is_still_starting_does_not_delay_the_end(tmp_path: Path) -> None:
    source = f'if __name__ == "__mp_main__":\n    print("importing", flush=True)\n    time.sleep(600)\n{RUN}'
    with running(tmp_path, source) as program:
        program.expect("importing")
        ended = end(program)
    assert (ended.code, ended.errors) == (0, "")


# Their broker.


def check_broker(url: str) -> None:
    async def talk() -> None:
        client: Any = nats
        connection = await client.connect(url, allow_reconnect=False, connect_timeout=5)
        subscription = await connection.subscribe("subject")
        await connection.publish("subject", b"hello")
        assert (await subscription.next_msg(PATIENCE)).data == b"hello"
        await connection.close()

    asyncio.run(talk())


def test_workers_have_a_broker_of_their_own_which_is_started_again(shared: Shared) -> None:
    program = shared.program
    with client(f"{shared.url}/ws") as connection:
        config = Path(broker_of(program).cmdline()[-1])
        address = re.search(r"<Backplane nats://(127\.0\.0\.1:\d+) ", str(receive(connection)))
        assert address is not None
        token = json.loads(config.read_text("utf-8"))["authorization"]["token"]
        url = f"nats://{token}@{address[1]}"
        check_broker(url)
        everybody = [program.process.pid, *(each.pid for each in family(program))]
        assert token not in "".join(Path(f"/proc/{pid}/cmdline").read_text("utf-8") for pid in everybody)
        assert (config.stat().st_mode & 0o777, config.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        old = broker_of(program)
        old.kill()
        psutil.wait_procs([old], PATIENCE)
        shared.expect_error(r"nats-server has ended \(-9\) and is started again; .*")
        wait_until(lambda: can_connect(url))
        check_broker(url)
        assert answers(connection)


def can_connect(url: str) -> bool:
    host, _, port = url.rpartition("@")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError:
        return False
    return True


def test_a_backplane_that_is_named_is_used(tmp_path: Path) -> None:
    with nats_server() as broker, running(tmp_path, BROKER="yes", WSDECO_BACKPLANE=broker.url) as program:
        with one_client_each(program.url(), 2) as clients:
            assert not any("nats" in each.name() for each in family(program))
            check_rooms(clients)
        ended = end(program)
    assert (ended.code, ended.errors) == (0, "")


def test_without_a_broker_there_is_a_backplane_that_says_so() -> None:
    app, _ = echo_app()
    use_backplane(app, None)
    assert app.backplane is not None
    assert app.backplane.state == "closed"


def test_a_package_that_is_run_has_workers_whose_rooms_are_their_own_without_a_broker(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text(PREAMBLE + RUN, "utf-8")
    with running_program(Program(tmp_path, "-m", "package")) as program:
        with one_client_each(program.url(), 2) as clients:
            assert not any("nats" in each.name() for each in family(program))
            for connection in clients.values():
                connection.send("join")
                assert receive(connection) == "echo: join"
            for number, connection in enumerate(clients.values()):
                connection.send(f"tell {number}")
                assert receive(connection) == f"told: {number}"
        ended = end(program)
    assert ended.code == 0
    # Each worker says it for itself, once.
    assert ended.errors == 2 * (
        "WARNING:  rooms reach the connections of one worker process only: for all of them `pip install "
        "'wsdeco[cluster]'`, or name a broker in WSDECO_BACKPLANE\n"
    )


# Their limits.


@asynccontextmanager
async def storm(url: str, clients: int, refused_with: int = 503) -> AsyncGenerator[dict[int, list[AsyncClient]]]:
    """Connect all at once; yield those that are let in, by the process that serves them."""

    async def knock() -> AsyncClient | tuple[int, str]:
        try:
            return await connect(url, proxy=None, open_timeout=PATIENCE)
        except InvalidStatus as refusal:
            return refusal.response.status_code, refusal.response.headers["Retry-After"]

    answers = await asyncio.gather(*(knock() for _ in range(clients)))
    inside = [each for each in answers if isinstance(each, AsyncClient)]
    assert {each for each in answers if not isinstance(each, AsyncClient)} <= {(refused_with, "1")}
    by_process: dict[int, list[AsyncClient]] = {}
    try:
        for connection in inside:
            by_process.setdefault(int(await soon(connection.recv())), []).append(connection)
        yield by_process
    finally:
        await asyncio.gather(*(each.close() for each in inside))


async def let_in(url: str) -> AsyncClient:
    while True:
        with suppress(InvalidStatus):
            return await connect(url, proxy=None, open_timeout=PATIENCE)


def count(storms: dict[int, list[AsyncClient]]) -> int:
    return sum(map(len, storms.values()))


async def test_a_limit_over_all_workers_holds_and_what_a_killed_one_had_is_free(shared: Shared) -> None:
    url = shared.url
    assert "max_connections_total=50" in "".join(shared.program.lines)
    async with storm(f"{url}/limited", 200) as inside:
        assert count(inside) == 50
        victim, killed = min(inside.items(), key=lambda item: len(item[1]))
        os.kill(victim, signal.SIGKILL)
        pattern = rf"worker process {victim} has ended \(SIGKILL\): another one starts now"
        await asyncio.to_thread(shared.expect_error, pattern)
        async with storm(f"{url}/limited", 100) as others:
            assert count(others) == len(killed)
            await next(iter(others.values()))[0].close()
            async with (
                asyncio.timeout(PATIENCE),
                await let_in(f"{url}/limited"),
                storm(f"{url}/limited", 20) as last,
            ):
                # Whichever worker has taken what was free, it was one.
                assert count(last) == 0
    async with storm(f"{url}/upgraded", 30) as inside:
        assert count(inside) == 5


async def test_a_limit_for_each_client_holds_over_all_workers_also_after_one_is_killed(shared: Shared) -> None:
    ann, bob = (f"{shared.url}/each?user={user}" for user in ("ann", "bob"))
    async with storm(ann, 60, 429) as inside, storm(bob, 10, 429) as others:
        assert (count(inside), count(others)) == (20, 10)
        victim, killed = min(inside.items(), key=lambda item: len(item[1]))
        os.kill(victim, signal.SIGKILL)
        pattern = rf"worker process {victim} has ended \(SIGKILL\): another one starts now"
        await asyncio.to_thread(shared.expect_error, pattern)
        async with storm(ann, 40, 429) as again, storm(bob, 40, 429) as more:
            assert count(again) == len(killed)
            assert count(more) == 10 + len(others.get(victim, []))


# Their clients.


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux deals clients out to several sockets")
def test_each_worker_gets_its_share_of_the_clients(shared: Shared) -> None:
    taken: Counter[str] = Counter()
    for _ in range(200):
        with client(f"{shared.url}/ws") as connection:
            taken[str(receive(connection)).partition(" ")[0]] += 1
    assert len(taken) == 4
    assert min(taken.values()) >= 25


def test_nobody_waits_for_a_worker_that_hangs(tmp_path: Path) -> None:
    source = f"serving.MARGIN = foreground.NOTICE = 0.1\nsupervisor.MARGIN = 1\n{RUN}"
    with running(tmp_path, source) as program:
        url = program.url()
        with one_client_each(url, 2) as clients:
            stuck, _ = clients
            clients[stuck].send("block")
            program.expect("blocking")
            for _ in range(20):
                with client(f"{url}/ws") as connection:
                    assert str(receive(connection)).partition(" ")[0] != str(stuck)
            # Before its clients go, as it would not answer their close frames.
            end(program)


# Their rooms.


tokens: Final = itertools.count()


def check_rooms(clients: dict[int, ClientConnection]) -> None:
    """Let all join a room, and everybody tell something to everybody, which comes once."""
    connections = list(clients.values())
    token = f"[{next(tokens)}]"
    for connection in connections:
        connection.send("join")
        while receive(connection) != "echo: join":
            pass
    deadline = time.monotonic() + PATIENCE
    for sender in connections:
        # A subscription is on its way to the broker for a moment.
        deaf = connections
        while deaf:
            assert time.monotonic() < deadline
            sender.send(f"tell {token} probe")
            deaf = [each for each in deaf if not hears(each, f"told: {token} probe")]
    count = 2 * len(connections)
    for number in range(count):
        connections[number % len(connections)].send(f"tell {token} {number}")
    for connection in connections:
        heard: list[int] = []
        while len(heard) < count:
            found = re.fullmatch(rf"told: {re.escape(token)} (\d+)", str(receive(connection)))
            heard += [int(found[1])] if found else []
        assert sorted(heard) == list(range(count))


def hears(connection: ClientConnection, text: str) -> bool:
    try:
        while connection.recv(0.1) != text:
            pass
    except TimeoutError:
        return False
    return True


def test_rooms_reach_all_workers_also_after_a_worker_or_the_broker_has_died(shared: Shared) -> None:
    with one_client_each(shared.url, 4) as clients:
        check_rooms(clients)
        victim = min(clients)
        os.kill(victim, signal.SIGKILL)
        close_code(clients.pop(victim))
        check_rooms(clients)
        broker_of(shared.program).kill()
        check_rooms(clients)
    with one_client_each(shared.url, 4) as clients:
        assert victim not in clients
        check_rooms(clients)


async def test_what_a_parent_says_before_there_is_an_event_loop_is_no_fault() -> None:
    ours, theirs = multiprocessing.Pipe()
    ended = threading.Event()
    with ours, theirs:
        Link(theirs, 1, Listeners("", 0, [])).obey(cast("Server", SimpleNamespace(loop=None)), ended.set)
        for order in (WARNED, PING, END):
            ours.send(order)
        assert await asyncio.to_thread(ended.wait, PATIENCE)
        ended.clear()
        ours.close()
        assert await asyncio.to_thread(ended.wait, PATIENCE)
