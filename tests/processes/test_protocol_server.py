"""The protocol under a real uvicorn, on real sockets: both loops, both HTTP parsers, TLS, Unix sockets."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import trustme
import uvicorn
from fastapi import Depends, FastAPI, Header, WebSocketException
from fastapi import WebSocket as FastAPIWebSocket
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect, unix_connect
from websockets.typing import Subprotocol

from tests.support import client_frames as wire
from tests.support.client_frames import client_frame
from tests.support.in_memory import REQUEST
from wsdeco.transport.protocol import WebSocketProtocol
from wsdeco.wire.outgoing import encode_close, encode_message

WAIT = 30.0


class Server:
    """A uvicorn in a thread of its own."""

    def __init__(self, app: Any, **options: Any) -> None:
        options = {"port": 0, "log_config": None, "ws": WebSocketProtocol, "ws_ping_interval": None} | options
        self.uvicorn = uvicorn.Server(uvicorn.Config(app, **options))
        self.thread = threading.Thread(target=self.uvicorn.run)
        self.thread.start()
        wait_until(lambda: self.uvicorn.started or not self.thread.is_alive())
        assert self.uvicorn.started
        self.address = self.uvicorn.servers[0].sockets[0].getsockname()

    @property
    def port(self) -> int:
        return int(self.address[1])

    @property
    def connections(self) -> int:
        return len(self.uvicorn.server_state.connections)

    @property
    def accepted(self) -> int:
        return sum(getattr(c, "handshake_pending", True) is False for c in list(self.uvicorn.server_state.connections))

    def url(self, path: str = "/") -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    def raw(self, head: bytes = REQUEST) -> socket.socket:
        """Return a socket with `head` sent."""
        peer = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        peer.sendall(head)
        return peer

    def open(self) -> socket.socket:
        """Return a socket with the handshake done."""
        peer = self.raw()
        receive_until(peer, b"\r\n\r\n")
        return peer

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join(WAIT)
        assert not self.thread.is_alive()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def receive_until(peer: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = peer.recv(65536)
        assert more, data
        data += more
    return data


def receive_all(peer: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := peer.recv(65536):
            data += more
    return data


@contextlib.contextmanager
def serving(app: Any, **options: Any) -> Generator[Server]:
    server = Server(app, **options)
    try:
        yield server
    finally:
        server.stop()


class Log:
    """What the echo endpoint saw."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, str]] = []


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    log: Log = websocket.app.state.log
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            log.ends.append((message["code"], message["reason"]))
            return
        if (content := message.get("text")) is not None:
            await websocket.send_text(content)
        else:
            await websocket.send_bytes(message["bytes"])


async def scope_of(websocket: WebSocket) -> None:
    await websocket.accept()
    client = websocket.client
    await websocket.send_json([websocket.url.path, client.host if client else None, websocket.scope["scheme"]])
    await websocket.close(4000, "done")


async def choose(websocket: WebSocket) -> None:
    await websocket.accept(subprotocol=websocket.scope["subprotocols"][-1], headers=[(b"x-a", b"1"), (b"x-a", b"2")])
    await websocket.close()


async def deny(websocket: WebSocket) -> None:
    raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Basic"})


