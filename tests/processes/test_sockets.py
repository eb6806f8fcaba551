"""Servers on Unix sockets, and on sockets that another program has opened for them."""

import os
import signal
import socket
import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from stat import S_IMODE
from textwrap import dedent
from typing import Any, Final

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, unix_connect

from tests.support.programs import (
    PATIENCE,
    RESTART,
    Program,
    client,
    close_code,
    echo_app,
    receive,
    workers_of,
)
from wsdeco import Address, App, ServerError, Sink
from wsdeco.compiled import FORM
from wsdeco.server import inherited, local
from wsdeco.server.background import BackgroundServer

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="the system has no Unix sockets"),
]


def in_background(app: App, **options: Any) -> BackgroundServer:
    server = app.run(background=True, **options)
    assert server is not None
    return server


@contextmanager
def client_at(path: Path, headers: Mapping[str, str] | None = None) -> Generator[ClientConnection]:
    with unix_connect(
        str(path),
        "ws://chat.example/ws",
        additional_headers=headers,
        open_timeout=PATIENCE,
        close_timeout=PATIENCE,
    ) as connection:
        yield connection


def answers(connection: ClientConnection) -> bool:
    connection.send("hello")
    return receive(connection) == "echo: hello"


def address_app() -> App:
    app = App()

    @app.handler("/ws", max_connections_per_client=1)
    class Told:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.send(f"{addr} {sink.request.url.scheme}")

    return app


# Unix sockets.


def test_a_unix_socket_serves_user_and_group_and_its_file_goes_with_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, events = echo_app()
    path = tmp_path / "ws.sock"
    monkeypatch.chdir(tmp_path)
    with in_background(app, uds="ws.sock") as server:
        monkeypatch.chdir("/")
        assert (server.url, server.http_url, server.port) == (f"unix:{path}", f"unix:{path}", 0)
        assert S_IMODE(path.stat().st_mode) == 0o660
        with client_at(path) as connection:
            assert answers(connection)
            server.stop()
            assert close_code(connection) == 1012
    assert not path.exists()
    assert events == ["connect", RESTART]
    printed = capsys.readouterr().out
    assert printed.startswith(f"Serving unix:{path}\n\n  ws  /ws  Echo\n\nwsdeco is {FORM}.\nRuns in the background")
    # Whoever comes through a proxy is not of this machine.
    assert "Console" not in printed
    assert "href" not in str(getattr(server, "_repr_html_")())  # noqa: B009 - the name is IPython's, not private


def test_permissions_are_an_option_and_a_cell_that_runs_again_takes_the_socket_over(tmp_path: Path) -> None:
    app, _ = echo_app()
    path = tmp_path / "ws.sock"
    first = in_background(app, uds=path, uds_permissions=0o600)
    assert S_IMODE(path.stat().st_mode) == 0o600
    with in_background(app, uds=path, uds_permissions=0o666), client_at(path) as connection:
        assert not first.running
        assert S_IMODE(path.stat().st_mode) == 0o666
        assert answers(connection)
    assert not path.exists()


def test_what_a_killed_server_has_left_is_taken_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "ws.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    app, _ = echo_app()
    other, _ = echo_app()
    with in_background(app, uds=path), client_at(path) as connection:
        with pytest.raises(ServerError, match=f"the Unix socket {path} is taken: stop the server that uses it"):
            other.run(background=True, uds=path)
        assert answers(connection)
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as waiting:
        busy.bind(str(path))
        busy.listen(0)
        with suppress(BlockingIOError):
            while True:
                late = waiting.enter_context(socket.socket(socket.AF_UNIX))
                late.setblocking(False)
                late.connect(str(path))
        with pytest.raises(ServerError, match=f"the Unix socket {path} is taken"):
            other.run(background=True, uds=path)
    path.unlink()
    path.write_text("precious", "utf-8")
    with pytest.raises(ServerError, match=f"{path} is a file, and no Unix socket: remove it"):
        app.run(background=True, uds=path)
    assert path.read_text("utf-8") == "precious"
    with pytest.raises(ServerError, match=r"nowhere/ws\.sock: No such file or directory"):
        app.run(background=True, uds=tmp_path / "nowhere" / "ws.sock")
    with pytest.raises(ServerError, match="AF_UNIX path too long"):
        app.run(background=True, uds=tmp_path / ("a" * 200))


