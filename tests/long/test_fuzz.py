"""Hostile bytes against the protocol, in memory: it never fails, always ends, and keeps nothing.

A few thousand streams run always, a hundred thousand with `python -m pytest -m soak`. Each is made from its number, so
that one that fails runs alone with `make_stream(number)`.
"""

import asyncio
import gc
import itertools
import random
import sys
import time
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, cast

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from tests.support.client_frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, client_frame, deflated
from tests.support.in_memory import REQUEST, FakeClock, FakeTransport, make_config, request, settle
from wsdeco import App, ConnectionConfig
from wsdeco.channels.direct import DirectChannel
from wsdeco.clock import Clock
from wsdeco.protocol import WebSocketProtocol
from wsdeco.reasons import CloseCode
from wsdeco.transport.asgi import AsgiCycle
from wsdeco.wire.incoming import Framing

pytestmark = pytest.mark.usefixtures("no_errors_logged")

MIB: Final = 1 << 20
CHUNK: Final = 64 * 1024
"""Bytes of one read from a socket."""
HIGH_WATER: Final = 64 * 1024
"""Bytes in the transport's buffer above which it asks for a pause, as asyncio's does."""
SMALL_LIMIT: Final = 1000
"""Bytes of a message that a fuzzed server takes: few, so that some are over the limit."""
LONGEST_END: Final = 60.0
"""Seconds within which a connection is gone, whose peer has gone, or shut down its side."""
PLAYED_AGAIN: Final = 0.5
"""The part of the streams that is played again, when nothing is imported, cached or compiled any more."""
BLOCKS_PER_STREAM: Final = 0.2
"""Memory blocks that a stream may leave on average: one that left a single object would leave more."""

COMPRESSED: Final = 0x40
OFFER: Final = "sec-websocket-extensions: permessage-deflate; client_max_window_bits"
KEPT_TYPES: Final = (WebSocketProtocol, AsgiCycle, DirectChannel, Framing, FakeTransport)


class Echo:
    async def on_message(self, message: str | bytes) -> str | bytes:
        return message


def direct_app(*, max_message_size: int, compression: bool) -> App:
    app = App()
    app.add("/chat", Echo, config=ConnectionConfig(max_message_size=max_message_size, compression=compression))
    return app


async def conversation_app(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


def echo_config(channel: str, *, max_message_size: int, compression: bool) -> Config:
    """Return the configuration of a server that echoes on "/chat"."""
    app: ASGIApp = conversation_app
    if channel == "direct":
        app = direct_app(max_message_size=max_message_size, compression=compression)
    return make_config(app, ws_max_size=max_message_size, ws_per_message_deflate=compression)


class BufferedTransport(FakeTransport):
    """A transport whose peer reads, or not; what is not read waits, and holds up `close`."""

    def __init__(self, high_water: int = HIGH_WATER) -> None:
        super().__init__()
        self.high_water = high_water
        self.is_read = True
        self.has_paused = False
        self.unread = 0

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        if self.is_read:
            return
        self.unread += len(data)
        self.stuck = True
        if self.unread > self.high_water and not self.has_paused:
            self.has_paused = True
            self.fill()

    def read(self) -> None:
        """Let the peer read, from now on."""
        self.is_read = True
        self.unread = 0
        self.stuck = False
        if self.has_paused:
            self.has_paused = False
            self.empty()
        elif self.closing:
            self.lose()


class Server:
    """What the connections of one server share, and the clock that all of them have."""

    def __init__(self, config: Config) -> None:
        self.state = ServerState()
        self.clock = FakeClock()
        self._config = config

    def connect(self, *, high_water: int = HIGH_WATER) -> tuple[WebSocketProtocol, BufferedTransport]:
        protocol = WebSocketProtocol(self._config, self.state, {}, clock=cast(Clock, self.clock))
        transport = BufferedTransport(high_water)
        transport.protocol = protocol
        protocol.connection_made(transport)
        return protocol, transport

    def assert_at_rest(self) -> None:
        """Fail unless nothing is left of the connections: no task, no timer, no entry in a list."""
        assert not self.state.connections
        assert not self.state.tasks
        assert self.clock.pending == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}


# Streams.


class Event(Enum):
    """What happens to a connection besides bytes."""

    STOP_READING = auto()
    READ_AGAIN = auto()
    WAIT = auto()
    SHUT_DOWN = auto()
    END_OF_STREAM = auto()
    RESET = auto()


