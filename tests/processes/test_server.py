"""`App.run`: what it prints, how it fails, and that it always ends, in the foreground and in the background."""

import asyncio
import atexit
import errno
import inspect
import io
import os
import queue
import re
import signal
import socket
import ssl
import struct
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import pytest
import trustme
import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from websockets.asyncio.client import connect as async_connect
from websockets.exceptions import ConnectionClosed, InvalidMessage

from tests.support.programs import (
    NOTICE,
    PATIENCE,
    RESTART,
    Program,
    client,
    close_code,
    echo_app,
    receive,
    taken_port,
    wait_until,
)
from tests.support.raw import handshake, text
from wsdeco import App, DisconnectReason, ServerError
from wsdeco.compiled import FORM
from wsdeco.server import foreground, listen, serving
from wsdeco.server.background import BackgroundServer
from wsdeco.server.options import make_server
from wsdeco.transport.deadlines import HEAD_TIMEOUT

SHORT: Final = 0.05
"""Seconds of a deadline that a test has to see pass in real time."""

HAS_IPV6: Final = socket.has_ipv6 and any(
    address[4][0] == "::1" for address in socket.getaddrinfo("::1", 0, type=socket.SOCK_STREAM)
)


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsdeco.connection.limits.CANCEL_AGAIN", SHORT)


def in_background(app: App, **options: Any) -> BackgroundServer:
    options = {"port": 0} | options
    server = app.run(background=True, **options)
    assert server is not None
    return server


# What it prints.


def test_prints_the_addresses_and_each_route_with_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    app, _ = echo_app(
        max_connections=5000,
        client=host_of,
        idle_timeout=60,
        close_timeout=0.5,
        send_timeout=None,
        max_connection_duration=7200,
        max_message_size=8 << 20,
        max_inbox=1500,
        slow_consumer="drop",
        allowed_origins=["https://a.example", "https://b.example"],
        compression=True,
    )

    @app.route("/")
    def page() -> PlainTextResponse:
        return PlainTextResponse("page")

    app.add("/other", type("Other", (), {"on_message": on_message}))
    with in_background(app) as server:
        port = server.port
    limits = (
        "max_connections=5000, client=host_of, max_connection_duration=2 h, idle_timeout=1 min, close_timeout=0.5 s, "
        "send_timeout=None, max_message_size=8 MiB, max_inbox=1500 B, slow_consumer=drop, "
        "allowed_origins=https://a.example|https://b.example, compression=True"
    )
    assert capsys.readouterr().out.splitlines() == [
        f"Serving http://127.0.0.1:{port} and ws://127.0.0.1:{port}",
        "",
        f"  ws    /ws     Echo   {limits}",
        "  http  /       page",
        "  ws    /other  Other",
        "",
        f"Console: http://127.0.0.1:{port}/docs",
        "",
        f"wsdeco is {FORM}.",
        "Runs in the background: stop() of what run() returned ends it.",
    ]


def host_of(request: HTTPConnection) -> str:
    """Say who a client is."""
    return request.headers["host"]


async def on_message(self: object, text: str) -> None:
    """Do nothing, as the hook of a class that is made on the spot."""


@pytest.mark.parametrize("stream", ["closed", "broken", "missing", "broken without a descriptor"])
def test_a_server_serves_without_a_stdout(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    reading, writing = os.pipe()
    os.close(reading)
    broken = open(writing, "w")  # noqa: PTH123, SIM115 - a pipe has no path
    closed = io.StringIO()
    closed.close()
    out: Any = {"closed": closed, "broken": broken, "missing": None}.get(stream, Broken())
    app, _ = echo_app()
    monkeypatch.setattr(sys, "stdout", out)
    with in_background(app) as server, client(f"{server.url}/ws") as connection:
        connection.send("hello")
        assert receive(connection) == "echo: hello"
    # As at the end of the interpreter.
    with suppress(OSError) if stream != "broken" else nullcontext():
        broken.close()


def test_prints_the_addresses_of_an_app_that_only_has_mounted_ones(capsys: pytest.CaptureFixture[str]) -> None:
    app = App()
    app.app.mount("/sub", Starlette())
    with in_background(app) as server:
        pass
    assert capsys.readouterr().out.splitlines()[0] == f"Serving {server.http_url} and {server.url}"


@pytest.mark.parametrize(("level", "seen"), [(None, False), ("info", True)])
def test_requests_are_logged_on_demand(level: str | None, seen: bool, capfd: pytest.CaptureFixture[str]) -> None:
    app, _ = echo_app()
    options = {} if level is None else {"log_level": level}
    with in_background(app, **options) as server, client(f"{server.url}/ws"):
        pass
    assert ("WebSocket /ws" in capfd.readouterr().err) is seen


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": "8000"}, "port must be an int, not str: '8000'"),
        ({"port": True}, "port must be an int, not bool: True"),
        ({"host": None}, "host must be a str such as '127.0.0.1', not NoneType None"),
        ({"host": 8000}, "host must be a str such as '127.0.0.1', not int 8000: for a port alone write run(port=...)"),
        ({"ssl_certificate": "a.pem"}, "run() has no option 'ssl_certificate': did you mean 'ssl_certfile'?"),
        ({"prot": 8000}, "run() has no option 'prot': did you mean 'port'?"),
        ({"zzz": 1}, "run() has no option 'zzz': it takes those of uvicorn.Config"),
        ({"workers": "4"}, "workers must be an int, not str: '4'"),
        ({"workers": True}, "workers must be an int, not bool: True"),
        ({"timeout_worker_healthcheck": 5}, "run() has no option 'timeout_worker_healthcheck': a worker is replaced"),
        ({"app": None}, "run() has no option 'app': the app is the one that run() is called on"),
        ({"lifespan": "off"}, "run() has no option 'lifespan': decorate start-up and shutdown with @ws.lifespan"),
        ({"http": "h11"}, "run() has no option 'http': run() chooses the HTTP implementation"),
        ({"timeout_graceful_shutdown": "9"}, "timeout_graceful_shutdown must be seconds (a number) or a timedelta"),
        ({"ws_max_queue": 1}, "run() has no option 'ws_max_queue': set max_inbox=... on the handler"),
    ],
)
def test_a_wrong_argument_is_a_type_error(arguments: dict[str, Any], message: str) -> None:
    app, _ = echo_app()
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        app.run(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": -1}, "port must be 0 to 65535, not -1"),
        ({"port": 65536}, "port must be 0 to 65535, not 65536"),
        ({"host": ""}, 'host must not be empty: write "127.0.0.1"'),
        ({"workers": 0}, "workers must be 1 or more, not 0"),
        ({"log_level": "loud"}, "log_level must be one of 'critical', 'error', "),
        ({"loop": "trio"}, "loop must be 'auto' (uvloop where it is installed) or 'asyncio', not 'trio'"),
        ({"log_format": "xml"}, "log_format must be one of 'text', 'json', not 'xml'"),
        ({"timeout_graceful_shutdown": -1}, "timeout_graceful_shutdown must be 0 or more seconds and finite, not -1"),
    ],
)
def test_an_argument_out_of_range_is_a_value_error(arguments: dict[str, Any], message: str) -> None:
    app, _ = echo_app()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        app.run(**arguments)