async def fail(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.receive()
    raise ValueError("secret")


async def flood(websocket: WebSocket) -> None:
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await websocket.send_bytes(bytes(100_000))
    websocket.app.state.log.ends.append((0, "flooded"))


async def page(request: HTTPConnection) -> PlainTextResponse:
    return PlainTextResponse("page")


def make_app() -> Starlette:
    app = Starlette(
        routes=[
            WebSocketRoute("/", echo),
            WebSocketRoute("/chat", echo),
            WebSocketRoute("/scope", scope_of),
            WebSocketRoute("/choose", choose),
            WebSocketRoute("/deny", deny),
            WebSocketRoute("/fail", fail),
            WebSocketRoute("/flood", flood),
            Route("/page", page),
        ]
    )
    app.state.log = Log()
    return app


@pytest.fixture(
    scope="module",
    params=[("asyncio", "h11"), ("asyncio", "httptools"), ("uvloop", "h11"), ("uvloop", "httptools")],
    ids="-".join,
)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    loop, http = request.param
    with serving(make_app(), loop=loop, http=http) as running:
        yield running


@pytest.fixture
def log(server: Server) -> Log:
    log = cast(Starlette, server.uvicorn.config.app).state.log
    assert isinstance(log, Log)
    log.ends.clear()
    return log


@pytest.fixture
def client(server: Server) -> Iterator[ClientConnection]:
    with connect(server.url(), max_size=None, compression=None) as connection:
        yield connection


@pytest.fixture
def _nothing_left(server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    wait_until(lambda: server.connections == 0)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR and record.name == "asyncio"] == []


@pytest.mark.usefixtures("_nothing_left")
class TestEcho:
    def test_messages_of_many_sizes(self, client: ClientConnection) -> None:
        for size in (0, 1, 125, 126, 65535, 65536, 1_000_000):
            client.send("é" * size)
            assert client.recv() == "é" * size
            client.send(b"\xff" * size)
            assert client.recv() == b"\xff" * size

    def test_fragments_and_pings(self, client: ClientConnection) -> None:
        client.send(["one, ", "two, ", "three"])
        assert client.recv() == "one, two, three"
        assert client.ping().wait(WAIT)

    def test_messages_in_flight(self, client: ClientConnection) -> None:
        for number in range(2000):
            client.send(str(number))
        assert [client.recv() for _ in range(2000)] == [str(number) for number in range(2000)]

    def test_a_message_over_the_limit(self, server: Server, log: Log) -> None:
        with connect(server.url(), compression=None) as client:
            client.send(bytes(16 * 1024 * 1024 + 1))
            with pytest.raises(ConnectionClosed) as caught:
                client.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
        wait_until(lambda: log.ends != [])
        assert log.ends[0][0] == 1009

    def test_compression(self, server: Server) -> None:
        with connect(server.url()) as client:
            assert client.response is not None
            assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
            for size in (0, 1, 1000, 300_000):
                client.send("ab" * size)
                assert client.recv() == "ab" * size

    def test_split_at_every_byte(self, server: Server) -> None:
        with server.raw(b"") as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in REQUEST:
                peer.send(bytes([byte]))
            assert receive_until(peer, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
            for byte in wire.text("a"):
                peer.send(bytes([byte]))
            assert receive_until(peer, encode_message("a")) == encode_message("a")

    def test_http_is_served_beside(self, server: Server) -> None:
        with server.raw(b"GET /page HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") as peer:
            assert receive_all(peer).endswith(b"\r\n\r\npage")


@pytest.mark.usefixtures("_nothing_left")
class TestStarlette:
    def test_scope_and_close(self, server: Server) -> None:
        with connect(server.url("/scope?a=b")) as client:
            assert client.recv() == '["/scope","127.0.0.1","ws"]'
            with pytest.raises(ConnectionClosed) as caught:
                client.recv()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4000, "done")

    def test_subprotocol_and_duplicate_headers(self, server: Server) -> None:
        with connect(server.url("/choose"), subprotocols=[Subprotocol("a"), Subprotocol("b")]) as client:
            assert client.subprotocol == "b"
            assert client.response is not None
            assert client.response.headers.get_all("x-a") == ["1", "2"]
            assert client.response.headers.get_all("server") == ["uvicorn"]

    def test_denial(self, server: Server) -> None:
        with pytest.raises(InvalidStatus) as caught, connect(server.url("/deny")):
            pass
        response = caught.value.response
        assert (response.status_code, response.body) == (401, b"who are you?")
        assert response.headers["WWW-Authenticate"] == "Basic"

    def test_no_route(self, server: Server) -> None:
        with pytest.raises(InvalidStatus) as caught, connect(server.url("/nowhere")):
            pass
        assert caught.value.response.status_code == 403

    def test_exception(self, server: Server) -> None:
        with connect(server.url("/fail")) as client:
            client.send("go")
            with pytest.raises(ConnectionClosed) as caught:
                client.recv()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1011, "")

    @pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
    def test_close_codes(self, server: Server, log: Log, code: int) -> None:
        with connect(server.url()) as client:
            client.close(code, "größe")
        wait_until(lambda: log.ends != [])
        assert log.ends == [(code, "größe")]


