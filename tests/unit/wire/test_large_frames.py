"""Frames that do not arrive in one read: what they lead to, and what they take meanwhile."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from tests.support import client_frames as wire
from tests.support.client_frames import BINARY, CONT, PING, TEXT, client_frame
from tests.support.reference_framing import ReferenceFraming
from wsdeco.messages import Data
from wsdeco.reasons import Close
from wsdeco.wire.deflate import Deflate
from wsdeco.wire.incoming import Framing
from wsdeco.wire.outgoing import encode_message, frame_pieces

SIZE = 300_000
LIMIT = 1 << 20

TEXTS = {
    "ASCII": "x" * SIZE,
    "ASCII that is one piece": "x" * 200_000,
    "ASCII, then beyond": "x" * 200_000 + "größe" * 20_000,
    "two bytes each": "ж" * 150_000,
    "three bytes each": "時刻" * 50_000,
    "seldom beyond ASCII": ("x" * 9_999 + "€") * 30,
    "beyond the BMP": "😀" * 75_000,
}


def in_reads(stream: bytes, size: Callable[[], int]) -> Iterator[bytes]:
    """Yield `stream` as reads of `size` bytes would bring it."""
    start = 0
    while start < len(stream):
        stop = start + size()
        yield stream[start:stop]
        start = stop


def outcome(framing: Framing, reads: Iterator[bytes]) -> tuple[list[Data], Close | None]:
    """Return the messages, and how the peer ended the input."""
    messages: list[Data] = []
    for data in reads:
        messages += framing.receive(data)
        while framing.unread:
            messages += framing.receive(b"")
    return messages, framing.ended


@pytest.mark.parametrize("size", [300, 1400, 16_384, 65_535, 256_000])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_is_the_same_however_it_arrives(kind: str, size: int) -> None:
    content = TEXTS[kind]
    stream = wire.text(content) + wire.text("next")
    assert outcome(Framing(LIMIT), in_reads(stream, lambda: size)) == ([content, "next"], None)


@pytest.mark.parametrize("size", [7, 300, 65_537])
def test_bytes_are_the_same_however_they_arrive(size: int) -> None:
    content = random.Random(1).randbytes(SIZE)  # noqa: S311 - the same in every run
    stream = client_frame(BINARY, content) + client_frame(BINARY, b"next")
    assert outcome(Framing(LIMIT), in_reads(stream, lambda: size)) == ([content, b"next"], None)


@pytest.mark.parametrize("where", [0, 100_000, SIZE - 1])
def test_invalid_utf8_is_refused_wherever_it_is(where: int) -> None:
    content = bytearray(b"x" * SIZE)
    content[where] = 0xFF
    messages, ended = outcome(Framing(LIMIT), in_reads(client_frame(TEXT, bytes(content)), lambda: 65_536))
    assert messages == []
    assert ended == Close(1007, "invalid UTF-8 in a text message", by="server")


def test_a_character_that_the_end_cuts_in_two_is_refused() -> None:
    content = b"x" * SIZE + "€".encode()[:2]
    messages, ended = outcome(Framing(LIMIT), in_reads(client_frame(TEXT, content), lambda: 65_536))
    assert messages == []
    assert ended is not None
    assert ended.code == 1007


def random_stream(source: random.Random, *, deflate: bool, repeated: int = 1) -> bytes:
    """Return messages, large and small, whole and in fragments, with a ping now and then; some of them invalid."""
    frames: list[bytes] = []
    for _ in range(source.randrange(1, 5)):
        content = source.choice(list(TEXTS.values())).encode()[: source.choice([10, 5_000, 40_000, 290_000])]
        content *= source.choice([1, repeated])
        if source.random() < 0.2:
            content += source.choice([b"\xff", b"\xe2\x82", b"ok"])
        opcode = source.choice([TEXT, BINARY])
        compressed = deflate and source.random() < 0.5
        payload = wire.deflated(content) if compressed else content
        if source.random() < 0.5:
            cuts = sorted(source.randrange(len(payload) + 1) for _ in range(source.randrange(1, 4)))
            parts = [payload[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        else:
            parts = [payload]
        for number, part in enumerate(parts):
            reserved = 0x40 if compressed and number == 0 else 0
            is_last = number == len(parts) - 1
            frames.append(client_frame(CONT if number else opcode, part, fin=is_last, reserved=reserved))
            if source.random() < 0.3:
                frames.append(client_frame(PING, b"here"))
    return b"".join(frames)


@pytest.mark.parametrize(("seed", "repeated"), [*((seed, 1) for seed in range(60)), *((seed, 8) for seed in range(60))])
def test_as_the_reference(seed: int, repeated: int) -> None:
    source = random.Random(seed)  # noqa: S311 - the same in every run
    deflate = source.random() < 0.4
    stream = random_stream(source, deflate=deflate, repeated=repeated)
    most = source.choice([3_000, 70_000, 256_000])
    limit = SIZE * repeated
    found = outcome(
        Framing(limit, deflate=Deflate() if deflate else None), in_reads(stream, lambda: source.randrange(1, most))
    )
    expected = outcome(ReferenceFraming(limit, deflate=Deflate() if deflate else None), iter([stream]))
    assert found == expected


@pytest.mark.parametrize(
    ("size", "kind"), [(10, "ASCII"), (100, "seldom beyond ASCII"), (65_536, "seldom beyond ASCII")]
)
def test_what_waits_takes_the_memory_of_its_payload(size: int, kind: str) -> None:
    frame = wire.text(TEXTS[kind])
    length = len(frame)
    framing = Framing(LIMIT)
    framing.receive(frame[:14])
    rest, last = frame[14:-1], frame[-1:]
    tracemalloc.start()
    try:
        assert outcome(framing, in_reads(rest, lambda: size)) == ([], None)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1.2 * length + 2_000
    assert peak < 1.2 * length + 8 * size + 2_000
    assert framing.receive(last) == [TEXTS[kind]]


def test_a_large_message_is_not_copied_while_it_grows() -> None:
    frame = client_frame(BINARY, bytes(LIMIT))
    framing = Framing(LIMIT)
    received: list[Data] = []
    tracemalloc.start()
    try:
        for data in in_reads(frame, lambda: 65_536):
            received += framing.receive(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == [bytes(LIMIT)]
    # The pieces, the message, and a read.
    assert peak < 2.2 * LIMIT


def test_a_text_is_decoded_while_it_arrives() -> None:
    frame = wire.text("ж" * (LIMIT // 2))
    framing = Framing(LIMIT)
    received: list[Data] = []
    tracemalloc.start()
    try:
        for data in in_reads(frame, lambda: 65_536):
            received += framing.receive(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == ["ж" * (LIMIT // 2)]
    assert peak < 2.4 * LIMIT


def in_steps(framing: Framing, messages: list[Data]) -> int:
    """Have `framing` go on until it has nothing left to do, and return how often that took."""
    steps = 0
    while framing.unread:
        messages += framing.receive(b"")
        steps += 1
    return steps


MIB = 1 << 20
LONG = ("x" * 60 + "😀") * (3 * MIB // 64)


def test_a_long_text_that_is_decoded_when_it_is_whole_is_so_in_steps() -> None:
    framing = Framing(4 * MIB)
    frame = wire.text(LONG)
    messages = outcome(framing, in_reads(frame[:-1], lambda: 65_536))[0]
    messages += framing.receive(frame[-1:] + wire.text("behind it"))
    assert (messages, framing.unread, framing.noticed) == ([], True, True)
    # What comes without having been waited for is no more out of order.
    messages += framing.receive(wire.text("later"))
    assert (messages, framing.unread) == ([], True)
    assert in_steps(framing, messages) == 1
    assert messages == [LONG, "behind it", "later"]


def test_invalid_utf8_in_the_last_step_is_refused() -> None:
    framing = Framing(4 * MIB)
    content = LONG.encode() + b"\xf0\x9f"
    messages, ended = outcome(framing, in_reads(client_frame(TEXT, content) + wire.text("late"), lambda: 65_536))
    assert messages == []
    assert ended == Close(1007, "invalid UTF-8 in a text message", by="server")
    assert not framing.unread


@pytest.mark.parametrize("kind", ["x", "ж"])
def test_a_long_text_that_was_decoded_as_it_came_takes_no_steps(kind: str) -> None:
    framing = Framing(4 * MIB)
    content = kind * (3 * MIB // len(kind.encode()))
    messages: list[Data] = []
    for data in in_reads(wire.text(content), lambda: 65_536):
        messages += framing.receive(data)
        assert not framing.unread
    assert messages == [content]


def test_bytes_take_no_steps() -> None:
    framing = Framing(4 * MIB)
    content = bytes(3 * MIB)
    messages: list[Data] = []
    for data in in_reads(client_frame(BINARY, content), lambda: 65_536):
        messages += framing.receive(data)
        assert not framing.unread
    assert messages == [content]


def as_fragments(payload: bytes, size: int, *, compressed: bool) -> bytes:
    """Return the frames of a text in fragments of `size` bytes."""
    content = wire.deflated(payload) if compressed else payload
    starts = range(0, len(content), size)
    return b"".join(
        client_frame(
            CONT if start else TEXT,
            content[start : start + size],
            fin=start == starts[-1],
            reserved=0x40 if compressed and not start else 0,
        )
        for start in starts
    )


NOISE = random.Random(4).randbytes(3 * MIB).decode("latin-1")  # noqa: S311 - the same in every run
SMOOTH = "größe und 時刻, " * (3 * MIB // 20)


@pytest.mark.parametrize("content", [NOISE, SMOOTH], ids=["noise", "smooth"])
@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("size", [300, 65_536, 1 << 24])
@pytest.mark.parametrize("in_fragments", [None, 50_000, 2 * MIB])
def test_a_long_compressed_message_is_inflated_in_steps(
    content: str, as_text: bool, size: int, in_fragments: int | None
) -> None:
    payload = content.encode()
    opcode = TEXT if as_text else BINARY
    stream = as_fragments(payload, in_fragments or 8 * MIB, compressed=True)
    stream = bytes((stream[0] ^ TEXT ^ opcode,)) + stream[1:]
    stream += client_frame(opcode, wire.deflated(b"behind it"), reserved=0x40) + wire.text("later")
    framing = Framing(8 * MIB, deflate=Deflate())
    messages: list[Data] = []
    steps = 0
    for data in in_reads(stream, lambda: size):
        messages += framing.receive(data)
        steps += in_steps(framing, messages)
    assert messages == [content if as_text else payload, "behind it" if as_text else b"behind it", "later"]
    assert steps >= 2
    assert framing.ended is None


@pytest.mark.parametrize("size", [4096, 2 * MIB])
def test_a_long_text_in_fragments_is_decoded_in_steps(size: int) -> None:
    framing = Framing(4 * MIB)
    stream = as_fragments(LONG.encode(), size, compressed=False)
    messages, _ = outcome(framing, in_reads(stream[:-1], lambda: 65_536))
    messages += framing.receive(stream[-1:] + wire.text("behind it"))
    assert (messages, framing.unread) == ([], True)
    messages += framing.receive(wire.text("later"))
    assert in_steps(framing, messages) in (2, 3)
    assert messages == [LONG, "behind it", "later"]


@pytest.mark.parametrize("in_fragments", [None, 50_000, 2 * MIB])
@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (SMOOTH.encode() + b"\xff" + SMOOTH.encode(), 1007),
        (SMOOTH.encode() + b"\xe2\x82", 1007),
        (SMOOTH.encode() * 3, 1009),
    ],
    ids=["invalid", "cut", "too big"],
)
def test_what_is_wrong_in_a_later_step_ends_the_input(payload: bytes, code: int, in_fragments: int | None) -> None:
    stream = as_fragments(payload, in_fragments or len(payload), compressed=True) + wire.text("late")
    framing = Framing(7 * MIB, deflate=Deflate())
    messages, ended = outcome(framing, in_reads(stream, lambda: 65_536))
    assert messages == []
    assert ended is not None
    assert (ended.code, ended.by) == (code, "server")
    assert not framing.unread


def test_broken_data_in_a_later_step_ends_the_input() -> None:
    # A block that is stored has its length twice.
    content = wire.deflated(NOISE.encode()) + b"\x00\x00\xff\xff" + b"\x00\x01\x02\x03\x04"
    stream = client_frame(BINARY, content, reserved=0x40)
    ended = outcome(Framing(8 * MIB, deflate=Deflate()), in_reads(stream, lambda: 65_536))[1]
    assert ended == Close(1002, "invalid compressed data", by="server")


def test_a_compressed_message_that_is_half_inflated_takes_no_more_memory_than_a_whole_one() -> None:
    content = random.Random(5).randbytes(3 * MIB)  # noqa: S311 - the same in every run
    frame = client_frame(BINARY, wire.deflated(content), reserved=0x40)
    framing = Framing(4 * MIB, deflate=Deflate())
    received: list[Data] = []
    tracemalloc.start()
    try:
        for data in in_reads(frame, lambda: 65_536):
            received += framing.receive(data)
        while framing.unread:
            assert tracemalloc.get_traced_memory()[0] < 1.2 * len(content)
            received += framing.receive(b"")
    finally:
        tracemalloc.stop()
    assert received == [content]


def test_inflating_a_large_frame_counts_as_work() -> None:
    content = random.Random(2).randbytes(SIZE)  # noqa: S311 - the same in every run
    frame = client_frame(BINARY, wire.deflated(content), reserved=0x40)
    framing = Framing(LIMIT, deflate=Deflate())
    assert framing.receive(frame[:100_000]) == []
    assert framing.receive(frame[100_000:] + wire.text("next")) == [content]
    assert framing.unread
    assert framing.receive(b"") == ["next"]
    assert not framing.unread


@pytest.mark.parametrize("kind", TEXTS)
def test_the_pieces_of_a_text_are_its_frame(kind: str) -> None:
    assert b"".join(frame_pieces(TEXTS[kind])) == encode_message(TEXTS[kind])


def test_the_pieces_of_a_binary_message_are_its_frame() -> None:
    content = random.Random(3).randbytes(SIZE)  # noqa: S311 - the same in every run
    assert b"".join(frame_pieces(content)) == encode_message(content)


def test_nothing_is_sent_of_a_text_that_utf8_cannot_carry() -> None:
    pieces = frame_pieces("x" * SIZE + "\ud800")
    assert next(pieces) == b""
    with pytest.raises(UnicodeEncodeError):
        next(pieces)


@pytest.mark.parametrize("message", ["x" * 200_000, bytes(200_000)])
def test_a_message_that_is_one_piece_is_copied_once_at_most(message: Data) -> None:
    tracemalloc.start()
    try:
        first, rest = frame_pieces(message)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()
    assert bytes(first) + bytes(rest) == encode_message(message)


def test_sending_allocates_no_copy_of_the_message() -> None:
    for message in ("x" * 4_000_000, bytes(4_000_000)):
        tracemalloc.start()
        try:
            for _ in frame_pieces(message):
                pass
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