def test_seconds_may_be_a_timedelta() -> None:
    app, _ = echo_app()
    options = {"timeout_graceful_shutdown": timedelta(minutes=1), "drain_delay": timedelta(hours=1)}
    server = make_server(app, "127.0.0.1", 0, options)
    assert (server.grace, server.own.drain_delay) == (60, 3600)


def test_every_option_of_uvicorn_is_taken_or_refused_with_a_hint() -> None:
    app, _ = echo_app()
    refused: dict[str, str] = {}
    for name in set(inspect.signature(uvicorn.Config).parameters) - {"host", "port"}:
        # The log level is looked at last.
        options: dict[str, Any] = {name: None, "loop": "none"}
        try:
            app.run(**options)
        except TypeError as exc:
            refused[name] = str(exc)
        except ValueError:
            continue
    assert {"ws", "interface", "factory", "reload_dirs"} <= set(refused)
    assert "did you mean" not in "".join(refused.values())
    assert {"ssl_certfile", "root_path", "backlog", "headers", "uds", "fd"}.isdisjoint(refused)


def refusals(app: App, **arguments: Any) -> set[str]:
    """Return how `run` refuses in the foreground, where it ends the process, and in the background."""
    with pytest.raises(SystemExit) as foreground:
        app.run(**arguments)
    assert foreground.value.__cause__ is None
    assert foreground.value.__suppress_context__
    with pytest.raises(ServerError) as background:
        app.run(**arguments, background=True)
    return {str(foreground.value.code), str(background.value)}


def test_an_app_without_routes_is_refused() -> None:
    assert refusals(App()) == {"no handler is registered: decorate a class with @ws.handler('/ws') first"}


def test_a_port_that_another_program_uses_is_refused() -> None:
    app, _ = echo_app()
    with taken_port() as port:
        assert refusals(app, port=port) == {
            f"port {port} on 127.0.0.1 is taken: stop what uses it, or write ws.run(port={port + 1})"
        }


def test_a_taken_port_names_another_one_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_bind(monkeypatch, errno.EADDRINUSE)
    app, _ = echo_app()
    (line,) = refusals(app, port=65535)
    assert line.endswith("or write ws.run(port=65534)")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "two..dots", "null\0byte"])
def test_a_host_that_does_not_resolve_is_refused(host: str) -> None:
    app, _ = echo_app()
    (line,) = refusals(app, host=host, port=0)
    assert line.startswith(f"host {host!r} does not resolve to an address: write 127.0.0.1 for this machine alone")


def test_a_host_that_is_another_machine_is_refused() -> None:
    app, _ = echo_app()
    (line,) = refusals(app, host="192.0.2.1", port=0)
    assert line.startswith("192.0.2.1 is no address of this machine: write 127.0.0.1")


def fail_to_bind(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def bind(self: socket.socket, address: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", bind)


@pytest.mark.parametrize(("port", "suggested"), [(80, 8080), (1024, 8000)])
def test_a_port_without_the_right_to_it_is_refused(port: int, suggested: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_bind(monkeypatch, errno.EACCES)
    app, _ = echo_app()
    (line,) = refusals(app, port=port)
    assert line.startswith(f"port {port} on 127.0.0.1 needs privileges that this user does not have")
    assert f"write ws.run(port={suggested})" in line


def unprivileged_ports_begin() -> int:
    setting = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    return int(setting.read_text()) if setting.exists() else 1024


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems have privileged ports")
@pytest.mark.skipif(unprivileged_ports_begin() <= 79, reason="this machine has no privileged ports")
def test_a_privileged_port_is_refused() -> None:
    app, _ = echo_app()
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        (line,) = refusals(app, port=79)
    finally:
        os.seteuid(user)
    assert line.startswith("port 79 on 127.0.0.1 needs privileges")


def test_any_other_reason_not_to_listen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_bind(monkeypatch, errno.ENOBUFS)
    app, _ = echo_app()
    assert refusals(app, port=8000) == {f"cannot listen on port 8000 of 127.0.0.1: {os.strerror(errno.ENOBUFS)}"}


def test_a_certificate_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    app, _ = echo_app()
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    missing = tmp_path / "missing.pem"
    (line,) = refusals(app, ssl_certfile=missing, ssl_keyfile=garbage)
    assert line == (
        f"TLS cannot be set up with ssl_certfile={str(missing)!r}, ssl_keyfile={str(garbage)!r}: "
        "ssl_certfile names no file"
    )
    (line,) = refusals(app, ssl_certfile=str(garbage), ssl_keyfile=str(garbage))
    assert line.startswith(f"TLS cannot be set up with ssl_certfile={str(garbage)!r}")
    (line,) = refusals(app, ssl_keyfile=str(garbage))
    assert line.endswith("ssl_certfile, the certificate, is missing")


def test_a_lifespan_that_fails_is_an_error_of_the_start() -> None:
    app, _ = echo_app()

    @app.lifespan
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    with taken_port() as port:
        pass
    assert refusals(app, port=port) == {
        "the lifespan of the app has failed, as the log says",
        "the server cannot start: the lifespan of the app has failed, as the log says",
    }
    # Nothing is left that would refuse another start.
    listen.listen("127.0.0.1", port, 1).close()


def test_a_loop_that_cannot_be_made_is_an_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> asyncio.AbstractEventLoop:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "new_event_loop", fail)
    app, _ = echo_app()
    with pytest.raises(ServerError, match=r"the server cannot start: .*Too many open files"):
        in_background(app, loop="asyncio")
    monkeypatch.undo()
    in_background(app).stop()


def test_a_thread_that_cannot_be_started_is_an_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    app, _ = echo_app()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(ServerError, match="the server cannot start: can't start new thread"):
            in_background(app)
    in_background(app).stop()


# Where it listens.


def test_a_name_listens_on_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*arguments: object, **options: object) -> list[Any]:
        # The second one is no address of this machine, as ::1 is not where IPv6 is switched off.
        addresses = ["127.0.0.1", "192.0.2.1", "127.0.0.2", "127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    create_server, taken = socket.create_server, [0, 0]

    def create_beside_others(address: tuple[str, int], **options: Any) -> socket.socket:
        # Twice the port that the system picked for the first address is taken on the second one.
        if address[0] == "127.0.0.2" and 0 in taken:
            taken[taken.index(0)] = address[1]
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return create_server(address, **options)

    monkeypatch.setattr(socket, "create_server", create_beside_others)
    listeners = listen.listen("localhost", 0, 1)
    assert 0 not in taken
    names = [each.getsockname() for each in listeners.sockets]
    listeners.close()
    assert names == [("127.0.0.1", listeners.port), ("127.0.0.2", listeners.port)]
    assert listeners.host == "localhost"


@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.EACCES])
def test_a_search_for_a_free_port_has_an_end(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: tuple[str, int], **options: Any) -> socket.socket:
        raise OSError(number, "no")

    monkeypatch.setattr(socket, "create_server", fail)
    with pytest.raises(ServerError):
        listen.listen("127.0.0.1", 0, 1)


