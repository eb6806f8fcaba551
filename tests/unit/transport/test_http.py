"""uvicorn's HTTP class with bounds: time and size of a head, what follows an upgrade, and HTTP as before."""

import asyncio
import importlib.util
import logging
import socket
import struct
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from types import ModuleType
from typing import Any, Final, cast
from unittest.mock import Mock

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tests.support.in_memory import FakeClock
from tests.support.raw import Frame, Opcode, RawPeer, dial, handshake, text
from tests.support.stacks import Server, soon, until, uvicorn_serve
from wsdeco import http
from wsdeco.http import BoundedH11Protocol, HttpProtocol
from wsdeco.testing import ManualClock
from wsdeco.transport.deadlines import Bounded, Deadlines
from wsdeco.wire.handshake import MAX_HEAD_LINES, MAX_HEAD_SIZE

TIMEOUT: Final = 10.0
LINGER: Final = 2.0
WEBSOCKET: Final = "wsdeco.protocol:WebSocketProtocol"
BIG: Final = bytes(20 << 20)
"""More than any system buffers of a connection."""
SECRET: Final = b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n"


class World:
    """An ASGI app that echoes, on a server with a clock that the test advances.

    Attributes:
        protocol: The class under test.
        received: Bytes that the server has read as HTTP.
        served: Method and path of each request that reached the app, and "disconnect" where it was told of one.
        gate: What a request for /wait waits for, before its response, and one for /part in the middle of it.
        stopping: Whether a connection has been told that the server stops.
    """

    def __init__(self, tested: type[asyncio.Protocol]) -> None:
        self.clock = clock = ManualClock()
        self.received = 0
        self.served: list[str] = []
        self.gate = asyncio.Event()
        self.stopping = False
        self.protocols: list[Any] = []
        world = self

        class Protocol(tested):  # type: ignore[misc, valid-type] # a base class that is a parameter
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                world.protocols.append(self)
                super().connection_made(transport)

            def data_received(self, data: bytes) -> None:
                world.received += len(data)
                super().data_received(data)

            def shutdown(self) -> None:
                cast(Any, super()).shutdown()
                world.stopping = True

        setattr(Protocol, "clock", clock)  # noqa: B010 - the base class is not known to have it
        self.protocol: type[asyncio.Protocol] = Protocol

    def queued(self) -> list[int]:
        """Return how many parsed requests wait for their turn on each connection."""
        return [len(getattr(protocol, "pipeline", ())) for protocol in self.protocols]

    @asynccontextmanager
    async def serve(self, **options: Any) -> AsyncGenerator[Server]:
        async with uvicorn_serve(WEBSOCKET, http=self.protocol, interface="asgi3", **options)(self.app) as server:
            yield server

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "lifespan":
                while (await receive())["type"] != "lifespan.shutdown":
                    await send({"type": "lifespan.startup.complete"})
                await send({"type": "lifespan.shutdown.complete"})
            case "websocket":
                await self.websocket(scope, receive, send)
            case _:
                await self.http(scope, receive, send)

    async def websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        self.served.append(f"WEBSOCKET {scope['path']}")
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    async def http(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.served.append(f"{scope['method']} {scope['path']}")
        start: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x-n", b"%d" % len(self.served))]}
        if scope["path"] == "/early":
            await send(start)
            await send({"type": "http.response.body", "body": b"/early"})
            return
        if scope["path"] in ("/big", "/endless", "/rows"):
            await send(start)
            await self.send_much(scope["path"], receive, send)
            return
        if scope["path"] == "/wait":
            await self.gate.wait()
        if scope["path"] == "/ask":
            await receive()
            asking = asyncio.ensure_future(receive())
            await self.gate.wait()
            asking.cancel()
        if scope["path"] == "/part":
            await send(start)
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            await self.gate.wait()
        body = b""
        more = scope["path"] != "/ask"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.served.append("disconnect")
                return
            body += message["body"]
            more = message["more_body"]
        if scope["path"] != "/part":
            await send(start)
        await send({"type": "http.response.body", "body": body or scope["path"].encode()})

    async def send_much(self, path: str, receive: Receive, send: Send) -> None:
        await receive()
        leaving = asyncio.ensure_future(receive())
        piece = b"row\n" if path == "/rows" else BIG
        while path != "/big" and not leaving.done():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        leaving.cancel()
        await send({"type": "http.response.body", "body": piece})
        self.served.append(f"sent {path}")


@pytest.fixture(params=[HttpProtocol, BoundedH11Protocol], ids=["httptools", "h11"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.fixture
def httptools_world() -> World:
    return World(HttpProtocol)


@pytest.fixture(autouse=True)
def no_errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a peer does wrong is one line at most, below ERROR, and without a traceback."""
    caplog.set_level(logging.INFO)
    yield
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR or each.exc_info] == []


def is_reset(peer: RawPeer) -> bool:
    """Look whether the server takes no more bytes."""
    peer.writer.write(b"x")
    return peer.writer.is_closing()


async def answer(peer: RawPeer) -> bytes:
    """Read to the end of the connection."""
    return await soon(peer.reader.read())


async def answer_or_reset(peer: RawPeer) -> bytes:
    """Read to the end of a connection that resets, if what the peer sends finds it closed."""
    read = b""
    with suppress(ConnectionResetError):
        while part := await soon(peer.reader.read(4096)):
            read += part
    return read


async def response(peer: RawPeer) -> bytes:
    """Read a response without a length, which has one chunk; return its body."""
    await peer.status()
    size = int(await soon(peer.reader.readline()), 16)
    body = await soon(peer.reader.readexactly(size + 2))
    rest = await soon(peer.reader.readexactly(5))
    assert rest == b"0\r\n\r\n"
    return body[:-2]


def request(path: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode() + body


def head_of(size: int) -> bytes:
    """Return a request whose head, without the empty line at its end, is of this size."""
    return request("/", "X: " + "x" * (size - len(request("/", "X: ")) + 2))


# HTTP as before.


async def test_plain_requests_are_served(world: World) -> None:
    async with world.serve() as server, server.http() as client:
        assert (await client.get("/a")).text == "/a"
        assert (await client.post("/b", content=b"x" * 300_000)).content == b"x" * 300_000

        async def chunks() -> AsyncGenerator[bytes]:
            for _ in range(5):
                yield b"y" * 1000

        assert (await client.post("/c", content=chunks())).content == b"y" * 5000
        assert (await client.head("/d")).status_code == 200
    assert world.served == ["GET /a", "POST /b", "POST /c", "HEAD /d"]


async def test_requests_follow_each_other_on_one_connection(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        for path in ("/a", "/b", "/c"):
            await peer.write(request(path))
            assert await response(peer) == path.encode()
            await world.clock.advance(TIMEOUT)


async def test_pipelined_requests_are_served_in_order(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        posted = request("/b", "Content-Length: 4", method="POST", body=b"body")
        await peer.write(request("/a") + posted + request("/c"))
        assert [await response(peer) for _ in range(3)] == [b"/a", b"body", b"/c"]


@pytest.mark.parametrize("path", ["/wait", "/ask"])
async def test_requests_that_are_sent_for_ever_wait_as_bytes(world: World, path: str) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(request(path))
        await until(lambda: world.served == [f"GET {path}"])
        peer.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100_000)
        await until(lambda: world.received > 1 << 16)
        async with server.http() as client:
            assert (await client.get("/other")).text == "/other"
        # With TLS some may have been read when reading is paused.
        world.protocols[0].data_received(request("/late"))
        # An app that asks for the end of its request does not make the server read on.
        assert world.received < 1 << 20
        assert max(world.queued()) <= 64
        assert world.served == [f"GET {path}", "GET /other"]
        world.gate.set()


async def test_thousands_of_pipelined_requests_are_all_served_in_order(world: World) -> None:
    count = 3000
    async with world.serve() as server, dial(server) as peer:
        await peer.write(request("/wait"))
        await until(lambda: world.served == ["GET /wait"])
        writing = asyncio.create_task(peer.write(b"".join(request(f"/{number}") for number in range(count))))
        await until(lambda: world.received > 1 << 16)
        # The app has yet to ask for a body, which lets an ordinary server read on.
        world.gate.set()
        assert await response(peer) == b"/wait"
        for number in range(count):
            assert await response(peer) == b"/%d" % number
        await writing


async def test_a_client_that_pipelines_may_leave(world: World) -> None:
    async with world.serve() as server:
        for end in ("close", "reset"):
            async with dial(server) as peer:
                world.gate.clear()
                served = len(world.served)
                await peer.write(request("/wait") + b"".join(request(f"/{number}") for number in range(1000)))
                await until(lambda served=served: len(world.served) > served)  # type: ignore[misc]
                getattr(peer.writer if end == "close" else peer, end)()
                world.gate.set()
        async with server.http() as client:
            assert (await client.get("/other")).text == "/other"


async def test_a_body_may_be_large_and_come_with_the_next_head(world: World) -> None:
    size = 300_000
    async with world.serve() as server, dial(server) as peer:
        posted = request("/a", f"Content-Length: {size}", method="POST", body=b"x" * size)
        await peer.write(posted + request("/b")[:20])
        await until(lambda: world.received == len(posted) + 20)
        assert len(await response(peer)) == size
        await peer.write(request("/b")[20:])
        assert await response(peer) == b"/b"


async def test_the_server_stops_while_heads_are_awaited(world: World) -> None:
    async with world.serve() as server, dial(server) as silent, dial(server) as slow, dial(server) as refused:
        await slow.write(b"GET /")
        await refused.write(b"garbage\r\n\r\n")
        assert await refused.status() == 400
        # Since Python 3.12 the end of a server waits for those who may still read, as long as the clock lets them.
        refused.writer.close()
        await until(lambda: world.received == 5 + 11)
        await soon(server.stop())
        assert await answer(slow) == b""
        assert await answer(silent) == b""


# Time.


async def test_a_silent_connection_ends_at_the_deadline(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        await until(lambda: world.clock.pending == 1)
        await world.clock.advance(TIMEOUT - 0.1)
        assert not peer.reader.at_eof()
        await world.clock.advance(0.1)
        assert await answer(peer) == b""


async def test_a_dribbling_connection_ends_at_the_same_deadline(world: World) -> None:
    head = request("/")
    async with world.serve() as server, dial(server) as peer:
        await until(lambda: world.clock.pending == 1)
        for sent in range(1, 10):
            await peer.write(head[sent - 1 : sent])
            await until(lambda sent=sent: world.received == sent)  # type: ignore[misc] # the default has no type
            await world.clock.advance(1)
        assert not peer.reader.at_eof()
        await world.clock.advance(1)
        assert (await answer(peer)).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert world.served == []


async def test_good_clients_are_served_among_silent_ones(world: World) -> None:
    async with world.serve() as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
        async with server.http() as client, server.connect("/ws") as socket_peer:
            assert (await client.get("/a")).text == "/a"
            await world.clock.advance(TIMEOUT - 1)
            assert world.clock.pending == 1
            await socket_peer.send("still here")
            assert await socket_peer.receive() == "still here"
            await world.clock.advance(1)
            for reader, _ in silent:
                assert await soon(reader.read()) == b""
            await socket_peer.send("and now")
            assert await socket_peer.receive() == "and now"
            assert (await client.get("/b")).text == "/b"
        for _, writer in silent:
            writer.close()
            await soon(writer.wait_closed())


def test_a_connection_that_cannot_be_ended_keeps_no_other_alive() -> None:
    clock, first, second, later = FakeClock(), Mock(), Mock(), Mock()

    def expire(connection: Bounded) -> None:
        connection.expire()

    first.expire.side_effect = RuntimeError("fails")
    deadlines = Deadlines(clock, 10, expire)
    for connection in (first, second):
        deadlines.add(connection)
    with pytest.raises(RuntimeError, match="fails"):
        clock.advance(10)
    deadlines.add(later)
    clock.advance(20)
    assert [connection.expire.call_count for connection in (first, second, later)] == [1, 1, 1]


async def test_deadlines_run_in_the_order_of_the_connections(world: World) -> None:
    async with world.serve() as server, dial(server) as first:
        await until(lambda: world.clock.pending == 1)
        await world.clock.advance(4)
        async with dial(server) as second:
            await second.write(b"G")
            await until(lambda: world.received == 1)
            await world.clock.advance(TIMEOUT - 4)
            assert await answer(first) == b""
            assert not second.reader.at_eof()
            await world.clock.advance(4)
            assert b" 408 " in await answer(second)
        await world.clock.advance(TIMEOUT)
        assert world.clock.pending == 0


@pytest.mark.parametrize(
    ("tested", "first"),
    [(HttpProtocol, b"G"), (HttpProtocol, b"\r\n"), (BoundedH11Protocol, b"G")],
    ids=["httptools", "httptools, an empty line", "h11"],
)
async def test_the_deadline_of_a_further_head_starts_with_its_first_byte(
    tested: type[asyncio.Protocol], first: bytes
) -> None:
    world = World(tested)
    async with world.serve() as server, dial(server) as peer:
        await peer.write(request("/a"))
        assert await response(peer) == b"/a"
        await world.clock.advance(TIMEOUT)
        before = world.received
        await peer.write(first)
        await until(lambda: world.received == before + len(first))
        await world.clock.advance(TIMEOUT - 1)
        assert not peer.reader.at_eof()
        await world.clock.advance(1)
        assert b" 408 " in await answer(peer)


async def test_a_further_head_may_wait_behind_a_response(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        sent = request("/wait") + request("/b")[:10]
        await peer.write(request("/wait"))
        await until(lambda: len(world.served) == 1)
        await peer.write(request("/b")[:10])
        await until(lambda: world.received == len(sent))
        await world.clock.advance(TIMEOUT * 3)
        world.gate.set()
        assert await response(peer) == b"/wait"
        await peer.write(request("/b")[10:])
        assert await response(peer) == b"/b"


async def test_an_upgraded_connection_has_no_deadline_of_ours(world: World) -> None:
    async with world.serve(ws_ping_interval=None) as server, server.connect("/ws") as peer:
        await world.clock.advance(TIMEOUT * 10)
        await peer.send("x")
        assert await peer.receive() == "x"


# Time for a body.


def posted(path: str, size: int) -> bytes:
    return request(path, f"Content-Length: {size}", method="POST")


@pytest.mark.parametrize("path", ["/a", "/part"])
async def test_a_dribbled_body_ends_its_request(world: World, path: str) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(posted(path, 1000))
        await until(lambda: world.served == [f"POST {path}"])
        for _ in range(9):
            before = world.received
            await peer.write(b"x")
            await until(lambda before=before: world.received == before + 1)  # type: ignore[misc]
            await world.clock.advance(1)
        assert world.served == [f"POST {path}"]
        await world.clock.advance(1)
        read = await answer(peer)
        assert read.startswith(b"HTTP/1.1 408 ") if path == "/a" else read.startswith(b"HTTP/1.1 200 ")
        world.gate.set()
        await until(lambda: world.served == [f"POST {path}", "disconnect"])


async def test_an_upload_over_a_slow_line_is_taken(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(posted("/a", 24_000))
        await until(lambda: world.served == ["POST /a"])
        for _ in range(4):
            before = world.received
            await peer.write(b"x" * 6000)
            await until(lambda before=before: world.received == before + 6000)  # type: ignore[misc]
            await world.clock.advance(TIMEOUT)
        assert await response(peer) == b"x" * 24_000


async def test_a_body_that_the_app_does_not_ask_for_is_not_late(world: World) -> None:
    size = 1 << 20
    async with world.serve() as server, dial(server) as peer, dial(server) as polite:
        peer.writer.write(posted("/wait", size) + b"x" * size)
        await polite.write(request("/wait", "Expect: 100-continue", "Content-Length: 4", method="POST"))
        await until(lambda: len(world.served) == 2 and world.received > 1 << 16)
        for _ in range(3):
            await world.clock.advance(TIMEOUT)
        world.gate.set()
        assert len(await response(peer)) == size
        assert await polite.status() == 100
        await polite.write(b"body")
        assert await response(polite) == b"body"


async def test_dribbled_bodies_do_not_hold_up_the_end_of_the_server(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(posted("/a", 1000))
        await until(lambda: world.served == ["POST /a"])
        before = world.received
        await peer.write(b"x")
        await until(lambda: world.received == before + 1)
        stopping = asyncio.create_task(server.stop())
        await until(lambda: world.stopping)
        await world.clock.advance(LINGER)
        assert (await answer(peer)).startswith(b"HTTP/1.1 408 ")
        peer.writer.close()
        await soon(stopping)
    assert world.served == ["POST /a", "disconnect"]


async def test_the_body_of_a_refused_upload_may_not_be_dribbled_either(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(posted("/early", 1000))
        assert await response(peer) == b"/early"
        await world.clock.advance(TIMEOUT)
        await peer.at_end()


# A response without an end.


async def test_a_response_without_an_end_takes_turns_and_ends_with_its_peer(world: World) -> None:
    async with world.serve() as server:
        async with dial(server) as peer, dial(server) as other:
            await peer.write(request("/rows"))
            assert await peer.status() == 200
            reading = asyncio.create_task(peer.at_end())
            await other.write(request("/a"))
            assert await response(other) == b"/a"
        await soon(reading)
        await until(lambda: world.served[-1] == "sent /rows")


# A peer that does not read.


async def asks_for_much(world: World, peer: RawPeer, path: str = "/big") -> asyncio.Transport:
    """Ask for what does not fit the buffers of the system, and read nothing of it; return the server's transport."""
    await peer.write(request(path))
    transport: asyncio.Transport = world.protocols[-1].transport
    await until(lambda: transport.get_write_buffer_size() > 1 << 16)
    return transport


async def test_a_response_that_nobody_reads_ends_at_the_deadline(world: World) -> None:
    async with world.serve() as server, dial(server, receive_buffer=4096) as peer:
        transport = await asks_for_much(world, peer)
        await world.clock.advance(59)
        assert not transport.is_closing()
        # In the first minute the systems may have taken some of it.
        await world.clock.advance(1)
        await world.clock.advance(60)
        assert transport.is_closing()


@pytest.mark.parametrize("path", ["/big", "/endless"])
async def test_a_response_that_nobody_reads_does_not_hold_up_the_end_of_the_server(world: World, path: str) -> None:
    async with world.serve() as server, dial(server, receive_buffer=4096) as peer:
        transport = await asks_for_much(world, peer, path)
        stopping = asyncio.create_task(server.stop())
        await until(lambda: world.stopping)
        while world.protocols[-1] in world.protocols[-1].connections:
            # Of what the system takes meanwhile, nobody knows that it is not read.
            await world.clock.advance(LINGER)
        assert transport.is_closing()
        await soon(stopping)


async def test_an_upgrade_behind_a_response_that_is_not_read_ends_the_connection(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        await asks_for_much(world, peer)
        before = world.received
        await peer.write(handshake("/ws") + text("hello"))
        await until(lambda: world.received > before)
        assert await response(peer) == BIG
        await peer.at_end()
    assert world.served == ["GET /big", "sent /big"]


async def test_with_the_http_class_of_uvicorn_it_waits_for_its_peer() -> None:
    world = World(HttpToolsProtocol)
    async with world.serve() as server, dial(server) as peer:
        transport = await asks_for_much(world, peer)
        await peer.write(handshake("/ws"))
        await until(lambda: world.served == ["GET /big", "sent /big", "WEBSOCKET /ws"])
        protocol: Any = transport.get_protocol()
        assert protocol.write_paused
        assert await response(peer) == BIG
        assert await peer.status() == 101
        await peer.write(text("hello"))
        assert await peer.frame() == Frame(Opcode.TEXT, b"hello")
        assert not protocol.write_paused


# Size.


@pytest.mark.parametrize("step", [1 << 20, 1000], ids=["at once", "in pieces"])
async def test_a_head_has_64_kib_at_most(world: World, step: int) -> None:
    for size, status in ((MAX_HEAD_SIZE, 200), (MAX_HEAD_SIZE + 1, 431)):
        async with world.serve() as server, dial(server) as peer:
            head = head_of(size)
            for start in range(0, len(head), step):
                await peer.write(head[start : start + step])
            assert await peer.status() == status


async def test_a_head_has_128_lines_at_most(world: World) -> None:
    for lines, status in ((MAX_HEAD_LINES, 200), (MAX_HEAD_LINES + 1, 431)):
        async with world.serve() as server, dial(server) as peer:
            await peer.write(request("/", *["X: y"] * (lines - 2)))
            assert await peer.status() == status


async def test_a_handshake_has_the_same_bounds(world: World) -> None:
    async with world.serve() as server:
        for extra in (b"X: y\r\n" * MAX_HEAD_LINES, b"X: " + b"y" * MAX_HEAD_SIZE + b"\r\n"):
            async with dial(server) as peer:
                await peer.write(handshake("/ws")[:-2] + extra + b"\r\n")
                assert (await answer(peer)).startswith(b"HTTP/1.1 431 ")
    assert world.served == []


@pytest.mark.parametrize(
    ("start", "filler"),
    [
        (b"GET /", b"x" * 1000),
        (b"GET / HTTP/1.1\r\n", b"x" * 1000),
        (b"GET / HTTP/1.1\r\nX: ", b"x" * 1000),
        (b"GET / HTTP/1.1\r\nX:", b" " * 1000),
        (b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 200),
        (b"", b"\r\n" * 500),
    ],
    ids=["target", "name", "value", "space", "lines", "empty lines"],
)
async def test_a_head_without_an_end_is_refused(world: World, start: bytes, filler: bytes) -> None:
    async with world.serve() as server, dial(server) as peer:
        peer.writer.write(start)
        for _ in range(1000):
            peer.writer.write(filler)
        assert await peer.status() in {400, 431}
        # It stops reading once the peer has had its time.
        assert world.received <= len(start) + 1000 * len(filler)
    assert world.served == []


@pytest.mark.parametrize("filler", [b"x" * 1000, b"X: y\r\n" * 200], ids=["value", "lines"])
async def test_trailers_are_bounded_too(world: World, filler: bytes) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(request("/a", "Transfer-Encoding: chunked", method="POST", body=b"1\r\nx\r\n"))
        await until(lambda: world.served == ["POST /a"])
        await peer.write(b"0\r\nX: ")
        for _ in range(200):
            peer.writer.write(filler)
        await until(lambda: world.served == ["POST /a", "disconnect"])
        # With unread bytes in the socket the response may be lost.
        await peer.at_end()


async def test_trailers_that_come_with_the_end_of_the_body_count_as_lines_too(httptools_world: World) -> None:
    async with httptools_world.serve() as server, dial(server) as peer:
        for lines, status in ((MAX_HEAD_LINES - 3, 200), (MAX_HEAD_LINES - 2, 431)):
            trailers = b"1\r\nx\r\n0\r\n" + b"X: y\r\n" * lines + b"\r\n"
            await peer.write(request("/a", "Transfer-Encoding: chunked", method="POST", body=trailers))
            if status == 200:
                assert await response(peer) == b"x"
            else:
                assert await peer.status() == status


async def test_a_refused_peer_has_two_seconds_to_close(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(b"garbage\r\n\r\n")
        assert (await answer(peer)).startswith(b"HTTP/1.1 400 ")
        await peer.write(SECRET)
        await until(lambda: world.received == 11 + len(SECRET))
        await world.clock.advance(LINGER)
        await until(lambda: is_reset(peer))
    assert world.served == []


# The upgrade.


async def test_a_frame_in_the_segment_of_the_handshake_is_delivered(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(handshake("/ws") + text("one") + text("two"))
        assert await peer.status() == 101
        assert await peer.frame() == Frame(Opcode.TEXT, b"one")
        assert await peer.frame() == Frame(Opcode.TEXT, b"two")


async def test_head_and_frame_may_be_split_at_every_byte(world: World) -> None:
    sent = handshake("/ws") + text("one")
    head = len(handshake("/ws"))
    async with world.serve() as server:
        for end in range(1, len(sent)):
            async with dial(server) as peer:
                before = world.received
                await peer.write(sent[:end])
                # Bytes behind the head of an earlier segment are no bytes of HTTP.
                await until(lambda before=before, end=end: world.received == before + end)  # type: ignore[misc]
                await peer.write(sent[end:])
                assert await peer.status() == 101, end
                assert await peer.frame() == Frame(Opcode.TEXT, b"one"), end
                world.received = before + max(end, head)


async def test_head_and_frame_may_come_byte_by_byte(world: World) -> None:
    sent = handshake("/ws") + text("one")
    async with world.serve() as server, dial(server) as peer:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(sent)):
            await peer.write(sent[index : index + 1])
            await asyncio.sleep(0)
        assert await peer.status() == 101
        assert await peer.frame() == Frame(Opcode.TEXT, b"one")


async def test_the_replay_keeps_every_header_in_order(world: World) -> None:
    seen: list[tuple[bytes, bytes]] = []
    inner = world.websocket

    async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await inner(scope, receive, send)

    world.websocket = websocket  # type: ignore[method-assign]
    extra = [(b"X", b"1"), (b"Y", b""), (b"X", b"2, 3"), (b"x", b"caf\xc3\xa9 \xff"), (b"Cookie", b"a=b; c=d")]
    lines = b"".join(b"%s: %s\r\n" % pair for pair in extra)
    async with world.serve() as server, dial(server) as peer:
        await peer.write(handshake("/ws")[:-2] + lines + b"\r\n")
        assert await peer.status() == 101
    assert seen[-len(extra) :] == [(name.lower(), value) for name, value in extra]


async def test_an_upgrade_may_follow_a_request(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(request("/a"))
        assert await response(peer) == b"/a"
        await peer.write(handshake("/ws") + text("one"))
        assert await peer.status() == 101
        assert await peer.frame() == Frame(Opcode.TEXT, b"one")
        # No deadline of the requests is left.
        await world.clock.advance(TIMEOUT)
        await peer.write(text("two"))
        assert await peer.frame() == Frame(Opcode.TEXT, b"two")


def changed(old: bytes, new: bytes) -> bytes:
    head = handshake("/ws")
    assert old in head
    return head.replace(old, new)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (changed(b"Version: 13", b"Version: 8"), 426),
        (changed(b"GET", b"POST"), 405),
        (changed(b"HTTP/1.1", b"HTTP/1.0"), 505),
        (changed(b"dGhl", b"!!!!"), 400),
        (changed(b"\r\n\r\n", b"\r\nContent-Length: 34\r\n\r\n"), 400),
        (changed(b"websocket", b"h2c"), 200),
        (changed(b"websocket", b"websocket, h2c"), 200),
    ],
    ids=["version", "method", "HTTP version", "key", "body", "protocol", "protocols"],
)
async def test_a_failed_upgrade_ends_the_connection(world: World, head: bytes, status: int) -> None:
    for separate in (False, True):
        async with world.serve() as server, dial(server) as peer:
            if separate:
                await peer.write(head)
                await until(lambda: world.received > 0)
                peer.writer.write(SECRET)
            else:
                await peer.write(head + SECRET)
            read = await answer_or_reset(peer)
            assert read.startswith(b"HTTP/1.1 %d " % status)
            assert read.count(b"HTTP/1.1 ") == 1
        world.received = 0
    assert "GET /secret" not in world.served
    assert all(each == "GET /ws" for each in world.served)


@pytest.mark.parametrize("size", [0, 4, 300_000])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_post_of_java_that_offers_http2_is_an_ordinary_request(world: World, size: int, chunked: bool) -> None:
    sent = b"x" * size
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")
    body = (b"%x\r\n%s\r\n" % (size, sent) if size else b"") + b"0\r\n\r\n" if chunked else sent
    head = request("/a", *offer, framing, method="POST")
    for separate in (False, True):
        async with world.serve() as server, dial(server) as peer:
            if separate:
                await peer.write(head)
                await until(lambda: world.served == ["POST /a"])
                await peer.write(body[:7])
                await peer.write(body[7:] + SECRET)
            else:
                await peer.write(head + body + SECRET)
            assert await response(peer) == sent or b"/a"
            await peer.at_end()
        assert world.served == ["POST /a"]
        world.served.clear()


async def test_a_body_behind_an_offer_has_a_deadline_as_well(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        head = request("/a", "Connection: upgrade", "Upgrade: h2c", "Content-Length: 4", method="POST")
        await peer.write(head + b"bo")
        await until(lambda: world.served == ["POST /a"])
        await world.clock.advance(TIMEOUT)
        assert (await answer(peer)).startswith(b"HTTP/1.1 408 ")
        await until(lambda: world.served == ["POST /a", "disconnect"])


async def test_a_body_behind_an_offer_whose_end_nobody_finds_is_refused(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        head = request("/a", "Connection: upgrade", "Upgrade: h2c", "Transfer-Encoding: gzip", method="POST")
        await peer.write(head + SECRET)
        read = await answer(peer)
        assert read[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 501"}
    assert "GET /secret" not in world.served


@pytest.mark.parametrize(
    "head",
    [
        handshake("/ws"),
        handshake("/ws?a=b"),
        handshake("http://127.0.0.1/ws"),
        handshake("*"),
        changed(b"Upgrade: websocket", b"upgrade: WebSocket"),
        changed(b"Upgrade: websocket\r\n", b"Upgrade: websocket\r\nUpgrade: h2c\r\n"),
        changed(b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\nupgrade: websocket\r\n"),
        changed(b"Host: 127.0.0.1", b"Host: 127.0.0.1\r\nX: caf\xe9\tau lait"),
        changed(b"Host: 127.0.0.1", b"X-Host: 127.0.0.1"),
        changed(b"Host: 127.0.0.1\r\n", b"Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n"),
        changed(b"Version: 13", b"Version: 13\r\nSec-WebSocket-Version: 13"),
        changed(b"Connection: Upgrade", b"Connection: keep-alive\r\nConnection: upgrade"),
        changed(b"Connection: Upgrade", b"Connection: upgrade\r\nConnection: keep-alive"),
        changed(b"Connection: Upgrade", b"Connection: \xa0Upgrade"),
        changed(b"Connection: Upgrade", b"Connection: close"),
        *(
            changed(b"Host: 127.0.0.1", b"Host: 127.0.0.1\r\nX: " + b"x" * (MAX_HEAD_SIZE - size))
            for size in range(len(handshake("/ws")), len(handshake("/ws")) + 8)
        ),
    ],
)
async def test_a_handshake_in_one_piece_is_answered_like_one_in_two(world: World, head: bytes) -> None:
    answers: list[tuple[int | None, Frame | None]] = []
    async with world.serve() as server:
        for pieces in ([head + text("one")], [head[:1], head[1:] + text("one")]):
            async with dial(server) as peer:
                for piece in pieces:
                    await peer.write(piece)
                    await until(lambda: world.received > 0)
                status = await peer.status()
                answers.append((status, await peer.frame() if status == 101 else None))
            world.received = 0
    assert answers[0] == answers[1]
    assert answers[0][0] != 101 or answers[0][1] == Frame(Opcode.TEXT, b"one")


async def test_an_upgrade_waits_for_no_response_but_follows_none_either(httptools_world: World) -> None:
    world = httptools_world
    async with world.serve() as server, dial(server) as peer:
        sent = request("/wait") + handshake("/ws") + text("one")
        await peer.write(sent)
        await until(lambda: world.served == ["GET /wait"])
        await peer.write(SECRET)
        await until(lambda: world.received == len(sent) + len(SECRET))
        world.gate.set()
        assert (await answer(peer)).endswith(b"/wait\r\n0\r\n\r\n")
    assert world.served == ["GET /wait"]


# What breaks HTTP.


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"\x00" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n X: folded into a lie\r\nA\x00: b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["TLS", "zeros", "half a line", "no name", "NUL", "target"],
)
async def test_garbage_is_refused(world: World, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(garbage + handshake("/ws"))
        assert (await answer(peer)).startswith(b"HTTP/1.1 400 ")
    assert world.served == []
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == [
        "Invalid HTTP request received."
    ]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /a HTTP/1.1\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /a HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /a HTTP/1.0\r\n\r\n", 200),
    ],
)
async def test_a_request_says_once_which_host_it_means(world: World, head: bytes, status: int) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(head)
        assert await peer.status() == status
    assert world.served == (["GET /a"] if status == 200 else [])


async def test_garbage_behind_a_request_does_not_touch_its_response(world: World) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(request("/wait"))
        await until(lambda: world.served == ["GET /wait"])
        before = world.received
        await peer.write(b"garbage\r\n\r\n")
        await until(lambda: world.received == before + 11)
        await world.clock.advance(TIMEOUT * 2)
        world.gate.set()
        await peer.status()
        assert await soon(peer.reader.readexactly(15)) == b"5\r\n/wait\r\n0\r\n\r\n"
        await peer.at_end()


@pytest.mark.parametrize("path", ["/wait", "/part"])
async def test_a_broken_body_ends_its_request(world: World, path: str) -> None:
    async with world.serve() as server, dial(server) as peer:
        await peer.write(request(path, "Transfer-Encoding: chunked", method="POST"))
        await until(lambda: world.served == [f"POST {path}"])
        if path == "/part":
            await peer.status()
            assert await soon(peer.reader.readexactly(9)) == b"4\r\npart\r\n"
        await peer.write(b"no chunk\r\n\r\n")
        read = await answer(peer)
        assert read.startswith(b"HTTP/1.1 400 ") if path == "/wait" else read == b""
        world.gate.set()
        await until(lambda: world.served == [f"POST {path}", "disconnect"])


# What a loopback connection does not do by itself.


class StalledClock:
    """A clock whose timers fire when the test says, however late."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> "StalledClock":
        self.timers.append((when, callback))
        return self

    def cancel(self) -> None:
        """No timer is cancelled."""

    def fire(self, at: float) -> None:
        self.now = at
        timers, self.timers = self.timers, []
        for _, callback in timers:
            callback()


class StandInTransport(asyncio.Transport):
    """Remembers what is done to it."""

    def __init__(self, *, half_closes: bool = True, reset: bool = False) -> None:
        super().__init__()
        self.half_closes = half_closes
        self.reset = reset
        self.done: list[str] = []

    def can_write_eof(self) -> bool:
        return self.half_closes

    def write_eof(self) -> None:
        self.done.append("write_eof")
        if self.reset:
            raise OSError("not connected")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.done.append(bytes(data).split(b" ")[1].decode())

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.done or "abort" in self.done


def connected(
    transport: StandInTransport, clock: StalledClock, *, handshake: float = 0, world: World | None = None
) -> asyncio.Protocol:
    """Return a protocol that gets a transport `handshake` seconds after it has been accepted."""

    class Protocol(HttpProtocol):  # type: ignore[misc, valid-type] # a base class that is a variable
        pass

    setattr(Protocol, "clock", clock)  # noqa: B010 - the base class is not known to have it
    make: Any = Protocol
    protocol: asyncio.Protocol = make(
        config=uvicorn.Config((world or World(HttpProtocol)).app, ws="none", interface="asgi3", log_config=None),
        server_state=ServerState(),
        app_state={},
    )
    clock.now += handshake
    protocol.connection_made(transport)
    return protocol


async def test_a_stalled_loop_reads_before_it_judges() -> None:
    clock, transport = StalledClock(), StandInTransport()
    protocol = connected(transport, clock)
    clock.fire(at=TIMEOUT + 3)
    assert transport.done == []
    protocol.data_received(request("/"))
    clock.fire(at=TIMEOUT + 3.1)
    assert transport.done == []
    assert clock.timers == []
    protocol.connection_lost(None)


async def test_a_stalled_loop_judges_once_it_has_read() -> None:
    clock, transport = StalledClock(), StandInTransport()
    connected(transport, clock)
    clock.fire(at=TIMEOUT + 3)
    clock.fire(at=TIMEOUT + 3.1)
    assert transport.done == ["abort"]


async def test_the_deadline_starts_when_the_connection_is_accepted() -> None:
    clock, transport = StalledClock(), StandInTransport(half_closes=False)
    connected(transport, clock, handshake=7.9)
    assert [round(due - TIMEOUT, 3) for due, _ in clock.timers] == [0.0]
    clock.fire(at=clock.timers[0][0])
    assert transport.done == ["abort"]


@pytest.mark.parametrize(
    ("transport", "done"),
    [
        (StandInTransport(), ["400", "write_eof"]),
        (StandInTransport(half_closes=False), ["400", "close"]),
        (StandInTransport(reset=True), ["400", "write_eof", "abort"]),
    ],
    ids=["TCP", "TLS", "reset"],
)
async def test_a_refusal_ends_the_connection(transport: StandInTransport, done: list[str]) -> None:
    clock = StalledClock()
    protocol = connected(transport, clock)
    protocol.data_received(b"garbage\r\n\r\n")
    assert transport.done == done
    clock.fire(at=LINGER)
    assert transport.done == [*done, "abort"]


async def test_a_slow_peer_on_tls_is_not_asked_to_close() -> None:
    clock, transport = StalledClock(), StandInTransport(half_closes=False)
    protocol = connected(transport, clock)
    protocol.data_received(b"GET /")
    clock.fire(at=TIMEOUT)
    assert transport.done == ["abort"]


class UnreadTransport(StandInTransport):
    """Has a peer that reads as much as the test says.

    Attributes:
        unread: Bytes that the system has not taken.
        protocol: The one that has it.
    """

    unread = 0
    protocol: asyncio.BaseProtocol | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.done.append("write")

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def get_write_buffer_size(self) -> int:
        return self.unread


async def test_a_response_that_is_read_slowly_is_left_to_its_peer() -> None:
    clock, transport = StalledClock(), UnreadTransport()
    protocol: Any = connected(transport, clock)
    transport.protocol = protocol
    transport.unread = 60_000
    protocol.data_received(request("/a"))
    await until(lambda: len(transport.done) > 1)
    transport.unread = 30_000
    clock.fire(at=TIMEOUT)
    clock.fire(at=60)
    assert "abort" not in transport.done
    transport.unread = 1000
    clock.fire(at=120)
    assert transport.done[-1] == "abort"
    protocol.connection_lost(None)


async def test_a_response_that_has_been_read_has_no_deadline() -> None:
    world = World(HttpProtocol)
    clock, transport = StalledClock(), UnreadTransport()
    protocol: Any = connected(transport, clock, world=world)
    transport.protocol = protocol
    transport.unread = 60_000
    protocol.data_received(request("/a"))
    await until(lambda: len(transport.done) > 1)
    transport.unread = 0
    clock.fire(at=TIMEOUT)
    clock.fire(at=60)
    # In the middle of the next one nothing waits for the peer, but what has just been written.
    protocol.data_received(request("/part"))
    protocol.pause_writing()
    protocol.resume_writing()
    transport.unread = 100
    clock.fire(at=120)
    clock.fire(at=120.1)
    assert "abort" not in transport.done
    protocol.connection_lost(None)
    world.gate.set()
    await until(lambda: world.served[-1] == "disconnect")


@pytest.mark.parametrize("half_closes", [True, False], ids=["TCP", "TLS"])
@pytest.mark.parametrize("sent", [b"", request("/a")], ids=["silent", "idle"])
async def test_a_server_that_stops_waits_a_moment_for_peers_on_tls_to_close(sent: bytes, half_closes: bool) -> None:
    clock, transport = StalledClock(), UnreadTransport(half_closes=half_closes)
    protocol: Any = connected(transport, clock)
    transport.protocol = protocol
    if sent:
        protocol.data_received(sent)
        await until(lambda: len(transport.done) > 1)
    transport.done.clear()
    protocol.shutdown()
    assert transport.done == ["close"]
    clock.fire(at=LINGER)
    assert transport.done == (["close"] if half_closes else ["close", "abort"])
    protocol.connection_lost(None)


async def test_a_peer_that_resets_leaves_nothing_behind(world: World) -> None:
    async with world.serve() as server:
        for sent in (b"", b"GET /", b"garbage\r\n\r\n", handshake("/ws")):
            async with dial(server) as peer:
                await peer.write(sent)
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.writer.transport.abort()
        async with server.http() as client:
            assert (await client.get("/a")).text == "/a"


def test_without_httptools_it_is_h11(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)
    assert http.__file__ is not None
    spec = importlib.util.spec_from_file_location("http_without_httptools", http.__file__)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.HttpProtocol is module.BoundedH11Protocol
    assert issubclass(HttpProtocol, HttpToolsProtocol)