@pytest.mark.usefixtures("_nothing_left")
class TestFaults:
    def test_bad_version(self, server: Server) -> None:
        with server.raw(REQUEST.replace(b"version: 13", b"version: 8")) as peer:
            response = receive_all(peer)
        assert response.startswith(b"HTTP/1.1 426 ")
        assert b"\r\nsec-websocket-version: 13\r\n" in response

    def test_a_request_behind_a_failed_upgrade_is_not_served(self, server: Server) -> None:
        smuggled = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"
        with server.raw(REQUEST.replace(b"ZQ==", b"") + smuggled) as peer:
            peer.sendall(smuggled)
            response = receive_all(peer)
        assert response.startswith(b"HTTP/1.1 400 ")
        assert response.count(b"HTTP/1.1") == 1

    def test_good_messages_before_a_bad_frame_are_answered(self, server: Server, log: Log) -> None:
        with server.open() as peer:
            peer.sendall(wire.text("1") + wire.text("2") + wire.text("3") + client_frame(3) + wire.text("4"))
            answer = receive_all(peer)
        assert answer == b"".join(map(encode_message, "123")) + encode_close(1002, "reserved opcode")
        wait_until(lambda: log.ends != [])
        assert log.ends == [(1002, "reserved opcode")]

    def test_reset(self, server: Server, log: Log) -> None:
        peer = server.open()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        wait_until(lambda: log.ends != [])
        assert log.ends == [(1006, "")]

    def test_end_of_the_stream_in_the_middle_of_a_frame(self, server: Server, log: Log) -> None:
        with server.open() as peer:
            peer.sendall(wire.text("whole") + wire.text("cut")[:-1])
            peer.shutdown(socket.SHUT_WR)
            assert receive_all(peer) == encode_message("whole")
        assert log.ends == [(1006, "")]

    def test_a_peer_that_never_reads(self, server: Server, log: Log) -> None:
        peer = server.raw(REQUEST.replace(b"/chat", b"/flood"))
        wait_until(
            lambda: any(getattr(c, "write_paused", False) for c in list(server.uvicorn.server_state.connections))
        )
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        wait_until(lambda: log.ends != [])
        assert log.ends == [(0, "flooded")]

    def test_garbage(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        source = random.Random(7)  # noqa: S311 - the same in every run

        def throw(seed: int) -> None:
            garbage = random.Random(seed).randbytes(200)  # noqa: S311 - the same in every run
            head = REQUEST if seed % 3 else REQUEST[: seed % len(REQUEST)]
            with server.raw(head) as peer, contextlib.suppress(OSError):
                if seed % 3:
                    receive_until(peer, b"\r\n\r\n")
                peer.sendall(garbage)
                if seed % 2:
                    peer.shutdown(socket.SHUT_WR)
                    receive_all(peer)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(throw, [source.randrange(10**9) for _ in range(200)]))
        wait_until(lambda: server.connections == 0)
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []

    def test_many_at_once(self, server: Server, log: Log) -> None:
        def visit(number: int) -> bool:
            with connect(server.url(), compression=None) as client:
                client.send(str(number))
                return client.recv() == str(number)

        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(visit, range(100)))
        wait_until(lambda: len(log.ends) == 100)
        assert log.ends == [(1000, "")] * 100