def test_a_port_taken_on_one_of_the_addresses_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        port: int = other.getsockname()[1]

        def resolve(*arguments: object, **options: object) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (1, 2)]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with pytest.raises(ServerError, match=f"port {port} on localhost is taken"):
            listen.listen("localhost", port, 1)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - what all addresses are called is what is tested
        ("localhost", "localhost"),
        pytest.param("::", "[::1]", marks=pytest.mark.skipif(not HAS_IPV6, reason="no IPv6")),
        pytest.param("::1", "[::1]", marks=pytest.mark.skipif(not HAS_IPV6, reason="no IPv6")),
    ],
)
def test_the_address_can_be_opened_as_it_is_shown(host: str, shown: str) -> None:
    app, _ = echo_app()
    server = app.run(host, 0, background=True)
    assert server is not None
    with server, client(f"{server.url}/ws") as connection:
        connection.send("hello")
        assert receive(connection) == "echo: hello"
        assert server.url == f"ws://{shown}:{server.port}"
        assert server.http_url == f"http://{shown}:{server.port}"


def tls_files(directory: Path) -> dict[str, Any]:
    """Write a certificate for localhost; return the options that name it. The authority is in authority.pem."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain, key = directory / "chain.pem", directory / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(directory / "authority.pem")
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(directory / "client.pem")
    return {"ssl_certfile": chain, "ssl_keyfile": key}


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_a_silent_tls_hello_has_the_deadline_of_a_head(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serving.TLS_TIMEOUT == HEAD_TIMEOUT
    monkeypatch.setattr(serving, "TLS_TIMEOUT", SHORT)
    app, _ = echo_app()
    server = app.run("127.0.0.1", 0, background=True, loop=loop, **tls_files(tmp_path))
    assert server is not None
    with server:
        for hello in (b"", b"\x16\x03\x01"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as silent:
                silent.sendall(hello)
                assert silent.recv(1) == b""


def test_tls(tmp_path: Path) -> None:
    options = tls_files(tmp_path)
    trusted = ssl.create_default_context(cafile=tmp_path / "authority.pem")
    app, _ = echo_app()
    server = app.run("localhost", 0, background=True, **options)
    assert server is not None
    with server, client(f"{server.url}/ws", trusted=trusted) as connection:
        connection.send("hello")
        assert receive(connection) == "echo: hello"
        assert server.url == f"wss://localhost:{server.port}"
        assert server.http_url == f"https://localhost:{server.port}"


@pytest.mark.parametrize(("options", "needed"), [({}, True), ({"ssl_cert_reqs": ssl.CERT_OPTIONAL}, False)])
def test_clients_show_a_certificate_where_their_authorities_are_named(
    options: dict[str, Any], needed: bool, tmp_path: Path
) -> None:
    options |= tls_files(tmp_path) | {"ssl_ca_certs": tmp_path / "authority.pem"}
    nobody = ssl.create_default_context(cafile=tmp_path / "authority.pem")
    somebody = ssl.create_default_context(cafile=tmp_path / "authority.pem")
    somebody.load_cert_chain(tmp_path / "client.pem")
    app, _ = echo_app()
    server = app.run("localhost", 0, background=True, **options)
    assert server is not None
    with server:
        with client(f"{server.url}/ws", trusted=somebody) as connection:
            connection.send("hello")
            assert receive(connection) == "echo: hello"
        with (
            pytest.raises((OSError, ConnectionClosed, InvalidMessage)) if needed else nullcontext(),
            client(f"{server.url}/ws", trusted=nobody) as connection,
        ):
            assert not needed


@pytest.mark.parametrize("name", ["ssl_cert_reqs", "ssl_ca_certs", "ssl_keyfile_password", "ssl_ciphers"])
def test_an_option_of_tls_without_a_certificate_is_refused(name: str) -> None:
    app, _ = echo_app()
    line = f"TLS cannot be set up with {name}: ssl_certfile, the certificate, is missing"
    assert refusals(app, **{name: 2}) == {line}


def test_asking_for_certificates_of_nobody_is_refused(tmp_path: Path) -> None:
    app, _ = echo_app()
    line = "ssl_cert_reqs asks clients for certificates: name who issues them in ssl_ca_certs"
    assert refusals(app, ssl_cert_reqs=ssl.CERT_REQUIRED, **tls_files(tmp_path)) == {line}


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"ws_max_size": 1000}, "set max_message_size=... on the handler"),
        ({"ws_per_message_deflate": True}, "set compression=True on the handler"),
    ],
)
def test_an_option_that_reaches_no_handler_is_refused(options: dict[str, Any], hint: str) -> None:
    app, _ = echo_app()
    with pytest.raises(TypeError, match=re.escape(f"run() has no option {next(iter(options))!r} for handlers: {hint}")):
        app.run(port=0, background=True, **options)

    @app.route("/function")
    def function() -> None: ...

    with in_background(app, **options):
        pass


def test_a_server_ends_after_as_many_connections_as_it_was_told() -> None:
    app, events = echo_app()
    with in_background(app, limit_max_requests=2) as server:
        for _ in range(2):
            with client(f"{server.url}/ws"):
                pass
        wait_until(lambda: not server.running)
    assert events.count("connect") == 2


def test_messages_are_taken_up_to_the_largest_limit() -> None:
    app, _ = echo_app(max_message_size=3 << 20)
    with in_background(app) as server, client(f"{server.url}/ws") as connection:
        text = "x" * (2 << 20)
        connection.send(text)
        assert receive(connection) == f"echo: {text}"
        with pytest.raises(ServerError, match="was started for messages of up to 3145728 bytes"):
            app.add("/larger", type("Larger", (), {"on_message": on_message}), max_message_size=4 << 20)
    app.add("/larger", type("Larger", (), {"on_message": on_message}), max_message_size=4 << 20)


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_the_head_of_a_request_has_bounds_and_may_have_company(loop: str) -> None:
    app, _ = echo_app()
    with in_background(app, loop=loop) as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, PATIENCE) as opened:
            opened.sendall(handshake("/ws") + text("early"))
            with opened.makefile("rb") as stream:
                assert b" 101 " in stream.readline()
                assert list(iter(stream.readline, b"\r\n")) != []
                assert stream.read(13) == b"\x81\x0becho: early"
        with socket.create_connection(address, PATIENCE) as opened:
            opened.sendall(handshake("/ws")[:-2] + b"X: y\r\n" * 200 + b"\r\n" + handshake("/ws"))
            with opened.makefile("rb") as stream:
                read = stream.read()
            assert b" 431 " in read
            assert read.count(b"HTTP/1.1") == 1


def test_functions_take_messages_as_large_as_on_uvicorn_or_larger() -> None:
    app, _ = echo_app()
    app.app.mount("/sub", Starlette())
    with in_background(app), pytest.raises(ServerError, match="messages of up to 16777216 bytes"):
        app.add("/larger", type("Larger", (), {"on_message": on_message}), max_message_size=17 << 20)
    with in_background(app, ws_max_size=20 << 20):
        app.add("/larger", type("Larger", (), {"on_message": on_message}), max_message_size=17 << 20)


@pytest.mark.parametrize(
    ("loop", "uvloop", "module"), [("auto", True, "uvloop"), ("asyncio", True, "asyncio"), ("auto", False, "asyncio")]
)
def test_the_event_loop(loop: str, uvloop: bool, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = echo_app()
    found: list[str] = []

    @app.lifespan
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        found.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])
        yield

    if uvloop:
        pytest.importorskip("uvloop")
    else:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    in_background(app, loop=loop).stop()
    assert found == [module]


# In the background.


def test_a_background_server_serves_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    app, events = echo_app()
    server = in_background(app)
    assert server.running
    assert repr(server) == f"<BackgroundServer ws://127.0.0.1:{server.port} running; stop() ends it>"
    with client(f"{server.url}/ws") as connection:
        connection.send("hello")
        assert receive(connection) == "echo: hello"
        server.stop()
        assert close_code(connection) == 1012
    assert events == ["connect", RESTART]
    assert not server.running
    assert repr(server) == f"<BackgroundServer ws://127.0.0.1:{server.port} stopped>"
    server.stop()


async def test_inside_a_running_event_loop_the_server_runs_in_the_background() -> None:
    app, events = echo_app()
    server = app.run(port=0)
    assert server is not None
    async with async_connect(f"{server.url}/ws", proxy=None) as connection:
        await connection.send("hello")
        assert await connection.recv() == "echo: hello"
        await asyncio.to_thread(server.stop)
        with pytest.raises(ConnectionClosed):
            await connection.recv()
    assert events == ["connect", RESTART]


def test_several_threads_may_stop_a_server() -> None:
    app, _ = echo_app()
    server = in_background(app)
    threads = [threading.Thread(target=server.stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not server.running


def test_running_again_takes_the_place_of_the_server_in_the_background() -> None:
    app, events = echo_app()
    first = in_background(app)
    with client(f"{first.url}/ws") as connection:
        second = in_background(app, port=first.port)
        assert close_code(connection) == 1012
    assert not first.running
    assert second.url == first.url
    with second, client(f"{second.url}/ws") as connection:
        connection.send("again")
        assert receive(connection) == "echo: again"
    assert events == ["connect", RESTART, "connect", "closed by the client with 1000"]


def test_running_again_with_wrong_arguments_leaves_the_server_alone() -> None:
    app, _ = echo_app()
    with in_background(app) as server:
        with pytest.raises(TypeError):
            app.run(background=True, workers="2")  # type: ignore[arg-type]
        with pytest.raises(ServerError):
            app.run(background=True, ssl_certfile="missing.pem")
        assert server.running


def test_running_at_once_in_many_threads_leaves_one_server() -> None:
    app, _ = echo_app()
    servers: queue.SimpleQueue[BackgroundServer] = queue.SimpleQueue()
    threads = [threading.Thread(target=lambda: servers.put(in_background(app))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    started = [servers.get_nowait() for _ in threads]
    running = [server for server in started if server.running]
    assert len(running) == 1
    running[0].stop()


def test_two_apps_are_served_side_by_side() -> None:
    one, _ = echo_app(reply="one")
    two, _ = echo_app(reply="two")
    with in_background(one) as first, in_background(two) as second:
        for server, reply in ((first, "one"), (second, "two")):
            with client(f"{server.url}/ws") as connection:
                connection.send("hello")
                assert receive(connection) == f"{reply}: hello"


def test_a_hook_can_neither_stop_nor_restart_its_server() -> None:
    app = App()
    server: BackgroundServer | None = None
    errors: list[str] = []

    @app.handler("/ws")
    class Stopping:
        async def on_message(self, text: str) -> str:
            assert server is not None
            # Nor is that hidden by what is wrong besides, here with the port.
            actions: list[Callable[[], object]] = [server.stop, lambda: app.run(port=int(text))]
            for action in actions:
                with pytest.raises(ServerError) as caught:
                    action()
                errors.append(str(caught.value))
            return "refused"

    server = in_background(app)
    with taken_port() as taken, server, client(f"{server.url}/ws") as connection:
        connection.send(str(taken))
        assert receive(connection) == "refused"
    refusal = f"a hook cannot stop or restart the server at {server.http_url}, since that waits for the hook: "
    assert errors == 2 * [f"{refusal}do it from another thread"]


def test_one_frozen_client_does_not_hold_up_the_end() -> None:
    app, events = echo_app(close_timeout=600)
    server = in_background(app)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as frozen:
        frozen.sendall(handshake("/ws"))
        assert frozen.recv(12) == b"HTTP/1.1 101"
        server.stop(PATIENCE)
    assert events == ["connect", RESTART]


def test_stop_does_not_wait_for_ever_for_a_blocked_event_loop() -> None:
    app = App()
    blocked, go_on = threading.Event(), threading.Event()

    @app.handler("/ws")
    class Blocking:
        async def on_message(self, text: str) -> None:
            blocked.set()
            go_on.wait(PATIENCE)

    server = in_background(app)
    with client(f"{server.url}/ws") as connection:
        connection.send("block")
        assert blocked.wait(PATIENCE)
        with pytest.raises(ServerError, match=r"has not ended within 0\.05 s; if it does not, a hook blocks its event"):
            server.stop(SHORT)
        assert server.running
        go_on.set()
    server.stop()
    assert not server.running


def test_an_interrupted_start_ends_the_server() -> None:
    app, _ = echo_app()
    ended = threading.Event()

    @app.lifespan
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        interrupt()
        yield
        ended.set()

    # Where tests run in the background, as in some shells, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_background(app)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.wait(PATIENCE)


def test_a_task_that_ends_the_process_ends_a_server_in_the_background(caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    events: list[str] = []

    @app.handler("/ws")
    class Leaving:
        async def on_message(self, text: str) -> None:
            asyncio.get_running_loop().call_soon(sys.exit, 3)

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            events.append(str(reason))

    server = in_background(app)
    with client(f"{server.url}/ws") as connection:
        connection.send("leave")
        assert close_code(connection) == 1012
    wait_until(lambda: not server.running)
    server.stop()
    assert events == [RESTART]
    assert [record.getMessage() for record in caplog.records if record.name == "wsdeco"] == [
        f"the server at {server.http_url} has failed"
    ]


def test_what_fails_now_and_then_does_not_end_the_server(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = echo_app()

    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with in_background(app) as server, client(f"{server.url}/ws") as connection:
        found = serving.server_of(app)
        assert found is not None
        found.ticks.append(fail)
        wait_until(lambda: any(fail.__qualname__ in message for message in caplog.messages))
        connection.send("still there?")
        assert receive(connection) == "echo: still there?"


def test_the_lifespan_has_a_deadline(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = echo_app()
    cancelled: list[bool] = []

    @app.lifespan
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    in_background(app, timeout_graceful_shutdown=SHORT).stop()
    assert cancelled == [True]
    assert "the lifespan has not ended within 0.05 s and is cancelled" in caplog.messages


def test_the_lifespan_ends_behind_the_last_on_disconnect() -> None:
    app, events = echo_app()

    @app.lifespan
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        events.append("lifespan over")

    server = in_background(app)
    with client(f"{server.url}/ws") as connection:
        connection.send("hello")
        receive(connection)
        server.stop()
    assert events == ["connect", RESTART, "lifespan over"]


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_thread_of_a_hook_that_ends_is_waited_for(in_thread: bool) -> None:
    app = App()
    threads: list[threading.Thread] = []

    @app.handler("/ws")
    class Working:
        async def on_message(self, text: str) -> str:
            threads.append(await asyncio.to_thread(threading.current_thread))
            return "done"

    with in_background(app) as server, client(f"{server.url}/ws") as connection:
        connection.send("work")
        assert receive(connection) == "done"
    assert not threads[0].is_alive()


def test_at_the_end_of_the_interpreter_every_on_disconnect_runs(tmp_path: Path) -> None:
    program = program_of(
        tmp_path,
        """
        from websockets.sync.client import connect

        server = ws.run(port=0, background=True, access_log=False)
        connection = connect(server.url + "/ws", proxy=None).__enter__()
        connection.send("hello")
        print(connection.recv())
        """,
    )
    ended = program.end()
    assert ended.code == 0
    assert ended.output.splitlines()[-3:] == ["echo: hello", f"left: {RESTART}", "lifespan over"]
    assert ended.errors == ""


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_at_the_end_of_the_interpreter_hooks_still_save_in_threads(loop: str, tmp_path: Path) -> None:
    program = program_of(
        tmp_path,
        f"""
        from websockets.sync.client import connect

        class Saving:
            async def on_message(self, text):
                return await asyncio.to_thread(str.upper, text)

            async def on_disconnect(self, reason):
                await asyncio.to_thread(print, f"saved: {{reason}}")

        ws.add("/saving", Saving)
        server = ws.run(port=0, background=True, access_log=False, loop={loop!r})
        connection = connect(server.url + "/saving", proxy=None).__enter__()
        connection.send("hello")
        print(connection.recv())
        """,
    )
    ended = program.end()
    assert (ended.code, ended.errors) == (0, "")
    assert ended.output.splitlines()[-3:] == ["HELLO", f"saved: {RESTART}", "lifespan over"]


def test_a_server_that_cannot_end_with_the_interpreter_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registered: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    app = App()

    @app.handler("/ws")
    class Handler:
        async def on_message(self, text: str) -> None:
            registered[0]()

    with in_background(app) as server, client(f"{server.url}/ws") as connection:
        connection.send("end")
    assert any(message.startswith("a hook cannot stop or restart the server at") for message in caplog.messages)


# In the foreground.


class Screen(io.StringIO):
    """Takes the place of stdout and stderr, while the main thread serves."""

    def wait_for(self, pattern: str) -> str:
        """Wait until `pattern` is found in what has been printed, and return that part of it."""
        found: list[str] = []

        def look() -> bool:
            match = re.search(pattern, self.getvalue())
            found.extend([] if match is None else [match[0]])
            return match is not None

        wait_until(look)
        return found[0]

    def url(self) -> str:
        """Wait for the banner; return the address that it prints."""
        self.wait_for("Press Ctrl-C to stop")
        return self.wait_for(r"ws://\S+")

    @contextmanager
    def beside(self, talk: Callable[[], None]) -> Generator[None]:
        """Run `talk` in a thread beside the block."""
        failures: list[BaseException] = []
        ended = threading.Event()

        def run() -> None:
            try:
                talk()
            except BaseException as exc:
                failures.append(exc)
                if not ended.is_set():
                    interrupt()

        thread = threading.Thread(target=run)
        with redirect_stdout(self), redirect_stderr(self):
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join(PATIENCE)
        assert failures == []


@pytest.fixture
def screen() -> Screen:
    return Screen()


def interrupt(number: int = signal.SIGINT) -> None:
    # Directed at the thread, as another one may take a signal of the process where the main thread is blocked.
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def test_a_signal_ends_the_server_in_the_foreground(screen: Screen) -> None:
    app, events = echo_app()

    def talk() -> None:
        with client(f"{screen.url()}/ws") as connection:
            connection.send("hello")
            assert receive(connection) == "echo: hello"
            interrupt()
            assert close_code(connection) == 1012

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with screen.beside(talk):
        assert app.run(port=0) is None
    assert events == ["connect", RESTART]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert screen.getvalue().endswith(f"\n\nwsdeco is {FORM}.\nPress Ctrl-C to stop.\n")


def test_it_can_run_again_after_its_end(screen: Screen) -> None:
    app, events = echo_app()
    for shown in (screen, Screen()):

        def talk(shown: Screen = shown) -> None:
            shown.url()
            interrupt()

        with shown.beside(talk):
            app.run(port=0)
    assert events == []


def test_a_server_in_the_background_makes_way_for_one_in_the_foreground(screen: Screen) -> None:
    app, _ = echo_app()
    server = in_background(app)

    def talk() -> None:
        assert screen.url() == server.url
        interrupt()

    with screen.beside(talk):
        app.run(port=server.port)
    assert not server.running


def test_an_app_in_the_foreground_cannot_be_run_again(screen: Screen) -> None:
    app = App()
    errors: list[str] = []

    def run_again(**options: Any) -> None:
        with pytest.raises(ServerError) as caught:
            app.run(port=0, **options)
        errors.append(str(caught.value))

    @app.handler("/ws")
    class Running:
        async def on_message(self, text: str) -> str:
            run_again()
            return "refused"

    def talk() -> None:
        with client(f"{screen.url()}/ws") as connection:
            connection.send("run")
            assert receive(connection) == "refused"
            run_again()
            run_again(background=True)
            interrupt()

    with screen.beside(talk):
        app.run(port=0)
    address = screen.url().replace("ws", "http", 1)
    assert errors == 3 * [
        f"this app is served at {address} already: end that server first (Ctrl-C), or serve another App()"
    ]


def test_the_foreground_is_the_main_thread() -> None:
    app, _ = echo_app()
    errors: list[str] = []

    def run() -> None:
        with pytest.raises(ServerError) as caught:
            app.run(port=0)
        errors.append(str(caught.value))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert errors[0].startswith("run() in the foreground needs the main thread, where signals such as Ctrl-C arrive")


async def test_the_foreground_is_outside_of_event_loops() -> None:
    app, _ = echo_app()
    with pytest.raises(ServerError, match="an event loop runs in this thread: leave out background=False"):
        app.run(port=0, background=False)


def test_a_task_that_ends_the_process_waits_for_every_on_disconnect(screen: Screen) -> None:
    app = App()
    events: list[str] = []

    @app.handler("/ws")
    class Leaving:
        async def on_message(self, text: str) -> None:
            asyncio.get_running_loop().call_soon(sys.exit, 3)

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            events.append(str(reason))

    def talk() -> None:
        with client(f"{screen.url()}/ws") as connection:
            connection.send("leave")
            assert close_code(connection) == 1012

    with screen.beside(talk), pytest.raises(SystemExit) as caught:
        app.run(port=0)
    assert caught.value.code == 3
    assert events == [RESTART]


def test_tasks_and_generators_of_hooks_are_ended() -> None:
    app = App()
    events: list[str] = []
    kept: list[object] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            events.append("generator closed")

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            events.append("task cancelled")

    @app.handler("/ws")
    class Busy:
        async def on_message(self, text: str) -> str:
            iterator = numbers()
            kept.extend([iterator, asyncio.create_task(wait())])
            await anext(iterator)
            return "busy"

    with in_background(app) as server, client(f"{server.url}/ws") as connection:
        connection.send("work")
        assert receive(connection) == "busy"
    assert events == ["task cancelled", "generator closed"]


class Exit:
    """Takes the place of `os._exit`, which would end the tests."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.status: int | None = None

    def __call__(self, status: int) -> None:
        self.status = status
        self.called.set()