ENDS: Final = (Event.SHUT_DOWN, Event.END_OF_STREAM, Event.RESET)
PAYLOADS: Final = (b"", b"a", b"ab", "é€😀".encode(), b"\xe2\x82", b"x" * 125, b"x" * 126, b"x" * 700, b"x" * 1001)
CONTROL_PAYLOADS: Final = (b"", b"a", b"ping", b"\xff", b"x" * 125, b"x" * 126)
CLOSE_PAYLOADS: Final = (b"", b"\x03\xe8", b"\x03\xe8bye", b"\x03", b"\0\0", b"\x03\xed", b"\x0f\xa0\xff", b"\x13\x88")
COMPRESSED_PAYLOADS: Final = (
    deflated(b"hello"),
    deflated(bytes(100_000)),
    b"",
    b"\0",
    b"\xff\xff",
    deflated(b"a")[:-1],
)


@dataclass(frozen=True)
class Stream:
    """What a peer does.

    Attributes:
        steps: Bytes and events, in order.
        end: What ends it.
        high_water: Bytes that wait for the peer before the transport asks for a pause.
    """

    steps: list[bytes | Event]
    end: Event
    high_water: int


def make_stream(number: int) -> Stream:
    """Return the stream of this number."""
    source = random.Random(number)  # noqa: S311 - the same in every run
    data = make_handshake(source) + make_frames(source)
    if source.random() < 0.1:
        data = damaged(source, data, len(data))
    steps: list[bytes | Event] = list(pieces(source, data))
    for _ in range(source.choice((0, 0, 1, 3))):
        event = source.choice((Event.STOP_READING, Event.READ_AGAIN, Event.WAIT, Event.WAIT))
        steps.insert(source.randrange(len(steps) + 1), event)
    return Stream(steps, source.choice(ENDS), source.choice((0, 300, HIGH_WATER)))


def make_handshake(source: random.Random) -> bytes:
    kind = source.random()
    if kind < 0.05:
        return source.randbytes(source.randrange(200)) + source.choice((b"", b"\r\n\r\n"))
    head = source.choice(
        (
            REQUEST,
            request(OFFER),
            request(OFFER, "origin: http://example.com"),
            request("sec-websocket-protocol: a, b"),
            request("x: " + "y" * 300),
        )
    )
    return damaged(source, head, len(head)) if kind < 0.2 else head


def make_frames(source: random.Random) -> bytes:
    """Return frames that are mostly in order, so that the faults among them meet connections in every state."""
    frames: list[bytes] = []
    in_message = False
    for _ in range(source.randrange(12)):
        kind = source.random()
        fin = source.random() < 0.6
        if kind < 0.02:
            frame = source.randbytes(source.randrange(40))
        elif kind < 0.25:
            frame = client_frame(source.choice((PING, PONG)), source.choice(CONTROL_PAYLOADS))
        elif kind < 0.3:
            frame = client_frame(CLOSE, source.choice(CLOSE_PAYLOADS))
        elif in_message == (source.random() < 0.97):
            frame = client_frame(CONT, source.choice(PAYLOADS), fin=fin)
            in_message = not fin
        elif kind < 0.4:
            frame = client_frame(BINARY, source.choice(COMPRESSED_PAYLOADS), reserved=COMPRESSED, fin=fin)
            in_message = not fin
        else:
            frame = client_frame(source.choice((TEXT, BINARY, BINARY)), source.choice(PAYLOADS), fin=fin)
            in_message = not fin
        frames.append(damaged(source, frame, 14) if source.random() < 0.05 else frame)
    return b"".join(frames)


def damaged(source: random.Random, data: bytes, within: int) -> bytes:
    """Return `data` with one fault in its first bytes."""
    position = source.randrange(min(len(data), within)) if data else 0
    match source.randrange(4):
        case 0:
            return data[:position] + source.randbytes(1) + data[position + 1 :]
        case 1:
            return data[:position] + source.randbytes(source.randrange(1, 9)) + data[position:]
        case 2:
            return data[:position]
        case _:
            return data[:position] + data[position + source.randrange(1, 9) :]


def pieces(source: random.Random, data: bytes) -> Iterator[bytes]:
    """Split `data` as a network may: at once, byte by byte, or anywhere."""
    number = source.choice((0, 1, 3, 10, 40))
    cuts = [0, *sorted(source.randrange(len(data) + 1) for _ in range(number)), len(data)]
    return (data[start:stop] for start, stop in itertools.pairwise(cuts))