def test_a_file_that_another_server_has_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    app, _ = echo_app()
    path = tmp_path / "ws.sock"
    with in_background(app, uds=path):
        path.unlink()
        other, _ = echo_app(reply="other")
        server = in_background(other, uds=path)
    with server, client_at(path) as connection:
        connection.send("hello")
        assert receive(connection) == "other: hello"


def test_permissions_that_cannot_be_set_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, mode: int) -> None:
        raise PermissionError(1, "not yours")

    app, _ = echo_app()
    path = tmp_path / "ws.sock"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", fail)
        with pytest.raises(ServerError, match=r"cannot listen on the Unix socket .*: Operation not permitted"):
            app.run(background=True, uds=path)
    assert not path.exists()
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ServerError, match="needs Unix sockets, which this system does not have"):
        local.listen_on_path(str(path), 0o660, 1)


def test_a_proxy_at_the_socket_says_who_its_clients_are(tmp_path: Path) -> None:
    path = tmp_path / "ws.sock"

    def forwarded(address: str) -> dict[str, str]:
        # The client may write a list of its own, to which the proxy appends.
        return {"X-Forwarded-For": f"192.0.2.9, {address}", "X-Forwarded-Proto": "https"}

    with in_background(address_app(), uds=path), ExitStack() as stack:
        for address in ("203.0.113.7", "203.0.113.8"):
            connection = stack.enter_context(client_at(path, forwarded(address)))
            assert receive(connection) == f"{address}:0 wss"
        with pytest.raises(InvalidStatus, match="429"):
            stack.enter_context(client_at(path, forwarded("203.0.113.8")))
        assert receive(stack.enter_context(client_at(path))) == "unknown address ws"
    with (
        in_background(address_app(), uds=path, proxy_headers=False),
        client_at(path, forwarded("203.0.113.7")) as connection,
    ):
        assert receive(connection) == "unknown address ws"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"uds": 3}, TypeError, "uds must be the path of a Unix socket such as '/run/chat/ws.sock', not 3"),
        ({"uds": ""}, ValueError, "uds must be the path of a Unix socket such as '/run/chat/ws.sock', not ''"),
        ({"uds": "ws.sock", "port": 9000}, ValueError, "uds takes the place of host and port: leave them out"),
        ({"fd": 3, "host": "::1"}, ValueError, "fd takes the place of host and port: leave them out"),
        ({"fd": 3, "uds": "ws.sock"}, ValueError, "uds and fd are two places to listen: write one of them"),
        ({"fd": -1}, ValueError, "fd must be 0 or more, not -1"),
        ({"fd": "3"}, TypeError, "fd must be an int, not str: '3'"),
        ({"uds_permissions": 0o600}, ValueError, "uds_permissions are those of a Unix socket: name it in uds"),
        ({"uds": "ws.sock", "uds_permissions": 660}, ValueError, "in octal as in 0o660, not 660"),
        ({"uds": "ws.sock", "uds_permissions": "660"}, ValueError, "in octal as in 0o660, not '660'"),
    ],
)
def test_a_place_that_is_none_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    app, _ = echo_app()
    with pytest.raises(error, match=message):
        app.run(**options)


# Sockets of others.


