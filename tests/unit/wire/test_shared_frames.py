"""One frame for many connections, compressed or not, and what each connection makes of it."""

import asyncio
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect as websockets_connect
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from tests.support.stacks import DIRECT, until
from wsdeco import Address, App, Compression, Sink
from wsdeco.transport.shared import MOST_AT_ONCE, Shared
from wsdeco.wire.deflate import Deflate
from wsdeco.wire.incoming import Framing
from wsdeco.wire.outgoing import Encoded, encode_message

LONG: Final = "the same words again and again, " * 20


@pytest.mark.parametrize("data", ["", "x", "grüß", LONG, "x" * 70_000, b"", b"\x00\xff", b"y" * 125, b"y" * 126])
def test_an_encoded_message_is_what_a_connection_without_compression_sends(data: str | bytes) -> None:
    message = Encoded(data)
    assert message.frame == (encode_message(data))
    assert message.size == len(data.encode() if isinstance(data, str) else data)
    assert Framing(1000).encode_shared(message) is message.frame


def test_connections_with_one_window_share_one_compressed_frame() -> None:
    message = Encoded(LONG)
    frames = [
        Framing(1000, deflate=Deflate(server_window_bits=bits)).encode_shared(message) for bits in (9, 12, 9, 12, 15)
    ]
    assert frames[0] is frames[2]
    assert frames[1] is frames[3]
    assert len(message.compressed) == 3
    assert all(len(frame) < len(message.frame) // 4 for frame in frames)


def test_what_does_not_get_smaller_is_sent_as_it_is() -> None:
    message = Encoded("x")
    assert Framing(1000, deflate=Deflate()).encode_shared(message) is message.frame


def test_each_level_and_threshold_has_a_frame_of_its_own() -> None:
    message = Encoded(LONG)
    settings = Compression(level=1), Compression(level=9), Compression(threshold=len(LONG)), Compression(level=9)
    frames = [Framing(1000, deflate=Deflate(settings=each)).encode_shared(message) for each in settings]
    assert len(frames[0]) >= len(frames[1])
    assert frames[1] is frames[3]
    short = Framing(1000, deflate=Deflate(settings=Compression(threshold=len(LONG) + 1)))
    assert short.encode_shared(message) is message.frame


@pytest.mark.parametrize("context", [True, False], ids=["context", "no context"])
@pytest.mark.parametrize("level", [1, 6, 9])
@given(st.lists(st.text("ab", max_size=40) | st.binary(max_size=40), max_size=9))
def test_a_client_reads_what_is_compressed_at_any_level_and_what_is_too_short(
    level: int, context: bool, messages: list[str | bytes]
) -> None:
    deflate = Deflate(server_context=context, settings=Compression(level, threshold=20))
    frames = [deflate.encode_message(message) for message in messages]
    assert [bool(frame[0] & 0x40) for frame in frames] == [len(message) >= 20 for message in messages]
    assert received(frames, PerMessageDeflate(not context, False, 12, 12)) == messages


async def test_a_route_chooses_level_and_threshold() -> None:
    app = App()

    for level in (1, 9):

        @app.handler(f"/{level}", compression=Compression(level=level, threshold=100))
        class Echo:
            async def on_message(self, text: str) -> str:
                return text

    sizes: list[int] = []
    text = "".join(f"{number * number} words " for number in range(400))
    async with DIRECT.serve(app) as server:
        for level in (1, 9):
            async with websockets_connect(f"ws://127.0.0.1:{server.port}/{level}", proxy=None) as client:
                await client.send("short")
                assert await client.recv() == "short"
                await client.send(text)
                assert await client.recv() == text
            sizes.append(len(Deflate(settings=Compression(level)).encode_message(text)))
    assert sizes[1] < sizes[0] < len(text) // 2


def received(frames: list[bytes], inflate: PerMessageDeflate) -> list[str | bytes]:
    """Return what a client of the `websockets` library reads from frames."""
    client = Protocol(Side.CLIENT, state=State.OPEN, max_size=None)
    extensions: list[Extension] = [inflate]
    client.extensions = extensions
    client.receive_data(b"".join(frames))
    assert client.parser_exc is None
    found: list[str | bytes] = []
    for event in client.events_received():
        assert isinstance(event, Frame)
        found.append(bytes(event.data).decode() if event.opcode is Opcode.TEXT else bytes(event.data))
    return found


MESSAGES: Final = st.one_of(
    st.text(max_size=30), st.binary(max_size=30), st.sampled_from([LONG, LONG.encode(), "a" * 500])
)


@given(
    messages=st.lists(st.tuples(st.booleans(), MESSAGES), max_size=12),
    parameters=st.lists(st.tuples(st.booleans(), st.integers(9, 15)), min_size=1, max_size=3),
)
def test_every_peer_inflates_any_mix_of_own_and_shared_messages(
    messages: list[tuple[bool, str | bytes]], parameters: list[tuple[bool, int]]
) -> None:
    framings = [
        Framing(1000, deflate=Deflate(server_context=context, server_window_bits=bits)) for context, bits in parameters
    ]
    sent: list[list[bytes]] = [[] for _ in framings]
    for is_shared, data in messages:
        message = Encoded(data)
        for framing, frames in zip(framings, sent, strict=True):
            frames.append(framing.encode_shared(message) if is_shared else framing.encode(data))
    for (context, bits), frames in zip(parameters, sent, strict=True):
        peer = PerMessageDeflate(
            remote_no_context_takeover=not context,
            local_no_context_takeover=False,
            remote_max_window_bits=bits,
            local_max_window_bits=15,
        )
        assert received(frames, peer) == [data for _, data in messages]


def test_without_the_restart_a_peer_would_read_something_else() -> None:
    framing = Framing(1000, deflate=Deflate())
    first, second = framing.encode(LONG), framing.encode(LONG)
    of_another = Framing(1000, deflate=Deflate()).encode_shared(Encoded("z" * 5000))
    peer = PerMessageDeflate(
        remote_no_context_takeover=False,
        local_no_context_takeover=False,
        remote_max_window_bits=12,
        local_max_window_bits=15,
    )
    assert received([first, of_another, second], peer) != [LONG, "z" * 5000, LONG]


@pytest.mark.parametrize("no_takeover", [True, False])
@pytest.mark.parametrize("bits", [None, 9, 15])
async def test_clients_that_compress_get_broadcasts_between_their_own_messages(
    no_takeover: bool, bits: int | None
) -> None:
    app = App()
    room = app.room("lobby")

    @app.handler("/ws", compression=True)
    class Member:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            room.join(sink)

        async def on_message(self, text: str) -> str:
            await room.broadcast(f"all: {text}")
            return f"you: {text}"

    factory = ClientPerMessageDeflateFactory(server_no_context_takeover=no_takeover, server_max_window_bits=bits)
    async with DIRECT.serve(app) as server:
        url = f"ws://127.0.0.1:{server.port}/ws"
        async with (
            websockets_connect(url, extensions=[factory], compression=None, proxy=None) as first,
            websockets_connect(url, compression=None, proxy=None) as plain,
        ):
            await until(lambda: len(room) == 2)
            for number in range(5):
                await first.send(f"{LONG}{number}")
                assert await first.recv() == f"all: {LONG}{number}"
                assert await first.recv() == f"you: {LONG}{number}"
                assert await plain.recv() == f"all: {LONG}{number}"
                await room.broadcast(b"binary " * 30)
                assert await first.recv() == await plain.recv() == b"binary " * 30


class Counted:
    """A connection that is to be flushed."""

    def __init__(self, flushed: list[int], number: int) -> None:
        self._flushed = flushed
        self._number = number

    def flush(self) -> None:
        self._flushed.append(self._number)


async def test_many_connections_are_flushed_in_several_turns_of_the_loop() -> None:
    shared, flushed = Shared(asyncio.get_running_loop()), list[int]()
    for number in range(2 * MOST_AT_ONCE + 1):
        shared.flush_later(Counted(flushed, number))
    seen: list[int] = []
    for _ in range(4):
        await asyncio.sleep(0)
        seen.append(len(flushed))
        shared.flush_later(Counted(flushed, -1))
    await asyncio.sleep(0)
    assert seen == [MOST_AT_ONCE, 2 * MOST_AT_ONCE, 2 * MOST_AT_ONCE + 3, 2 * MOST_AT_ONCE + 4]
    assert [number for number in flushed if number >= 0] == list(range(2 * MOST_AT_ONCE + 1))