async def play(server: Server, stream: Stream) -> None:
    """Let a peer do what the stream says, and fail unless the connection ends by itself."""
    protocol, transport = server.connect(high_water=stream.high_water)
    for step in stream.steps:
        if isinstance(step, bytes):
            if not transport.closing:
                transport.feed(step)
        else:
            await happen(server, protocol, transport, step)
        await settle(2)
    await happen(server, protocol, transport, stream.end)
    await settle()
    server.clock.advance(LONGEST_END)
    await settle()
    assert transport.lost
    assert transport.written_in_vain == 0
    assert_well_formed(transport)


async def happen(server: Server, protocol: WebSocketProtocol, transport: BufferedTransport, event: Event) -> None:
    match event:
        case Event.STOP_READING:
            transport.is_read = False
        case Event.READ_AGAIN:
            transport.read()
        case Event.WAIT:
            server.clock.advance(1.0)
        case Event.SHUT_DOWN if not transport.lost:
            protocol.shutdown()
            # A peer that does not answer has a deadline for that, and one whose bytes wait may be read first.
            await settle()
            transport.feed_eof()
        case Event.END_OF_STREAM:
            transport.feed_eof()
        case Event.RESET:
            transport.lose(ConnectionResetError())
        case _:
            pass


def assert_well_formed(transport: FakeTransport) -> None:
    """Fail unless the answer is one HTTP response, or frames of which a close frame is the last."""
    head, _, rest = transport.sent.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        assert head == b"" or head.startswith(b"HTTP/1.1 ")
        return
    while rest:
        opcode, length, size = rest[0] & 0x0F, rest[1], 2
        if length > 125:
            size = 4 if length == 126 else 10
            length = int.from_bytes(rest[2:size])
        assert opcode in {TEXT, BINARY, CLOSE, PING, PONG}
        assert len(rest) >= size + length
        rest = rest[size + length :]
        assert opcode != CLOSE or rest == b""


def kept_objects() -> dict[str, int]:
    """Return how many objects there are of each type that belongs to a connection."""
    gc.collect()
    objects = gc.get_objects()
    return {kind.__name__: sum(isinstance(each, kind) for each in objects) for kind in KEPT_TYPES}


async def run_streams(channel: str, number: int, *, compression: bool) -> None:
    server = Server(echo_config(channel, max_message_size=SMALL_LIMIT, compression=compression))
    before = kept_objects()
    for each in range(number):
        await play(server, make_stream(each))
    gc.collect()
    blocks = sys.getallocatedblocks()
    again = int(PLAYED_AGAIN * number)
    for each in range(again):
        await play(server, make_stream(each))
    server.assert_at_rest()
    assert kept_objects() == before
    assert sys.getallocatedblocks() - blocks < BLOCKS_PER_STREAM * again


KINDS: Final = pytest.mark.parametrize(
    ("channel", "compression"), [("direct", False), ("direct", True), ("conversation", False), ("conversation", True)]
)


@KINDS
async def test_random_streams(channel: str, *, compression: bool) -> None:
    await run_streams(channel, 2_000, compression=compression)


@KINDS
@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_very_many_random_streams(channel: str, *, compression: bool) -> None:
    await run_streams(channel, 100_000, compression=compression)


# Floods.