def test_the_socket_of_another_program_goes_on_listening_for_the_next_server(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
        for reply in ("old", "new"):
            app, _ = echo_app(reply=reply)
            with in_background(app, fd=opened.fileno()) as server, client(f"ws://127.0.0.1:{port}/ws") as connection:
                assert server.url == f"ws://127.0.0.1:{port}"
                connection.send("hello")
                assert receive(connection) == f"{reply}: hello"
            # Nobody accepts at this moment, and nobody is refused.
            socket.create_connection(("127.0.0.1", port)).close()
    assert f"Console: http://127.0.0.1:{port}/docs" in capsys.readouterr().out
    if sys.platform == "linux":
        app, _ = echo_app()
        with socket.socket(socket.AF_UNIX) as nameless:
            nameless.bind("\0wsdeco-test")
            nameless.listen()
            with in_background(app, fd=nameless.fileno()) as server:
                assert server.url == "unix:@wsdeco-test"


def test_what_cannot_listen_is_refused(tmp_path: Path) -> None:
    app, _ = echo_app()
    reading, writing = os.pipe()
    with (
        open(reading),  # noqa: PTH123 - a pipe has no path
        open(writing),  # noqa: PTH123 - as above
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        socket.socket() as nowhere,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
    ):
        for descriptor, fault in (
            (reading, "is no socket: Socket operation on non-socket"),
            (datagrams.fileno(), "is no socket that can listen for connections: it is not of type SOCK_STREAM"),
            (nowhere.fileno(), "it has no address"),
            (connection.fileno(), "it is a connection (write Accept=no in the unit of systemd)"),
        ):
            with pytest.raises(ServerError) as caught:
                app.run(background=True, fd=descriptor)
            assert str(caught.value).startswith(f"fd={descriptor} is no socket")
            assert fault in str(caught.value)
    with pytest.raises(ServerError, match="fd=987654 is no open file: nobody has handed it to this process"):
        app.run(background=True, fd=987654)


PROGRAM: Final = """
import os
import sys

sys.modules["nats"] = None
from wsdeco import ws

@ws.handler("/ws")
class Echo:
    async def on_connect(self, addr, sink):
        await sink.send(f"{os.getpid()} {os.environ.get('LISTEN_FDS')}")

    async def on_message(self, text):
        return f"echo: {text}"
"""

ACTIVATE: Final = """
import os
import sys

# As systemd does: the descriptors from 3 on, and the number of the process that they are for.
for place, descriptor in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(descriptor, 100 + place)
for place in range(place + 1):
    os.dup2(100 + place, 3 + place)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(place + 1), "LISTEN_FDNAMES": "a:b"}
os.execv(sys.executable, [sys.executable, "-m", "wsdeco", *sys.argv[2:]])
"""


@contextmanager
def running(directory: Path, *arguments: str, **options: Any) -> Generator[Program]:
    (directory / "program.py").write_text(dedent(PROGRAM), "utf-8")
    program = Program(directory, *arguments, "--no-access-log", **options)
    try:
        yield program
    finally:
        program.discard()


def test_workers_on_a_unix_socket_are_replaced_and_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "ws.sock"
    arguments = "-m wsdeco run program.py --uds ws.sock --uds-permissions 666 --workers 2"
    with running(tmp_path, *arguments.split(), environment={"PORT": "9000"}) as program:
        program.expect(f"^Serving unix:{path}$")
        program.expect("2 worker processes")
        before = {each.pid for each in workers_of(program.process.pid)}
        with client_at(path) as connection:
            assert int(str(receive(connection)).split()[0]) in before
            assert S_IMODE(path.stat().st_mode) == 0o666
            program.send_signal(signal.SIGHUP)
            assert close_code(connection) == 1012
        program.expect_words("the worker processes have been replaced")
        with client_at(path) as connection:
            assert int(str(receive(connection)).split()[0]) not in before
            assert answers(connection)
            program.send_signal(signal.SIGTERM)
            assert close_code(connection) == 1012
        ended = program.end()
    assert (ended.code, ended.errors) == (0, "")
    assert not path.exists()


def test_systemd_hands_its_sockets_over(tmp_path: Path) -> None:
    path = tmp_path / "systemd.sock"
    with socket.create_server(("127.0.0.1", 0)) as one, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        port = one.getsockname()[1]
        arguments = ["-c", ACTIVATE, f"{one.fileno()},{other.fileno()}", "run", "program.py", "--workers", "2"]
        with running(tmp_path, *arguments, pass_fds=(one.fileno(), other.fileno())) as program:
            program.expect(f"^Serving http://127.0.0.1:{port} and ws://127.0.0.1:{port} and unix:{path}$")
            for place in (client(f"ws://127.0.0.1:{port}/ws"), client_at(path)):
                with place as connection:
                    # What hooks start is not to take them for its own.
                    assert str(receive(connection)).split()[1] == "None"
                    assert answers(connection)
            program.send_signal(signal.SIGTERM)
            ended = program.end()
        assert (ended.code, ended.errors) == (0, "")
        # They are systemd's, as is the file.
        assert path.exists()
        socket.create_connection(("127.0.0.1", port)).close()
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(str(path))


def test_variables_for_another_process_are_not_for_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert inherited.activated_descriptors() == ()
    assert os.environ["LISTEN_FDS"] == "1"
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "many")
    assert list(inherited.activated_descriptors()) == []
    assert "LISTEN_PID" not in os.environ