@pytest.fixture
def forced_exit(monkeypatch: pytest.MonkeyPatch) -> Exit:
    recorded = Exit()
    monkeypatch.setattr(os, "_exit", recorded)
    return recorded


class Block:
    """What blocks an event loop.

    Attributes:
        begun: Set as soon as it does.
        over: Set to let it go on.
    """

    def __init__(self, over: threading.Event) -> None:
        self.begun = threading.Event()
        self.over = over

    def app(self) -> App:
        app = App()
        block = self

        @app.handler("/ws", close_timeout=SHORT)
        class Blocking:
            async def on_message(self, text: str) -> None:
                block.hold()

        return app

    def hold(self) -> None:
        self.begun.set()
        # One long wait would miss a signal that comes just before the wait begins.
        wait_until(self.over.is_set)


def test_a_blocked_event_loop_ends_the_process_at_last(
    screen: Screen, forced_exit: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LEFTOVERS", "MARGIN", "POLLING"):
        monkeypatch.setattr(f"wsdeco.server.serving.{name}", SHORT)
    block = Block(over=forced_exit.called)

    def talk() -> None:
        with client(f"{screen.url()}/ws") as connection:
            connection.send("block")
            assert block.begun.wait(PATIENCE)
            interrupt()
            forced_exit.called.wait(PATIENCE)

    with screen.beside(talk):
        block.app().run(port=0)
    assert forced_exit.status == 1
    assert "in hold" in screen.getvalue()
    assert (
        re.search(r"the server has not ended within [\d.]+ s, a hook blocks its event loop", screen.getvalue())
        is not None
    )


def test_a_second_signal_ends_the_process_at_once(
    screen: Screen, forced_exit: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsdeco.server.foreground.NOTICE", SHORT)
    block = Block(over=forced_exit.called)

    def talk() -> None:
        with client(f"{screen.url()}/ws") as connection:
            connection.send("block")
            assert block.begun.wait(PATIENCE)
            interrupt(signal.SIGTERM)
            screen.wait_for(
                r"waiting up to \d+ s for connections, hooks and requests; another Ctrl-C ends the process at once"
            )
            interrupt()
            forced_exit.called.wait(PATIENCE)

    with screen.beside(talk):
        block.app().run(port=0)
    assert forced_exit.status == 1
    assert "a second signal ends the process at once" in screen.getvalue()


def test_a_signal_that_comes_again_at_once_is_the_same(
    screen: Screen, forced_exit: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsdeco.server.foreground.REPEAT", PATIENCE)
    block = Block(over=threading.Event())

    def talk() -> None:
        with client(f"{screen.url()}/ws") as connection:
            connection.send("block")
            assert block.begun.wait(PATIENCE)
            # Two of one kind could become one before the process has a look.
            interrupt()
            interrupt(signal.SIGTERM)
            block.over.set()
            assert close_code(connection) == 1012

    with screen.beside(talk):
        block.app().run(port=0)
    assert not forced_exit.called.is_set()


def test_output_that_nobody_reads_does_not_keep_the_process(forced_exit: Exit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsdeco.server.foreground.FLUSH", SHORT)
    read = threading.Event()

    class Full(io.StringIO):
        def flush(self) -> None:
            read.wait(PATIENCE)

    monkeypatch.setattr(sys, "stdout", Full())
    foreground.end_process("the end", 7)
    read.set()
    assert forced_exit.status == 7


@pytest.mark.parametrize("failure", [OSError("no space left on device"), None], ids=["disk", "threads"])
def test_a_system_without_room_does_not_keep_the_process(
    failure: OSError | None, screen: Screen, forced_exit: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure or RuntimeError("can't start new thread")

    received: queue.SimpleQueue[bool] = queue.SimpleQueue()
    received.put(True)
    app, _ = echo_app()
    with in_background(app) as handle:
        server = serving.server_of(app)
        assert server is not None
        monkeypatch.setattr(type(server), "time_to_end", SHORT)
        monkeypatch.setattr("tempfile.TemporaryFile" if failure else "threading.Thread.start", fail)
        with redirect_stderr(screen):
            foreground.watch_end(server, received)
        monkeypatch.undo()
        assert handle.running
    assert screen.getvalue().count("\n") == (2 if failure else 0)


def test_threads_that_never_end_do_not_keep_the_process(
    screen: Screen, forced_exit: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsdeco.server.serving.LEFTOVERS", SHORT)
    app = App()
    events: list[str] = []

    @app.handler("/ws", close_timeout=SHORT)
    class Waiting:
        async def on_message(self, text: str) -> None:
            await asyncio.to_thread(forced_exit.called.wait, PATIENCE)

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            events.append(str(reason))

    def talk() -> None:
        with client(f"{screen.url()}/ws") as connection:
            connection.send("wait")
            wait_until(lambda: any(thread.name.startswith("wsdeco-") for thread in threading.enumerate()))
            interrupt()
            assert close_code(connection) == 1012

    with screen.beside(talk):
        app.run(port=0)
    assert events == [RESTART]
    assert forced_exit.status == 0
    assert "the process ends though hooks have left threads that still run: wsdeco-" in screen.getvalue()


# As programs of their own.

PREAMBLE: Final = """
import asyncio
import logging
import sys
import time

logging.getLogger("wsdeco.access").setLevel("ERROR")

from wsdeco import ws
from wsdeco.connection import limits
from wsdeco.server import foreground, serving

limits.CANCEL_AGAIN = serving.LEFTOVERS = 0.1
# Only where the event loop is blocked has this time to pass.
serving.MARGIN = 30
foreground.NOTICE = 60

@ws.lifespan
async def lifespan(app):
    yield
    print("lifespan over")

@ws.handler("/ws", close_timeout=0.1)
class Echo:
    async def on_message(self, text):
        match text:
            case "wait":
                print("waiting", flush=True)
                await asyncio.Event().wait()
            case "ignore":
                print("ignoring", flush=True)
                while True:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        pass
            case "block":
                print("blocking", flush=True)
                while True:
                    time.sleep(0.01)
            case "thread":
                print("in a thread", flush=True)
                await asyncio.to_thread(time.sleep, 3600)
            case _:
                return f"echo: {text}"

    async def on_disconnect(self, reason):
        print(f"left: {reason}")

class Endless(Echo):
    async def on_disconnect(self, reason):
        print(f"left: {reason}", flush=True)
        await asyncio.Event().wait()

ws.add("/endless", Endless, close_timeout=0.1)

@ws.route("/")
def page():
    print("in the page", flush=True)
    time.sleep(3600)
"""


def program_of(directory: Path, source: str) -> Program:
    """Run `PREAMBLE`, then `source`."""
    script = directory / "program.py"
    script.write_text(PREAMBLE + dedent(source), "utf-8")
    return Program(directory, str(script))


RUN: Final = """
ws.run(port=0, timeout_graceful_shutdown=0.1)
print("after run")
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    started = program_of(tmp_path, RUN)
    yield started
    started.discard()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_program(number: int, program: Program) -> None:
    with client(f"{program.url()}/ws") as connection:
        connection.send("hello")
        assert receive(connection) == "echo: hello"
        program.send_signal(number)
        assert close_code(connection) == 1012
    ended = program.end()
    assert ended.code == 0
    assert ended.output.splitlines()[-3:] == [f"left: {RESTART}", "lifespan over", "after run"]
    assert ended.errors == ""


@pytest.mark.parametrize("path", ["/ws", "/endless"])
def test_a_stuck_hook_does_not_keep_the_program(path: str, program: Program) -> None:
    with client(program.url() + path) as connection:
        connection.send("wait")
        program.expect("waiting")
        program.send_signal(signal.SIGTERM)
        assert close_code(connection) == 1012
    ended = program.end()
    assert ended.code == 0
    assert ended.output.splitlines()[-3:] == [f"left: {RESTART}", "lifespan over", "after run"]
    assert "on_message for 127.0.0.1" in ended.errors
    assert "Traceback" not in ended.errors


def test_a_hook_that_ignores_its_cancellation_does_not_keep_the_program(program: Program) -> None:
    with client(f"{program.url()}/ws") as connection:
        connection.send("ignore")
        program.expect("ignoring")
        program.send_signal(signal.SIGINT)
        assert close_code(connection) == 1012
    ended = program.end()
    assert ended.code == 0
    # The hook has not ended, so nothing may follow it.
    assert ended.output.splitlines()[-2:] == ["lifespan over", "after run"]
    assert "shutdown goes on without 1 connections: their hooks ignore cancellation" in ended.errors
    assert "1 tasks ignore cancellation and are given up" in ended.errors


def test_a_hook_that_blocks_the_event_loop_does_not_keep_the_program(tmp_path: Path) -> None:
    program = program_of(tmp_path, f"serving.MARGIN = 0.1\n{RUN}")
    with client(f"{program.url()}/ws") as connection:
        connection.send("block")
        program.expect("blocking")
        program.send_signal(signal.SIGTERM)
        ended = program.end()
    assert ended.code == 1
    assert "in on_message" in ended.errors
    assert re.search(r"the server has not ended within \S+ s, a hook blocks its event loop", ended.errors) is not None


def test_a_full_pipe_on_stderr_does_not_keep_the_program(tmp_path: Path) -> None:
    source = """
    serving.MARGIN = 0.1

    class Failing:
        async def on_message(self, text):
            sys.stderr.write("x" * 100_000)

    ws.add("/fail", Failing, close_timeout=0.1)
    ws.run(port=0, timeout_graceful_shutdown=0.1)
    """
    program = program_of(tmp_path, source)
    with client(f"{program.url()}/fail") as connection:
        connection.send("fail")
        # Nobody reads stderr: what is logged of it fills the pipe, and the event loop waits for its reader.
        program.send_signal(signal.SIGTERM)
        assert program.process.wait(PATIENCE) == 1
    program.end()


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_a_signal_ends_hooks_that_send_for_ever_to_peers_that_have_gone(loop: str, tmp_path: Path) -> None:
    source = f"""
    class Yielding:
        async def on_message(self, text):
            while True:
                yield "g"

    class Sending:
        async def on_message(self, text):
            while True:
                await self.sink.send("g")

    ws.add("/yielding", Yielding)
    ws.add("/sending", Sending)
    ws.run(port=0, loop={loop!r})
    """
    program = program_of(tmp_path, source)
    port = int(program.url().rpartition(":")[2])
    with ExitStack() as peers:
        opened = [
            peers.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)) for _ in range(4)
        ]
        for path, peer in zip(["/yielding", "/sending"] * 2, opened, strict=True):
            peer.sendall(handshake(path))
            assert b" 101 " in peer.recv(1024)
            peer.sendall(text("go"))
            assert peer.recv(1 << 16)
        for peer in opened[:2]:
            # The end is RST.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        program.send_signal(signal.SIGTERM)
        # The other two read fast, to the end.
        for peer in opened[2:]:
            while peer.recv(1 << 20):
                pass
    ended = program.end()
    assert (ended.code, ended.errors) == (0, "")


CHILD: Final = """
import multiprocessing
import sys
import threading

context = multiprocessing.get_context("fork")

def work(pipe):
    threading.Timer(60, lambda: os._exit(1)).start()
    pipe.recv()

class Forking:
    async def on_message(self, text):
        global mine
        match text:
            case "fork":
                mine, theirs = context.Pipe()
                self.child = context.Process(target=work, args=(theirs,), daemon=True)
                self.child.start()
                theirs.close()
                return "forked"
            case "end":
                mine.send(None)
                self.child.join()
                return str(self.child.exitcode)
            case _:
                getattr(self.child, text)()
                await asyncio.to_thread(self.child.join, 30)
                return str(self.child.exitcode)

import os
ws.add("/fork", Forking)
"""


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_a_child_that_a_hook_forks_can_be_terminated(loop: str, tmp_path: Path) -> None:
    program = program_of(tmp_path, f"{CHILD}ws.run(port=0, loop='{loop}')")
    with client(f"{program.url()}/fork") as connection:
        connection.send("fork")
        assert receive(connection) == "forked"
        connection.send("terminate")
        assert receive(connection) == str(-signal.SIGTERM)
        program.send_signal(signal.SIGTERM)
        assert close_code(connection) == 1012
    ended = program.end()
    assert (ended.code, ended.errors) == (0, "")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a way to keep the child waiting")
def test_a_child_that_a_hook_forks_can_be_terminated_before_it_runs(tmp_path: Path) -> None:
    source = """
    import os
    import signal

    class Forking:
        async def on_message(self, text):
            # The child gets the processor when its parent waits for it.
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            codes = set()
            for _ in range(10):
                child = os.fork()
                if not child:
                    time.sleep(2)
                    os._exit(3)
                os.kill(child, signal.SIGTERM)
                codes.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            return str(codes)

    ws.add("/fork", Forking)
    ws.run(port=0)
    """
    program = program_of(tmp_path, source)
    with client(f"{program.url()}/fork") as connection:
        connection.send("fork")
        assert receive(connection) == str({-signal.SIGTERM})
        program.send_signal(signal.SIGTERM)
        assert close_code(connection) == 1012
    assert program.end().code == 0


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_a_child_that_a_hook_forks_keeps_neither_clients_nor_the_port(loop: str, tmp_path: Path) -> None:
    source = f"""
ws.run(port=0, loop='{loop}')
print("run is over", flush=True)
sys.stdin.readline()
"""
    reading, writing = os.pipe()
    with open(reading) as stdin, open(writing, "w") as go_on:  # noqa: PTH123 - pipes have no path
        (tmp_path / "program.py").write_text(PREAMBLE + CHILD + source, "utf-8")
        program = Program(tmp_path, str(tmp_path / "program.py"), stdin=stdin)
        url = program.url()
        port = int(url.rpartition(":")[2])
        plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        plain.sendall(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert plain.recv(1 << 16).startswith(b"HTTP/1.1 404 ")
        with client(f"{url}/fork") as connection, client(f"{url}/fork") as other:
            connection.send("fork")
            assert receive(connection) == "forked"
            # Both ends of the closing handshake wait for the end of the TCP connection, which the child has as well.
            other.close()
            program.send_signal(signal.SIGTERM)
            assert close_code(connection) == 1012
            with plain:
                while plain.recv(1 << 16):
                    pass
            program.expect("run is over")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        go_on.write("\n")
        go_on.flush()
        # The child is a daemon: it is terminated at the end of the interpreter.
        ended = program.end()
    assert (ended.code, ended.errors) == (0, "")


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with foreground.ending_signals_call(lambda _number, _frame: None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_the_program_at_once(tmp_path: Path) -> None:
    program = program_of(tmp_path, "foreground.NOTICE = 0.1; ws.run(port=0)")
    with client(f"{program.url()}/ws") as connection:
        connection.send("block")
        program.expect("blocking")
        program.send_signal(signal.SIGTERM)
        notice = program.read_error()
        program.send_signal(signal.SIGINT)
        ended = program.end()
    assert ended.code == 1
    assert NOTICE.fullmatch(notice) is not None
    assert ended.errors == "a second signal ends the process at once; not every on_disconnect has run\n"


def test_a_signal_that_comes_twice_is_one_signal(tmp_path: Path) -> None:
    program = program_of(tmp_path, "ws.run(port=0)")
    with client(f"{program.url()}/ws") as connection:
        for _ in range(3):
            program.send_signal(signal.SIGINT)
        assert close_code(connection) == 1012
    ended = program.end()
    assert (ended.code, ended.errors) == (0, "")


def test_threads_of_hooks_and_endpoints_do_not_keep_the_program(program: Program) -> None:
    url = program.url()
    request = threading.Thread(target=get_in_vain, args=(url.replace("ws", "http", 1),))
    request.start()
    program.expect("in the page")
    with client(f"{url}/ws") as connection:
        connection.send("thread")
        program.expect("in a thread")
        program.send_signal(signal.SIGTERM)
        assert close_code(connection) == 1012
    ended = program.end()
    request.join(PATIENCE)
    assert ended.code == 0
    assert f"left: {RESTART}" in ended.output
    assert re.search(r"left threads that still run: (?=.*wsdeco-\d+-worker)(?=.*AnyIO)", ended.errors) is not None


def get_in_vain(url: str) -> None:
    with suppress(OSError), urllib.request.urlopen(url, timeout=PATIENCE):  # noqa: S310 - it is http
        pass


def test_a_backplane_that_cannot_be_used_is_named_in_one_line(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSDECO_BACKPLANE", "kafka://host")
    app, _ = echo_app()
    with pytest.raises(
        SystemExit, match=r"^the environment variable WSDECO_BACKPLANE names no backplane to use: .*kafka"
    ):
        app.run(port=0)
    assert screen.getvalue() == ""


def test_an_interpreter_that_is_typed_into_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    app, _ = echo_app()
    with taken_port() as port, pytest.raises(ServerError, match="is taken"):
        app.run(port=port)


def test_a_program_that_cannot_serve_says_why_in_one_line(tmp_path: Path) -> None:
    with taken_port() as port:
        ended = program_of(tmp_path, f"ws.run(port={port})").end()
    assert ended.code == 1
    assert ended.output == ""
    assert ended.errors == (f"port {port} on 127.0.0.1 is taken: stop what uses it, or write ws.run(port={port + 1})\n")


FAILING: Final = """
from wsdeco import ws

@ws.route("/")
async def fails():
    raise RuntimeError("always")

ws.run(port=0)
"""


def test_a_flood_of_requests_that_are_wrong_or_fail_is_summed_up(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FAILING, "utf-8")
    program = Program(tmp_path, "app.py")
    try:
        port = int(program.expect(r"Serving http://127.0.0.1:(\d+)")[1])
        for request in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            for _ in range(100):
                with socket.create_connection(("127.0.0.1", port)) as peer:
                    peer.sendall(request)
                    assert peer.recv(100)
        said = program.expect_words("more like this in the last second: Invalid")
        program.send_signal(signal.SIGTERM)
        said += program.end().errors.splitlines()
    finally:
        program.discard()
    for line in ("Invalid HTTP request received.", "RuntimeError: always"):
        assert 0 < len([each for each in said if each.endswith(line)]) < 50