class Peer:
    """The client's end of one connection."""

    def __init__(self, transport: BufferedTransport) -> None:
        self.transport = transport

    async def send(self, data: bytes) -> None:
        """Send, as far as the server reads; wait until it has."""
        self.transport.feed(data)
        while self.transport.waiting:
            await settle(1)

    async def repeat(self, frame: bytes, number: int) -> None:
        """Send a small frame very often."""
        frames = CHUNK // len(frame)
        chunk = frame * frames
        for _ in range(number // frames):
            await self.send(chunk)
        await self.send(frame * (number % frames))
        await settle()


@asynccontextmanager
async def connected(channel: str, *, max_message_size: int, compression: bool = False) -> AsyncGenerator[Peer]:
    """Open a connection to a server that echoes."""
    config = echo_config(channel, max_message_size=max_message_size, compression=compression)
    server = Server(config)
    _, transport = server.connect()
    transport.feed(request(OFFER))
    await settle()
    assert transport.take().startswith(b"HTTP/1.1 101 ")
    yield Peer(transport)
    transport.lose()
    await settle()
    server.assert_at_rest()


class Memory:
    """What has been allocated since it was made."""

    def __init__(self) -> None:
        gc.collect()
        tracemalloc.reset_peak()
        self._before = tracemalloc.get_traced_memory()[0]

    @property
    def peak(self) -> int:
        return tracemalloc.get_traced_memory()[1] - self._before


@contextmanager
def traced() -> Generator[Memory]:
    """Measure what is allocated."""
    tracemalloc.start(1)
    try:
        yield Memory()
    finally:
        tracemalloc.stop()


def measured(peak: int, longest: float = 0.0) -> None:
    """Say what was measured: bytes, and seconds of the longest call."""
    print(f"\n{peak / MIB:.3f} MiB, {longest * 1000:.1f} ms")  # noqa: T201 - for `pytest -s`


async def flood_with_pings(number: int) -> None:
    """R3: the pongs of a peer that does not read them take no memory, and the newest answers it when it does."""
    async with connected("conversation", max_message_size=MIB) as peer:
        peer.transport.is_read = False
        with traced() as memory:
            await peer.repeat(client_frame(PING, b"flood"), number - 1)
            await peer.send(client_frame(PING, b"last"))
            peak = memory.peak
        measured(peak)
        assert peak < MIB
        peer.transport.take()
        peer.transport.read()
        assert peer.transport.take() == bytes((0x80 | PONG, 4)) + b"last"


async def test_pongs_that_nobody_reads() -> None:
    await flood_with_pings(50_000)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_very_many_pongs_that_nobody_reads() -> None:
    await flood_with_pings(1_200_000)


@asynccontextmanager
async def unfinished_message(number: int, payload: bytes, *, max_message_size: int) -> AsyncGenerator[None]:
    """R4: send all fragments of a message but the last, and then that one: it arrives whole."""
    async with connected("conversation", max_message_size=max_message_size) as peer:
        await peer.send(client_frame(BINARY, payload, fin=False))
        await peer.repeat(client_frame(CONT, payload, fin=False), number - 1)
        yield
        await peer.send(client_frame(CONT, b"!"))
        await settle()
        assert peer.transport.take().endswith(payload * number + b"!")


@pytest.mark.parametrize(("number", "payload"), [(100_000, b"ab"), (200_000, b"")])
async def test_fragments(number: int, payload: bytes) -> None:
    # Counting blocks takes no time, where tracing takes ten times that of the fragments.
    blocks = sys.getallocatedblocks()
    async with unfinished_message(number, payload, max_message_size=256 * 1024):
        assert sys.getallocatedblocks() - blocks < number // 10


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("number", "payload"), [(3_000_000, b"ab"), (6_000_000, b"")])
async def test_very_many_fragments(number: int, payload: bytes) -> None:
    max_message_size = 6 * MIB
    with traced() as memory:
        async with unfinished_message(number, payload, max_message_size=max_message_size):
            peak = memory.peak
    measured(peak)
    assert peak < max_message_size + MIB


def make_bomb(size: int) -> bytes:
    """Return a compressed message that inflates to `size` zeros."""
    compressor = zlib.compressobj(wbits=-15)
    parts = [compressor.compress(bytes(MIB)) for _ in range(size // MIB)]
    return client_frame(BINARY, b"".join(parts) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4], reserved=COMPRESSED)


async def explode(channel: str, bomb: bytes) -> None:
    """Feed a bomb; the close frame is all that answers it."""
    async with connected(channel, max_message_size=MIB, compression=True) as peer:
        for start in range(0, len(bomb), CHUNK):
            await peer.send(bomb[start : start + CHUNK])
        await settle()
        answer = peer.transport.take()
        assert answer[0] == 0x80 | CLOSE
        assert int.from_bytes(answer[2:4]) == CloseCode.TOO_BIG


async def explode_within_bounds(channel: str, bomb: bytes) -> None:
    """R5: a bomb is refused at the limit, in its memory and in little time."""
    await explode(channel, bomb)
    with traced() as memory:
        await explode(channel, bomb)
        peak = memory.peak
    longest = await longest_call(lambda: explode(channel, bomb))
    measured(peak, longest)
    assert peak < 2 * MIB + 4 * MIB
    assert longest < 0.05


async def longest_call(scenario: Callable[[], Any]) -> float:
    """Return the seconds of processor time that one read from the socket takes at most."""
    longest = 0.0
    data_received = WebSocketProtocol.data_received

    def timed(protocol: WebSocketProtocol, data: bytes) -> None:
        nonlocal longest
        before = time.thread_time()
        data_received(protocol, data)
        longest = max(longest, time.thread_time() - before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WebSocketProtocol, "data_received", timed)
        await scenario()
    return longest


@pytest.mark.parametrize("channel", ["direct", "conversation"])
async def test_bomb(channel: str) -> None:
    await explode_within_bounds(channel, make_bomb(64 * MIB))


@pytest.mark.parametrize("channel", ["direct", "conversation"])
@pytest.mark.soak
async def test_large_bomb(channel: str) -> None:
    await explode_within_bounds(channel, make_bomb(1024 * MIB))