class TestServers:
    """Servers with options of their own."""

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def test_shutdown_tells_everybody(self, loop: str) -> None:
        app = make_app()
        with serving(app, loop=loop) as server:

            def code(_: int) -> int:
                with connect(server.url(), compression=None) as client, pytest.raises(ConnectionClosed) as caught:
                    client.recv()
                assert caught.value.rcvd is not None
                return int(caught.value.rcvd.code)

            with ThreadPoolExecutor(20) as readers:
                codes = readers.map(code, range(20))
                wait_until(lambda: server.accepted == 20)
                server.stop()
            assert list(codes) == [1012] * 20
        assert app.state.log.ends == [(1012, "")] * 20

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def test_unread_data_arrives_whole_at_shutdown(self, loop: str) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "bytes": bytes(2_000_000)})
            await receive()

        with serving(app, loop=loop, lifespan="off") as server, server.raw() as peer:
            wait_until(lambda: server.accepted == 1)
            server.uvicorn.should_exit = True
            wait_until(lambda: all(getattr(c, "closed", False) for c in list(server.uvicorn.server_state.connections)))
            peer.sendall(wire.text("I am still speaking"))
            _, _, frames = receive_until(peer, encode_close(1012)).partition(b"\r\n\r\n")
            peer.sendall(wire.close(1012))
            assert len(frames) == 10 + 2_000_000 + 4
            assert receive_all(peer) == b""

    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def test_tls(self, loop: str, tmp_path: Path) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
        certificate.private_key_pem.write_to_path(key)
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(chain, append=True)
        trust = ssl.create_default_context()
        trust.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
        app = make_app()
        with serving(app, loop=loop, ssl_keyfile=str(key), ssl_certfile=str(chain)) as server:
            url = f"wss://localhost:{server.port}"
            with connect(f"{url}/scope", ssl=trust) as client:
                assert client.recv() == '["/scope","127.0.0.1","wss"]'
            with connect(f"{url}/", ssl=trust, max_size=None) as client:
                client.send("x" * 1_000_000)
                assert client.recv() == "x" * 1_000_000
                client.socket.close()
            wait_until(lambda: len(app.state.log.ends) == 1)
            with trust.wrap_socket(server.raw(b""), server_hostname="localhost") as peer:
                peer.sendall(REQUEST)
                receive_until(peer, b"\r\n\r\n")
                peer.sendall(wire.text("good") + client_frame(3))
                assert receive_all(peer) == encode_message("good") + encode_close(1002, "reserved opcode")

    def test_unix_socket(self, tmp_path: Path) -> None:
        path = str(tmp_path / "socket")
        with serving(make_app(), uds=path), unix_connect(path, "ws://localhost/scope") as client:
            assert client.recv() == '["/scope",null,"ws"]'

    def test_proxy_headers(self) -> None:
        headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
        for trusted, seen in (
            ("127.0.0.1", '["/scope","203.0.113.7","wss"]'),
            ("10.0.0.1", '["/scope","127.0.0.1","ws"]'),
        ):
            with (
                serving(make_app(), forwarded_allow_ips=trusted) as server,
                connect(server.url("/scope"), additional_headers=headers) as client,
            ):
                assert client.recv() == seen

    def test_by_dotted_name(self) -> None:
        with serving(make_app(), ws="wsdeco.protocol:WebSocketProtocol") as server, connect(server.url()) as client:
            client.send("a")
            assert client.recv() == "a"

    def test_fastapi(self) -> None:
        app = FastAPI()

        async def user(x_user: str = Header()) -> str:
            if x_user != "anna":
                raise WebSocketException(4401, "who are you?")
            return x_user

        @app.websocket("/items/{number}")
        async def items(websocket: FastAPIWebSocket, number: int, name: str = Depends(user)) -> None:
            await websocket.accept()
            try:
                async for item in websocket.iter_json():
                    await websocket.send_json([number, name, item])
            finally:
                ends.append(number)

        ends: list[int] = []
        with serving(app) as server:
            with connect(server.url("/items/7"), additional_headers={"X-User": "anna"}) as client:
                client.send('{"a": 1}')
                assert client.recv() == '[7,"anna",{"a":1}]'
            with pytest.raises(InvalidStatus), connect(server.url("/items/7"), additional_headers={"X-User": "nobody"}):
                pass
            wait_until(lambda: ends == [7])

    def test_keepalive(self) -> None:
        with (
            serving(make_app(), ws_ping_interval=0.05, ws_ping_timeout=1.0) as server,
            connect(server.url()) as client,
            server.open() as silent,
        ):
            assert silent.recv(6)[0] == 0x89
            assert receive_all(silent).endswith(encode_close(1011, "keepalive ping timeout"))
            client.send("alive")
            assert client.recv() == "alive"

    def test_a_stalled_loop_kills_nobody(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                time.sleep(1.6 if message["text"] == "stall" else 0)  # noqa: ASYNC251 - blocking the loop is the point
                await send({"type": "websocket.send", "text": message["text"]})

        with (
            serving(app, lifespan="off", ws_ping_interval=0.1, ws_ping_timeout=0.5) as server,
            connect(server.url()) as client,
            connect(server.url()) as other,
        ):
            client.send("stall")
            assert client.recv() == "stall"
            other.send("still here")
            assert other.recv() == "still here"
