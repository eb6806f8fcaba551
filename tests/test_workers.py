"""Several processes on one port: they serve, are replaced, and end together, whatever happens to them."""

import asyncio
import errno
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import nats
import psutil
import pytest
from websockets.asyncio.client import ClientConnection as AsyncClient
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from tests.brokers import nats_server
from tests.programs import PATIENCE, Ended, Program, client, close_code, echo_app, receive, wait_until, workers_of
from tests.stacks import soon
from wsdeco import ServerError
from wsdeco.cluster import use_backplane

PREAMBLE: Final = """
import asyncio
import errno
import os
import sys
import time
from pathlib import Path

from wsdeco import App, serving, supervisor, ws

serving._LEFTOVERS = serving._POLLING = 0.1
supervisor._LONGEST_DELAY = 0.2
# A machine that is busy makes nothing be said.
serving._NOTICE = supervisor._NOTICE = 60

def echo(app):
    @app.handler("/ws", close_timeout=0.1)
    class Echo:
        async def on_connect(self, addr, sink):
            self.sink = sink
            await sink.send(f"{os.getpid()} {os.environ.get('WSDECO_BACKPLANE')}")

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

LEFT: Final = "left: closed by the server with 1012 (service restart)"


@contextmanager
def running(directory: Path, source: str = RUN, **environment: str) -> Generator[Program]:
    """Run `PREAMBLE`, then `source`, as a script."""
    script = directory / "program.py"
    script.write_text(PREAMBLE + dedent(source), "utf-8")
    program = Program(directory, str(script), environment=environment)
    try:
        yield program
    finally:
        # Its end is what the others end with.
        left = family(program)
        program.discard()
        _, alive = psutil.wait_procs(left, PATIENCE)
        assert alive == []


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


def test_a_worker_that_is_killed_is_replaced_and_the_others_are_not_disturbed(tmp_path: Path) -> None:
    with running(tmp_path, "ws.run(port=0, workers=4)") as program:
        url = program.url()
        program.expect("^4 worker processes. Press Ctrl-C to stop.$")
        with one_client_each(url, 4) as clients:
            workers = {each.pid for each in workers_of(program.process.pid)}
            assert workers == set(clients)
            victim = min(clients)
            os.kill(victim, signal.SIGKILL)
            assert close_code(clients.pop(victim)) is None
            begun = time.monotonic()
            wait_until(lambda: len({each.pid for each in workers_of(program.process.pid)} - {victim}) == 4)
            assert time.monotonic() - begun < 5
            (new,) = {each.pid for each in workers_of(program.process.pid)} - workers
            with ExitStack() as stack:
                clients[new] = stack.enter_context(client_of(url, new))
                assert all(answers(connection) for connection in clients.values())
                program.send_signal(signal.SIGTERM)
                assert {close_code(connection) for connection in clients.values()} == {1012}
        ended = program.end()
    assert ended.code == 0
    assert ended.output.count(LEFT) >= 4
    assert ended.errors == f"worker process {victim} has ended (SIGKILL): another one starts now\n"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(
            f"import signal\ndel signal.pthread_sigmask\nfrom wsdeco import server\nserver.has_locks = lambda: False\n"
            f'if __name__ == "__main__":\n    {RUN}',
            id="guarded, as on Windows",
        ),
        pytest.param(
            "app = App()\necho(app)\ndef main():\n    app.run(port=0, workers=2, background=False)\nmain()",
            id="another app, in a function",
        ),
    ],
)
def test_scripts_of_all_kinds_have_workers(source: str, tmp_path: Path) -> None:
    with running(tmp_path, source) as program:
        with one_client_each(program.url(), 2) as clients:
            assert all(answers(connection) for connection in clients.values())
            # As a terminal sends it, to all processes.
            for pid in (*clients, program.process.pid):
                os.kill(pid, signal.SIGINT)
            assert {close_code(connection) for connection in clients.values()} == {1012}
        ended = program.end()
    assert (ended.code, ended.errors) == (0, "")


def test_a_package_that_is_run_has_workers(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text(PREAMBLE + RUN, "utf-8")
    program = Program(tmp_path, "-m", "package")
    try:
        with client(f"{program.url()}/ws") as connection:
            receive(connection)
            assert answers(connection)
        ended = end(program)
    finally:
        program.discard()
    assert (ended.code, ended.errors) == (0, "")


def test_a_worker_that_cannot_start_again_is_tried_less_and_less_often(tmp_path: Path) -> None:
    source = """
    if Path("broken").exists():
        sys.exit(3)
    ws.run(port=0, workers=2)
    """
    with running(tmp_path, source) as program:
        url = program.url()
        with one_client_each(url, 2) as clients:
            (tmp_path / "broken").touch()
            victim = min(clients)
            # One that has no name.
            os.kill(victim, 36)
            close_code(clients.pop(victim))
            lines = [program.read_error() for _ in range(3)]
            (tmp_path / "broken").unlink()
            assert all(answers(connection) for connection in clients.values())
        with one_client_each(url, 2) as clients:
            assert victim not in clients
        ended = end(program)
    assert ended.code == 0
    assert [re.sub(r"\d+ (has|could)", r"\1", line) for line in lines] == [
        "worker process has ended (signal 36): another one starts now\n",
        "worker process could not start (exit status 3): another one starts in 0.2 s\n",
        "worker process could not start (exit status 3): another one starts in 0.2 s\n",
    ]


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
    ],
)
def test_workers_that_cannot_start_are_not_tried_again(source: str, line: str, tmp_path: Path) -> None:
    with running(tmp_path, source) as program:
        ended = program.end()
    assert ended.code == 1
    assert ended.errors.splitlines()[-1] == line
    assert ended.errors.count(line) == 1
    assert "Serving" not in ended.output


def test_a_script_without_a_file_has_no_workers(tmp_path: Path) -> None:
    program = Program(tmp_path, "-c", PREAMBLE + RUN)
    ended = program.end()
    assert ended.code == 1
    assert ended.errors == (
        "worker processes begin by importing the script, and there is none here: write the app into a file, app.py for "
        "instance, and `wsdeco run app.py --workers 4` in a shell\n"
    )


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


def test_options_of_workers_can_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = echo_app()
    monkeypatch.setattr(sys.modules["__main__"], "some_app", app, raising=False)
    with pytest.raises(SystemExit, match=r"^ssl_context_factory cannot be handed to worker processes"):
        app.run(port=0, workers=2, ssl_context_factory=lambda: None)


def test_a_system_without_room_for_processes_is_an_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(process: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", fail)
    app, _ = echo_app()
    monkeypatch.setattr(sys.modules["__main__"], "some_app", app, raising=False)
    with pytest.raises(SystemExit, match=r"^worker processes cannot be started: .*Resource temporarily unavailable"):
        app.run(port=0, workers=2)


def test_a_system_without_room_for_processes_is_tried_again(tmp_path: Path) -> None:
    source = """
    import multiprocessing.context
    start = multiprocessing.context.SpawnProcess.start
    def fail_once(process):
        if Path("full").exists():
            Path("full").unlink()
            raise BlockingIOError(11, "no room")
        start(process)
    multiprocessing.context.SpawnProcess.start = fail_once
    ws.run(port=0, workers=2)
    """
    with running(tmp_path, source) as program:
        url = program.url()
        program.expect("Press Ctrl-C")
        (tmp_path / "full").touch()
        victim = workers_of(program.process.pid)[0]
        victim.kill()
        with one_client_each(url, 2) as clients:
            assert victim.pid not in clients
        ended = end(program)
    assert ended.code == 0
    assert ended.errors == (
        f"worker process {victim.pid} has ended (SIGKILL): another one starts now\n"
        "a worker process cannot be started now: [Errno 11] no room\n"
    )


# They end.


def test_a_stuck_worker_is_ended_by_its_own_deadline(tmp_path: Path) -> None:
    source = f"serving._MARGIN = supervisor._NOTICE = 0.1\n{RUN}"
    with running(tmp_path, source) as program, client(f"{program.url()}/ws") as connection:
        receive(connection)
        connection.send("block")
        program.expect("blocking")
        program.send_signal(signal.SIGTERM)
        ended = program.end()
    assert ended.code == 1
    assert re.search(r"the server has not ended within \S+ s, a hook blocks its event loop", ended.errors) is not None


def test_a_second_signal_kills_the_workers(tmp_path: Path) -> None:
    source = f"supervisor._NOTICE = 0.1\n{RUN}"
    with running(tmp_path, source) as program, client(f"{program.url()}/ws") as connection:
        receive(connection)
        connection.send("block")
        program.expect("blocking")
        program.send_signal(signal.SIGINT)
        notice = program.read_error()
        program.send_signal(signal.SIGINT)
        ended = program.end()
    assert (
        re.fullmatch(r"waiting up to \d+ s for connections, hooks and requests; another Ctrl-C .*\n", notice)
        is not None
    )
    assert ended.code == 1
    assert ended.errors == "a second signal ends the process at once; not every on_disconnect has run\n"


def test_a_worker_that_does_not_run_any_more_is_killed(tmp_path: Path) -> None:
    source = f"serving._MARGIN = supervisor._MARGIN = 0.1\nsupervisor._NOTICE = 60\n{RUN}"
    with running(tmp_path, source) as program:
        program.expect("Press Ctrl-C")
        stopped = workers_of(program.process.pid)[0]
        stopped.suspend()
        ended = end(program)
    assert ended.code == 1
    assert re.fullmatch(
        rf"the worker processes {stopped.pid} have not ended within \S+ s: they are killed\n", ended.errors
    )


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        with one_client_each(program.url(), 2) as clients:
            everybody = family(program)
            folder = Path(broker_of(program).cmdline()[-1]).parent
            assert folder.is_dir()
            program.send_signal(signal.SIGKILL)
            assert {close_code(connection) for connection in clients.values()} == {1012}
        _, alive = psutil.wait_procs(everybody, PATIENCE)
        assert alive == []
        wait_until(lambda: not folder.exists())
        output, _ = program.process.communicate(timeout=PATIENCE)
    assert output.count(LEFT) == 2


def test_a_worker_that_is_still_starting_does_not_delay_the_end(tmp_path: Path) -> None:
    source = f'if __name__ == "__mp_main__":\n    print("importing", flush=True)\n    time.sleep(600)\n{RUN}'
    with running(tmp_path, source) as program:
        program.expect("importing")
        ended = end(program)
    assert (ended.code, ended.errors) == (0, "")


def test_a_signal_for_everybody_is_one_signal(tmp_path: Path) -> None:
    # As service managers send it.
    with running(tmp_path) as program:
        with one_client_each(program.url(), 2) as clients:
            for pid in (*clients, program.process.pid):
                os.kill(pid, signal.SIGTERM)
            program.send_signal(signal.SIGTERM)
            assert {close_code(connection) for connection in clients.values()} == {1012}
        ended = program.end()
    assert ended.code == 0
    assert ended.output.count(LEFT) == 2


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


def test_workers_have_a_broker_of_their_own_which_is_started_again(tmp_path: Path) -> None:
    with running(tmp_path) as program:
        with client(f"{program.url()}/ws") as connection:
            url = str(receive(connection)).split()[1]
            assert re.fullmatch(r"nats://[\w-]{32}@127\.0\.0\.1:\d+", url) is not None
            check_broker(url)
            token = url[7:39]
            everybody = [program.process.pid, *(each.pid for each in family(program))]
            assert token not in "".join(Path(f"/proc/{pid}/cmdline").read_text("utf-8") for pid in everybody)
            config = Path(broker_of(program).cmdline()[-1])
            assert (config.stat().st_mode & 0o777, config.parent.stat().st_mode & 0o777) == (0o600, 0o700)
            old = broker_of(program)
            old.kill()
            psutil.wait_procs([old], PATIENCE)
            # The workers say for themselves that they have lost it.
            while "nats-server has ended (-9) and is started again" not in program.read_error():
                pass
            wait_until(lambda: can_connect(url))
            check_broker(url)
            assert answers(connection)
        ended = end(program)
    assert ended.code == 0
    assert not config.parent.exists()


def can_connect(url: str) -> bool:
    host, _, port = url.rpartition("@")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError:
        return False
    return True


def test_a_backplane_that_is_named_is_used(tmp_path: Path) -> None:
    with nats_server() as broker, running(tmp_path, WSDECO_BACKPLANE=broker.url) as program:
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


def test_without_a_broker_rooms_reach_one_worker_and_the_first_use_says_so(tmp_path: Path) -> None:
    with running(tmp_path, f"sys.modules['nats'] = None\n{RUN}") as program:
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
        "rooms reach the connections of one worker process only: for all of them `pip install 'wsdeco[cluster]'`, or "
        "name a broker in WSDECO_BACKPLANE\n"
    )


# Their limits.

LIMITED: Final = """
from wsdeco import WebSocketUpgrade, handle_upgrade

class Counted:
    async def on_connect(self, addr, sink):
        await sink.send(str(os.getpid()))

ws.add("/limited", Counted, max_connections_total=50)

@ws.route("/upgraded")
async def upgraded(upgrade: WebSocketUpgrade | None):
    await handle_upgrade(upgrade, Counted(), max_connections_total=5)

ws.run(port=0, workers=4)
"""


@asynccontextmanager
async def storm(url: str, clients: int) -> AsyncGenerator[dict[int, list[AsyncClient]]]:
    """Connect all at once; yield those that are let in, by the process that serves them."""

    async def knock() -> AsyncClient | tuple[int, str]:
        try:
            return await connect(url, proxy=None, open_timeout=PATIENCE)
        except InvalidStatus as refusal:
            return refusal.response.status_code, refusal.response.headers["Retry-After"]

    answers = await asyncio.gather(*(knock() for _ in range(clients)))
    inside = [each for each in answers if isinstance(each, AsyncClient)]
    assert {each for each in answers if not isinstance(each, AsyncClient)} <= {(503, "1")}
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


async def test_a_limit_over_all_workers_holds_and_what_a_killed_one_had_is_free(tmp_path: Path) -> None:
    with running(tmp_path, LIMITED) as program:
        url = await asyncio.to_thread(program.url)
        await asyncio.to_thread(program.expect, "Press Ctrl-C")
        assert "max_connections_total=50" in "".join(program.lines)
        async with storm(f"{url}/limited", 200) as inside:
            assert count(inside) == 50
            victim, killed = min(inside.items(), key=lambda item: len(item[1]))
            os.kill(victim, signal.SIGKILL)
            assert "another one starts now" in await asyncio.to_thread(program.read_error)
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
        ended = await asyncio.to_thread(end, program)
    assert ended.code == 0
    assert ended.errors == ""


# Their rooms.


def check_rooms(clients: dict[int, ClientConnection]) -> None:
    """Let all join a room, and everybody tell something to everybody."""
    for connection in clients.values():
        connection.send("join")
        assert receive(connection) == "echo: join"
    wait_for_subscriptions(list(clients.values()))
    for number, sender in enumerate(clients.values()):
        sender.send(f"tell {number}")
        for connection in clients.values():
            assert receive(connection) == f"told: {number}"


def wait_for_subscriptions(connections: list[ClientConnection]) -> None:
    """Wait until what each tells reaches everybody: a subscription is on its way to the broker for a moment."""
    deadline = time.monotonic() + PATIENCE
    for sender in connections:
        others = [each for each in connections if each is not sender]
        while others:
            assert time.monotonic() < deadline
            sender.send("tell probe")
            assert receive(sender) == "told: probe"
            others = [each for each in others if not has_come(each)]
    for connection in connections:
        with suppress(TimeoutError):
            while True:
                assert connection.recv(0.3) == "told: probe"


def has_come(connection: ClientConnection) -> bool:
    try:
        return connection.recv(0.1) == "told: probe"
    except TimeoutError:
        return False


def test_rooms_reach_all_workers_also_after_a_worker_or_the_broker_has_died(tmp_path: Path) -> None:
    with running(tmp_path, "ws.run(port=0, workers=3)") as program:
        url = program.url()
        program.expect("Press Ctrl-C")
        with one_client_each(url, 3) as clients:
            check_rooms(clients)
            victim = min(clients)
            os.kill(victim, signal.SIGKILL)
            close_code(clients.pop(victim))
            check_rooms(clients)
            broker_of(program).kill()
            check_rooms(clients)
        with one_client_each(url, 3) as clients:
            assert victim not in clients
            check_rooms(clients)
        ended = end(program)
    assert ended.code == 0
