"""The framing: every fault by table, both lanes against each other and against the library, and the bounds.

Where `Framing` differs from the library on purpose, a test of the class `TestKnownDifferences` shows both.
"""

from __future__ import annotations

import inspect
import itertools
import os
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from tests.support import client_frames as wire
from tests.support.checkout import CHECKOUT
from tests.support.client_frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, client_frame
from tests.support.reference_framing import ReferenceFraming
from wsdeco.messages import Data
from wsdeco.reasons import Close
from wsdeco.wire.deflate import Deflate, negotiate
from wsdeco.wire.incoming import Framing
from wsdeco.wire.outgoing import encode_close, encode_message, encode_ping

LIMIT = 300
LANES = pytest.mark.parametrize("kind", [Framing, ReferenceFraming])


@dataclass(frozen=True)
class Outcome:
    """What a stream of bytes led to."""

    messages: list[Data]
    ended: Close | None
    sent: bytes


def receive(framing: Framing, pieces: Iterable[bytes]) -> Outcome:
    """Feed `pieces`, and answer the end of the input as an owner does."""
    messages: list[Data] = []
    sent = b""
    for piece in pieces:
        messages += framing.receive(piece)
        while framing.unread:
            messages += framing.receive(b"")
        if framing.noticed:
            sent += framing.notice()[0]
    if framing.ended is not None:
        sent += framing.close(framing.ended.code, framing.ended.reason)
    return Outcome(messages, framing.ended, sent)


def outcome(
    stream: bytes, *, limit: int = LIMIT, kind: type[Framing] = Framing, cuts: Sequence[int] = (), deflate: bool = False
) -> Outcome:
    """Return what `stream`, cut at `cuts`, leads to."""
    borders = [0, *sorted(cuts), len(stream)]
    pieces = [stream[start:stop] for start, stop in itertools.pairwise(borders)]
    return receive(kind(limit, deflate=Deflate() if deflate else None), pieces)


def empty_blocks() -> bytes:
    """Return eight blocks of a deflate stream that have codes of their own, and no content (RFC 1951, 3.2.7)."""
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)
    # No last block, dynamic codes; 257 literals, 1 distance, 18 lengths of which two are used.
    header = [(0, 1), (2, 2), (0, 5), (0, 5), (14, 4), *((int(symbol in (1, 18)), 3) for symbol in order)]
    # 138 and 118 times length 0, and length 1 for the end of the block; a distance; the end.
    content = [(1, 1), (127, 7), (1, 1), (107, 7), (0, 3)]
    value = size = 0
    for number, width in (header + content) * 8:
        value |= number << size
        size += width
    return value.to_bytes(size // 8, "little")


EMPTY_BLOCKS = empty_blocks()


def ended_with(code: int, reason: str) -> Close:
    return Close(code, reason, by="server")


class TestMessages:
    @LANES
    @pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 4095, 4096, 65535, 65536, 100_000])
    def test_text_and_binary_of_every_length_form(self, length: int, kind: type[Framing]) -> None:
        stream = client_frame(TEXT, b"x" * length) + client_frame(BINARY, b"\xff" * length)
        expected = Outcome(["x" * length, b"\xff" * length], None, b"")
        assert outcome(stream, limit=100_000, kind=kind) == expected
        assert outcome(stream, limit=100_000, kind=kind, cuts=range(1, 40)) == expected

    @LANES
    def test_every_split_of_a_stream_gives_the_same(self, kind: type[Framing]) -> None:
        stream = b"".join(
            [
                wire.text("héllo"),
                client_frame(TEXT, "é".encode()[:1], fin=False),
                client_frame(PING, b"p"),
                client_frame(CONT, "é".encode()[1:]),
                client_frame(BINARY, b"b" * 200),
                client_frame(PONG, b"unsolicited"),
                wire.close(4001, b"bye"),
            ]
        )
        expected = Outcome(["héllo", "é", b"b" * 200], Close(4001, "bye"), b"\x8a\x01p" + encode_close(4001, "bye"))
        for cut in range(len(stream)):
            assert outcome(stream, kind=kind, cuts=[cut]) == expected
        assert outcome(stream, kind=kind, cuts=range(len(stream))) == expected

    @LANES
    def test_messages_are_str_and_bytes_exactly(self, kind: type[Framing]) -> None:
        stream = client_frame(BINARY, b"ab") + client_frame(BINARY, b"a", fin=False) + client_frame(CONT, b"b")
        assert [type(m) for m in outcome(stream, kind=kind).messages] == [bytes, bytes]

    def test_between_two_messages_nothing_is_kept(self) -> None:
        framing = Framing(LIMIT)
        size_at_rest = _deep_size(framing)
        framing.receive(wire.text("a") + client_frame(PING) + client_frame(TEXT, b"a", fin=False))
        assert size_at_rest < _deep_size(framing) < size_at_rest + 500
        framing.receive(client_frame(CONT, b"b"))
        framing.notice()
        assert _deep_size(framing) == size_at_rest

    def test_nothing_is_read_after_the_end(self) -> None:
        framing = Framing(LIMIT)
        assert framing.receive(wire.close(1000) + wire.text("late")) == []
        assert framing.receive(wire.text("later") + b"\xff\xff") == []
        assert framing.ended == Close(1000)


def _deep_size(framing: Framing) -> int:
    # Slots, which a compiled class does not list.
    values = [getattr(framing, name) for name, member in vars(Framing).items() if inspect.isdatadescriptor(member)]
    slow_lanes = [value for value in values if type(value).__name__ == "Protocol"]
    return sum(map(sys.getsizeof, values)) + 1000 * len(slow_lanes)


PROTOCOL_FAULTS = {
    "reserved bit 1": (client_frame(TEXT, reserved=0x40), 1002, "reserved bits are set"),
    "reserved bit 2": (client_frame(TEXT, reserved=0x20), 1002, "reserved bits are set"),
    "reserved bit 3": (client_frame(BINARY, reserved=0x10), 1002, "reserved bits are set"),
    "reserved bit of a ping": (client_frame(PING, reserved=0x40), 1002, "reserved bits are set"),
    **{
        f"reserved opcode {opcode}": (client_frame(opcode), 1002, "reserved opcode")
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "unmasked text": (client_frame(TEXT, b"a", masked=False), 1002, "frame is not masked"),
    "unmasked ping": (client_frame(PING, masked=False), 1002, "frame is not masked"),
    "fragmented ping": (client_frame(PING, fin=False), 1002, "fragmented control frame"),
    "fragmented close": (client_frame(CLOSE, fin=False), 1002, "fragmented control frame"),
    "ping of 126 bytes": (client_frame(PING, b"x" * 126), 1002, "control frame is too long"),
    "close of 70,000 bytes": (client_frame(CLOSE, b"x" * 70_000), 1002, "control frame is too long"),
    "continuation of nothing": (client_frame(CONT, b"x"), 1002, "unexpected continuation frame"),
    "empty last continuation of nothing": (client_frame(CONT), 1002, "unexpected continuation frame"),
    "text inside a message": (
        wire.text("a", fin=False) + wire.text("b"),
        1002,
        "expected a continuation frame",
    ),
    "binary inside a text": (
        wire.text("a", fin=False) + client_frame(BINARY, fin=False),
        1002,
        "expected a continuation frame",
    ),
    "length 125 in two bytes": (
        client_frame(TEXT, b"x" * 125, width=2),
        1002,
        "frame length is not minimal, or has its top bit set",
    ),
    "length 0 in two bytes": (
        client_frame(BINARY, width=2),
        1002,
        "frame length is not minimal, or has its top bit set",
    ),
    "length 65535 in eight bytes": (
        wire.header(0x81, 0xFF, (65535).to_bytes(8, "big")),
        1002,
        "frame length is not minimal, or has its top bit set",
    ),
    "length with its top bit set": (
        wire.header(0x82, 0xFF, (1 << 63).to_bytes(8, "big")),
        1002,
        "frame length is not minimal, or has its top bit set",
    ),
    "length of 63 bits": (
        wire.header(0x82, 0xFF, ((1 << 63) - 1).to_bytes(8, "big")),
        1009,
        "message is longer than 300 bytes",
    ),
    "one byte over the limit, in the header": (
        wire.header(0x81, 0xFE, (301).to_bytes(2, "big")),
        1009,
        "message is longer than 300 bytes",
    ),
    "over the limit with a fragment, in the header": (
        client_frame(TEXT, b"x" * 200, fin=False) + wire.header(0x80, 0x80 | 101),
        1009,
        "message is longer than 300 bytes",
    ),
    "over the limit with an unfinished fragment": (
        client_frame(BINARY, b"x" * 300, fin=False) + client_frame(CONT, b"x", fin=False),
        1009,
        "message is longer than 300 bytes",
    ),
    "close with half a code": (client_frame(CLOSE, b"\x03"), 1002, "close frame too short"),
    **{
        f"close code {code}": (wire.close(code), 1002, "invalid status code")
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "close reason in bad UTF-8": (
        wire.close(1000, b"\xce\xba\xe1\xff"),
        1007,
        "invalid continuation byte at position 2",
    ),
    "text in bad UTF-8": (client_frame(TEXT, b"\xed\xa0\x80"), 1007, "invalid UTF-8 in a text message"),
    "long text in bad UTF-8": (client_frame(TEXT, b"x" * 200 + b"\xff"), 1007, "invalid UTF-8 in a text message"),
    "text ending inside a character": (client_frame(TEXT, b"\xe2\x82"), 1007, "invalid UTF-8 in a text message"),
    "fragments ending inside a character": (
        client_frame(TEXT, b"\xe2", fin=False) + client_frame(CONT, b"\x82"),
        1007,
        "invalid UTF-8 in a text message",
    ),
    "bad UTF-8 in a first fragment": (
        client_frame(TEXT, b"\xf4\x90", fin=False),
        1007,
        "invalid UTF-8 in a text message",
    ),
    "bad UTF-8 over two fragments": (
        client_frame(TEXT, b"\xf4", fin=False) + client_frame(CONT, b"\x90", fin=False),
        1007,
        "invalid UTF-8 in a text message",
    ),
}


class TestFaults:
    @LANES
    @pytest.mark.parametrize("fault", PROTOCOL_FAULTS)
    def test_fault_ends_the_input_behind_the_good_messages(self, fault: str, kind: type[Framing]) -> None:
        stream, code, reason = PROTOCOL_FAULTS[fault]
        good = wire.text("one") + client_frame(BINARY, b"two") + client_frame(PING, b"three")
        expected = Outcome(["one", b"two"], ended_with(code, reason), b"\x8a\x05three" + encode_close(code, reason))
        assert outcome(good + stream + wire.text("never"), kind=kind) == expected
        every_byte = range(len(good) + min(len(stream), 400))
        assert outcome(good + stream, kind=kind, cuts=every_byte) == expected

    @LANES
    @pytest.mark.parametrize("first", range(256))
    def test_every_first_byte(self, first: int, kind: type[Framing]) -> None:
        ended = outcome(wire.header(first, 0x80, b"\0\0\0\0"), kind=kind).ended
        opcode = first & 0x0F
        if first & 0x70 or opcode not in (TEXT, BINARY, CLOSE, PING, PONG) or (opcode > 7 and first < 0x80):
            assert ended is not None
            assert ended.code == 1002
        else:
            assert ended == (Close(1005) if opcode == CLOSE else None)

    @LANES
    def test_faults_in_the_header_need_no_payload(self, kind: type[Framing]) -> None:
        ended = outcome(wire.header(0xC1, 0xFE), kind=kind).ended
        assert ended == ended_with(1002, "reserved bits are set")

    @LANES
    def test_limit_below_a_short_frame(self, kind: type[Framing]) -> None:
        assert outcome(wire.text("abc"), limit=3, kind=kind).messages == ["abc"]
        ended = outcome(wire.text("abcd"), limit=3, kind=kind).ended
        assert ended == ended_with(1009, "message is longer than 3 bytes")


class TestUtf8:
    @LANES
    def test_every_split_of_every_kind_of_sequence(self, kind: type[Framing]) -> None:
        encoded = "a\u00e9\u20ac\U0001f600\uffff\U0010ffff".encode()
        for first in range(len(encoded) + 1):
            for second in range(first, len(encoded) + 1):
                stream = b"".join(
                    [
                        client_frame(TEXT, encoded[:first], fin=False),
                        client_frame(CONT, encoded[first:second], fin=False),
                        client_frame(CONT, encoded[second:]),
                    ]
                )
                assert outcome(stream, kind=kind) == Outcome([encoded.decode()], None, b"")

    def test_binary_fragments_are_not_checked(self) -> None:
        stream = client_frame(BINARY, b"\xff", fin=False) + client_frame(CONT, b"\xfe")
        assert outcome(stream).messages == [b"\xff\xfe"]


class TestControlFrames:
    def test_every_ping_is_answered_in_order(self) -> None:
        stream = b"".join(client_frame(PING, b"%d" % n) for n in range(10))
        assert outcome(stream).sent == b"".join(b"\x8a\x01%d" % n for n in range(10))

    def test_only_the_newest_pong_is_held_back(self) -> None:
        framing = Framing(LIMIT)
        framing.hold_pongs = True
        for n in range(5):
            framing.receive(client_frame(PING, b"%d" % n) + client_frame(PONG))
        assert framing.notice() == (b"", True)
        assert framing.release_pong() == b"\x8a\x014"
        assert framing.release_pong() == b""
        framing.receive(client_frame(PING))
        assert framing.notice() == (b"\x8a\x00", True)

    def test_the_answer_to_our_ping_is_not_activity(self) -> None:
        framing = Framing(LIMIT)
        framing.ping_payload = b"ours"
        framing.receive(client_frame(PONG, b"ours"))
        assert framing.noticed
        assert framing.ping_payload is None
        assert framing.notice() == (b"", False)
        assert not framing.noticed
        framing.receive(client_frame(PONG, b"ours"))
        assert framing.notice() == (b"", True)

    def test_another_pong_leaves_our_ping_open(self) -> None:
        framing = Framing(LIMIT)
        framing.ping_payload = b"ours"
        framing.receive(client_frame(PONG, b"theirs"))
        assert framing.ping_payload == b"ours"
        assert framing.notice() == (b"", True)

    def test_a_fragment_is_activity_and_a_whole_message_is_not_noticed(self) -> None:
        framing = Framing(LIMIT)
        framing.receive(wire.text("a"))
        assert not framing.noticed
        framing.receive(wire.text("a", fin=False))
        assert framing.notice() == (b"", True)
        assert framing.receive(client_frame(CONT, b"b")) == ["ab"]
        assert not framing.noticed

    def test_close_during_a_fragmented_message_drops_it_and_echoes_the_code(self) -> None:
        stream = wire.text("half", fin=False) + wire.close(4000, b"enough")
        assert outcome(stream) == Outcome([], Close(4000, "enough"), encode_close(4000, "enough"))

    @pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999])
    def test_valid_close_codes_are_echoed(self, code: int) -> None:
        assert outcome(wire.close(code)) == Outcome([], Close(code), encode_close(code))

    def test_close_without_a_code_is_1005_and_echoed_without_one(self) -> None:
        assert outcome(wire.close()) == Outcome([], Close(1005), b"\x88\x00")

    def test_close_is_sent_once(self) -> None:
        framing = Framing(LIMIT)
        assert framing.close(1001, "bye") == b"\x88\x05\x03\xe9bye"
        assert framing.close_sent
        framing.receive(wire.close(1001))
        assert framing.ended == Close(1001)
        assert framing.close(1001) == b""

    def test_a_refused_close_can_be_tried_again(self) -> None:
        framing = Framing(LIMIT)
        with pytest.raises(ValueError, match="999"):
            framing.close(999)
        assert framing.close(1000) == encode_close(1000)


class TestEncoding:
    @pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536])
    def test_as_the_library(self, length: int) -> None:
        payload = b"x" * length
        assert encode_message(payload.decode()) == Frame(Opcode.TEXT, payload).serialize(mask=False)
        assert encode_message(payload) == Frame(Opcode.BINARY, payload).serialize(mask=False)
        assert Framing(LIMIT).encode(payload.decode()) == encode_message(payload.decode())
        assert Framing(LIMIT).encode(payload) == encode_message(payload)

    def test_ping(self) -> None:
        assert encode_ping() == b"\x89\x00"
        assert encode_ping(b"x" * 125) == Frame(Opcode.PING, b"x" * 125).serialize(mask=False)
        with pytest.raises(ValueError, match="not 126"):
            encode_ping(b"x" * 126)

    def test_close_reason_is_cut_on_a_character(self) -> None:
        frame = encode_close(1000, "x" + "é" * 100)
        assert frame[1] == 125
        assert frame[4:].decode() == "x" + "é" * 61
        assert encode_close(1000, "é" * 100)[4:].decode() == "é" * 61

    def test_lone_surrogate(self) -> None:
        with pytest.raises(UnicodeEncodeError):
            encode_message("\ud800")


class TestDeflate:
    def test_round_trip_with_and_without_context(self) -> None:
        for server_context in (True, False):
            framing = Framing(LIMIT, deflate=Deflate(server_context=server_context))
            inflater = zlib.decompressobj(-12)
            sizes: list[int] = []
            for message in ("round trip " * 5, b"round trip " * 5):
                frame = framing.encode(message)
                assert frame[0] == 0x40 | (0x81 if isinstance(message, str) else 0x82)
                sizes.append(len(frame))
                if not server_context:
                    inflater = zlib.decompressobj(-12)
                assert inflater.decompress(frame[2:] + b"\0\0\xff\xff") == b"round trip " * 5
            assert (sizes[1] < sizes[0]) is server_context

    @LANES
    @pytest.mark.parametrize("client_context", [True, False])
    def test_fragmented_and_mixed_with_plain_messages(self, client_context: bool, kind: type[Framing]) -> None:
        framing = kind(LIMIT, deflate=Deflate(client_context=client_context))
        payload = wire.deflated(b"compressed " * 10)
        stream = b"".join(
            [
                client_frame(TEXT, payload[:5], fin=False, reserved=0x40),
                client_frame(PING, b"p"),
                client_frame(CONT, payload[5:]),
                wire.text("plain"),
                client_frame(TEXT, b"pl", fin=False),
                client_frame(CONT, b"ain"),
                client_frame(BINARY, wire.deflated(b""), reserved=0x40),
                client_frame(BINARY, wire.deflated(b"again"), reserved=0x40),
            ]
        )
        result = receive(framing, [stream])
        assert result == Outcome(["compressed " * 10, "plain", "plain", b"", b"again"], None, b"\x8a\x01p")

    def test_context_is_kept_between_messages(self) -> None:
        compressor = zlib.compressobj(wbits=-12)
        payloads = [(compressor.compress(b"again " * 9) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4] for _ in "ab"]
        stream = b"".join(client_frame(TEXT, payload, reserved=0x40) for payload in payloads)
        assert outcome(stream, deflate=True).messages == ["again " * 9] * 2

    def test_no_inflater_is_kept_when_the_peer_drops_its_context(self) -> None:
        framing = Framing(LIMIT, deflate=Deflate(client_context=False))
        frame = client_frame(TEXT, wire.deflated(b"same"), reserved=0x40)
        assert receive(framing, [frame, frame]).messages == ["same", "same"]

    def test_size_is_of_the_inflated_message(self) -> None:
        exact = client_frame(BINARY, wire.deflated(b"x" * LIMIT), reserved=0x40)
        over = client_frame(BINARY, wire.deflated(b"x" * (LIMIT + 1)), reserved=0x40)
        assert outcome(exact + over, deflate=True) == Outcome(
            [b"x" * LIMIT],
            ended_with(1009, "message is longer than 300 bytes"),
            encode_close(1009, "message is longer than 300 bytes"),
        )

    def test_bomb_is_stopped_inside_the_inflater(self) -> None:
        bomb = client_frame(BINARY, wire.deflated(bytes(100_000_000))[:300], reserved=0x40)
        tracemalloc.start()
        try:
            ended = outcome(bomb, deflate=True).ended
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert ended == ended_with(1009, "message is longer than 300 bytes")
        assert peak < 200_000

    def test_size_over_fragments_of_a_compressed_message(self) -> None:
        payload = wire.deflated(b"x" * 2 * LIMIT)
        stream = client_frame(BINARY, payload[:3], fin=False, reserved=0x40) + client_frame(CONT, payload[3:])
        ended = outcome(stream, deflate=True).ended
        assert ended == ended_with(1009, "message is longer than 300 bytes")

    def test_incompressible_message_of_the_permitted_size(self) -> None:
        data = random.Random(1).randbytes(LIMIT)  # noqa: S311 - the same in every run
        payload = wire.deflated(data)
        assert len(payload) > LIMIT
        assert outcome(client_frame(BINARY, payload, reserved=0x40), deflate=True).messages == [data]

    def test_compressed_frame_far_over_the_limit_is_refused_from_its_header(self) -> None:
        ended = outcome(wire.header(0xC2, 0xFE, (2 * LIMIT).to_bytes(2, "big")), deflate=True).ended
        assert ended == ended_with(1009, "message is longer than 300 bytes")

    def test_message_that_ends_with_a_final_block(self) -> None:
        compressor = zlib.compressobj(wbits=-12)
        final = compressor.compress(b"Hello") + compressor.flush(zlib.Z_FINISH) + b"\x00"
        stream = client_frame(TEXT, final, reserved=0x40) * 3 + client_frame(TEXT, wire.deflated(b"on"), reserved=0x40)
        assert outcome(stream, deflate=True) == Outcome(["Hello", "Hello", "Hello", "on"], None, b"")

    def test_too_many_final_blocks(self) -> None:
        ended = outcome(client_frame(TEXT, b"\x03\x00" * 17, reserved=0x40), deflate=True).ended
        assert ended == ended_with(1002, "too many final blocks in one compressed frame")

    def test_garbage(self) -> None:
        ended = outcome(client_frame(TEXT, b"\xff\xff\xff", reserved=0x40), deflate=True).ended
        assert ended == ended_with(1002, "invalid compressed data")

    def test_invalid_utf8_in_a_compressed_text(self) -> None:
        ended = outcome(client_frame(TEXT, wire.deflated(b"\xff"), reserved=0x40), deflate=True).ended
        assert ended == ended_with(1007, "invalid UTF-8 in a text message")

    @pytest.mark.parametrize(
        "frame",
        [
            client_frame(PING, reserved=0x40),
            client_frame(TEXT, reserved=0x60),
            client_frame(TEXT, b"a", fin=False) + client_frame(CONT, reserved=0x40),
        ],
    )
    def test_reserved_bit_where_it_means_nothing(self, frame: bytes) -> None:
        assert outcome(frame, deflate=True).ended == ended_with(1002, "reserved bits are set")

    def test_control_frames_are_never_compressed(self) -> None:
        stream = client_frame(TEXT, wire.deflated(b"a")[:1], fin=False, reserved=0x40) + client_frame(PING, b"p")
        assert outcome(stream + client_frame(CONT, wire.deflated(b"a")[1:]), deflate=True).sent == b"\x8a\x01p"

    @pytest.mark.parametrize("size", [500_000, 1_100_000])
    def test_blocks_without_content_do_not_keep_the_event_loop(self, size: int) -> None:
        """Each has codes to be read, which takes a tenth of a microsecond a byte, and nothing comes out."""
        stream = client_frame(TEXT, EMPTY_BLOCKS * (size // len(EMPTY_BLOCKS)), reserved=0x40)
        ended = outcome(stream, limit=1 << 20, deflate=True).ended
        assert ended == ended_with(1002, "compressed data that inflates to hardly anything")

    def test_work_without_output_is_spread_over_turns(self) -> None:
        framing = Framing(1 << 20, deflate=Deflate())
        frame = client_frame(TEXT, EMPTY_BLOCKS * 600 + b"\0", reserved=0x40)
        messages = framing.receive(frame * 4)
        assert len(messages) == 1
        assert framing.unread


class TestNegotiation:
    @pytest.mark.parametrize(
        ("offers", "answer"),
        [
            ("", None),
            ("x-webkit-deflate-frame", None),
            ("permessage-deflate", "permessage-deflate; server_max_window_bits=12"),
            (
                "permessage-deflate; client_max_window_bits",
                "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
            ),
            (
                "other, permessage-deflate; server_no_context_takeover; client_no_context_takeover",
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12",
            ),
            (
                "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=9",
                "permessage-deflate; server_max_window_bits=9",
            ),
            ("permessage-deflate; unknown=1", None),
            ("permessage-deflate".ljust(1024), "permessage-deflate; server_max_window_bits=12"),
            ("permessage-deflate".ljust(1025), None),
        ],
    )
    def test_offers(self, offers: str, answer: str | None) -> None:
        agreed = negotiate(offers)
        assert (None if agreed is None else agreed[0]) == answer


class TestBounds:
    def test_tiny_and_empty_fragments_cost_their_payload(self) -> None:
        fragments = 20_000
        framing = Framing(1 << 20)
        two_bytes = client_frame(CONT, b"ab", fin=False)
        nothing = client_frame(CONT, fin=False)
        framing.receive(client_frame(TEXT, fin=False))
        tracemalloc.start()
        try:
            for _ in range(fragments // 1000):
                framing.receive(two_bytes * 500 + nothing * 500)
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < fragments * 2
        assert peak < fragments * 2 + 100_000
        assert framing.receive(client_frame(CONT)) == ["ab" * (fragments // 2)]

    def test_a_large_compressed_frame_is_not_kept_in_many_copies(self) -> None:
        size = 1 << 20
        payload = random.Random(5).randbytes(size)  # noqa: S311 - the same in every run
        frame = client_frame(BINARY, wire.deflated(payload), reserved=0x40)
        framing = Framing(size, deflate=Deflate())
        received: list[Data] = []
        tracemalloc.start()
        try:
            for start in range(0, len(frame), 65536):
                received += framing.receive(frame[start : start + 65536])
            while framing.unread:
                received += framing.receive(b"")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert received == [payload]
        assert peak < 2.5 * size

    def test_large_compressed_fragments(self) -> None:
        payload = random.Random(6).randbytes(300_000)  # noqa: S311 - the same in every run
        whole = wire.deflated(payload)
        half = len(whole) // 2
        framing = Framing(1 << 20, deflate=Deflate())
        assert framing.receive(client_frame(BINARY, whole[:half], fin=False, reserved=0x40)) == []
        received = framing.receive(client_frame(CONT, whole[half:]))
        assert received == [payload]

    def test_bytes_are_held_as_they_arrive_not_as_announced(self) -> None:
        framing = Framing(1 << 30)
        tracemalloc.start()
        try:
            framing.receive(wire.header(0x82, 0xFF, (1 << 29).to_bytes(8, "big")) + b"mask" + bytes(1000))
            assert tracemalloc.get_traced_memory()[1] < 50_000
        finally:
            tracemalloc.stop()

    def test_one_call_does_a_bounded_amount_of_slow_work(self) -> None:
        framing = Framing(LIMIT)
        stream = client_frame(PING) * 2500 + wire.text("last")
        assert framing.receive(stream) == []
        assert framing.unread
        assert len(framing.notice()[0]) == 2000
        assert framing.receive(b"") == []
        assert framing.unread
        assert framing.receive(wire.text("new")) == ["last", "new"]
        assert not framing.unread

    def test_nothing_is_unread_when_the_work_ends_with_the_input(self) -> None:
        framing = Framing(LIMIT)
        framing.receive(client_frame(PING) * 1000)
        assert not framing.unread

    def test_inflating_counts_as_work(self) -> None:
        framing = Framing(1 << 20, deflate=Deflate())
        frame = client_frame(BINARY, wire.deflated(bytes(200_000)), reserved=0x40)
        assert [len(message) for message in framing.receive(frame * 5)] == [200_000] * 2
        assert framing.unread

    def test_a_fault_leaves_nothing_unread(self) -> None:
        framing = Framing(LIMIT)
        framing.receive(client_frame(PING) * 1500 + client_frame(3))
        assert framing.unread
        assert framing.receive(b"") == []
        assert not framing.unread
        assert framing.ended == ended_with(1002, "reserved opcode")


def test_masking_without_the_c_extension() -> None:
    # In a process of its own: a module that is compiled cannot be loaded a second time.
    code = (
        "import sys\n"
        "sys.modules['websockets.speedups'] = None\n"
        "from tests.support import client_frames\n"
        "from wsdeco.wire import gathering, incoming\n"
        "print(gathering.apply_mask.__module__)\n"
        "assert incoming.Framing(100_000).receive(client_frames.text('h\\xe9llo' * 1000)) == ['h\\xe9llo' * 1000]\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True, text=True, timeout=60)
    assert result.stdout == "websockets.utils\n"


def reference(stream: bytes, limit: int = LIMIT) -> Outcome:
    """Return what the library alone makes of `stream`, with its fragments joined and its texts decoded."""
    library = ServerProtocol(state=State.OPEN, max_size=limit)
    library.receive_data(stream)
    messages: list[Data] = []
    parts: list[bytes] = []
    is_text = False
    for frame in library.events_received():
        assert isinstance(frame, Frame)
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            is_text = frame.opcode is Opcode.TEXT
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            parts.append(bytes(frame.data))
            if frame.fin:
                joined = b"".join(parts)
                messages.append(joined.decode() if is_text else joined)
                parts.clear()
    sent = b"".join(library.data_to_send())
    received, answered = library.close_rcvd, library.close_sent
    ended = None
    if received is not None:
        ended = Close(int(received.code), received.reason)
    elif answered is not None:
        ended = Close(int(answered.code), answered.reason, by="server")
    return Outcome(messages, ended, sent)


class TestKnownDifferences:
    """What the library does otherwise, and why `Framing` does not follow it."""

    def test_lengths_must_be_minimal(self) -> None:
        """RFC 6455, section 5.2: "the minimal number of bytes MUST be used"."""
        stream = client_frame(TEXT, b"a", width=8)
        assert reference(stream).messages == ["a"]
        assert outcome(stream).ended == ended_with(1002, "frame length is not minimal, or has its top bit set")

    def test_top_bit_of_the_length(self) -> None:
        """RFC 6455, section 5.2: "the most significant bit MUST be 0", which is a fault, not a size."""
        stream = wire.header(0x82, 0xFF, (1 << 63).to_bytes(8, "big"))
        assert reference(stream).ended == ended_with(1009, f"frame with {1 << 63} bytes exceeds limit of 300 bytes")
        assert outcome(stream).ended == ended_with(1002, "frame length is not minimal, or has its top bit set")

    def test_faults_of_the_header_are_seen_in_the_header(self) -> None:
        """Waiting for the payload of a frame that will be refused keeps bytes for nothing."""
        stream = client_frame(PING, b"x" * 200)[:20]
        assert reference(stream).ended is None
        assert outcome(stream).ended == ended_with(1002, "control frame is too long")

    def test_an_oversized_control_frame_is_a_protocol_error(self) -> None:
        """The limit is one of messages; RFC 6455, section 5.5, is what a long control frame breaks."""
        stream = client_frame(PING, b"x" * 400)
        assert reference(stream).ended == ended_with(1009, "frame with 400 bytes exceeds limit of 300 bytes")
        assert outcome(stream).ended == ended_with(1002, "control frame is too long")

    def test_close_inside_a_fragmented_message(self) -> None:
        """RFC 6455, section 5.4, lets control frames come between fragments; the peer's code is echoed."""
        stream = wire.text("half", fin=False) + wire.close(1000)
        assert reference(stream).sent.startswith(b"\x88\x1f\x03\xea")
        assert outcome(stream) == Outcome([], Close(1000), encode_close(1000))

    def test_a_ping_between_the_fragments_of_a_long_message(self) -> None:
        """The limit is one of messages; the library counts the ping with the fragments before it."""
        stream = wire.text("x" * 290, fin=False) + client_frame(PING, b"x" * 20) + client_frame(CONT)
        assert reference(stream).ended == ended_with(
            1009, "frame with 20 bytes after reading 290 bytes exceeds limit of 300 bytes"
        )
        assert outcome(stream).messages == ["x" * 290]
        nearly_full = wire.text("x" * 3, fin=False) + client_frame(PING, b"x" * 125) + client_frame(CONT)
        assert outcome(nearly_full, limit=3).messages == ["xxx"]

    def test_utf8_of_messages(self) -> None:
        """RFC 6455, section 8.1: invalid UTF-8 in a text fails the connection; the library leaves it to us."""
        stream = client_frame(TEXT, b"\xff")
        with pytest.raises(UnicodeDecodeError):
            reference(stream)
        assert outcome(stream).ended == ended_with(1007, "invalid UTF-8 in a text message")

    def test_a_new_message_over_the_limit_inside_another(self) -> None:
        """What breaks the sequence of frames is a protocol error whatever its length."""
        stream = wire.text("a", fin=False) + client_frame(TEXT, b"x" * 400)
        ended = reference(stream).ended
        assert ended is not None
        assert ended.code == 1009
        assert outcome(stream).ended == ended_with(1002, "expected a continuation frame")


def payloads(opcode: int) -> st.SearchStrategy[bytes]:
    short = st.text(max_size=20).map(str.encode) if opcode == TEXT else st.binary(max_size=20)
    return short | st.integers(100, LIMIT // 2).map(lambda length: b"x" * length)


data_frames = st.sampled_from([TEXT, BINARY]).flatmap(
    lambda opcode: payloads(opcode).map(lambda p: [(opcode, p, True)])
)
control_frame = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125), st.just(True))


@st.composite
def fragmented(draw: st.DrawFn) -> list[tuple[int, bytes, bool]]:
    """Draw a message cut anywhere, also inside characters, with control frames between its fragments."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(payloads(opcode))
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), min_size=1, max_size=5)))
    borders = [0, *cuts, len(payload)]
    frames: list[tuple[int, bytes, bool]] = []
    for index, (start, stop) in enumerate(itertools.pairwise(borders)):
        frames.append((CONT if index else opcode, payload[start:stop], index == len(cuts)))
        if index < len(cuts):
            frames += draw(st.lists(control_frame, max_size=2))
    return frames


conversation = st.lists(data_frames | control_frame.map(lambda frame: [frame]) | fragmented(), max_size=8).map(
    lambda groups: b"".join(
        client_frame(opcode, payload, fin=fin) for group in groups for opcode, payload, fin in group
    )
)
COMPARABLE = sorted(
    name
    for name in PROTOCOL_FAULTS
    if not any(word in name for word in ("UTF-8", "length", "inside a character", "70,000"))
)


class TestProperties:
    @settings(max_examples=300)
    @given(conversation, st.sampled_from(sorted(PROTOCOL_FAULTS)) | st.none(), st.booleans(), st.data())
    def test_lanes_agree_on_any_split(self, good: bytes, fault: str | None, tail: bool, data: st.DataObject) -> None:
        stream = good + (b"" if fault is None else PROTOCOL_FAULTS[fault][0]) + (wire.text("t") if tail else b"")
        cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
        whole = outcome(stream, kind=ReferenceFraming)
        assert outcome(stream) == whole
        assert outcome(stream, cuts=cuts) == whole
        assert outcome(stream, kind=ReferenceFraming, cuts=cuts) == whole

    @settings(max_examples=300)
    @given(st.binary(max_size=200), st.booleans(), st.data())
    def test_lanes_agree_on_any_bytes(self, stream: bytes, deflate: bool, data: st.DataObject) -> None:
        cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
        whole = outcome(stream, kind=ReferenceFraming, deflate=deflate)
        assert outcome(stream, deflate=deflate) == whole
        assert outcome(stream, cuts=cuts, deflate=deflate) == whole
        assert outcome(stream, kind=ReferenceFraming, cuts=cuts, deflate=deflate) == whole

    @settings(max_examples=300)
    @given(
        conversation, st.sampled_from(COMPARABLE) | st.none(), st.sampled_from([b"", wire.close(), wire.close(4001)])
    )
    def test_as_the_library_alone(self, good: bytes, fault: str | None, ending: bytes) -> None:
        stream = good + (b"" if fault is None else PROTOCOL_FAULTS[fault][0]) + ending
        ours, theirs = outcome(stream), reference(stream)
        assert ours.messages == theirs.messages
        assert pongs_of(ours) == pongs_of(theirs)
        assert code_of(ours) == code_of(theirs)


def pongs_of(result: Outcome) -> bytes:
    if result.ended is None:
        return result.sent
    return result.sent.removesuffix(encode_close(result.ended.code, result.ended.reason))


def code_of(result: Outcome) -> tuple[int, str] | None:
    return None if result.ended is None else (result.ended.code, result.ended.by)


def random_stream(source: random.Random, *, deflate: bool) -> bytes:
    """Return frames, a few of them damaged: far faster to make than Hypothesis's, for long runs."""
    frames: list[bytes] = []
    open_message = compressed = False
    for _ in range(source.randrange(1, 9)):
        kind = source.random()
        payload = source.choice([b"", b"a", "é€".encode(), b"\xe2\x82", b"x" * source.randrange(120, 132), b"\xff"])
        reserved = 0
        if kind < 0.15:
            opcode, fin = source.choice([PING, PONG, PING, CLOSE]), True
            payload = payload[:125] if opcode != CLOSE else source.choice([b"", b"\x03\xe8ok", b"\x03", b"\0\0"])
        else:
            fin = source.random() < 0.6
            opcode = CONT if open_message else source.choice([TEXT, BINARY])
            if not open_message:
                compressed = deflate and kind < 0.7
                reserved = 0x40 if compressed else 0
            if compressed:
                size = source.choice([1, 1, 1, LIMIT // 2, LIMIT + 1, LIMIT * 2])
                payload = wire.deflated((payload * size)[: LIMIT * 2]) + (b"" if fin else b"\0\0\xff\xff")
            open_message = not fin
        frame = bytearray(client_frame(opcode, payload, fin=fin, reserved=reserved))
        if source.random() < 0.1:
            frame[source.randrange(min(len(frame), 4))] ^= 1 << source.randrange(8)
        frames.append(bytes(frame))
    return b"".join(frames)


FUZZ_STREAMS = int(os.environ.get("WSDECO_FUZZ_STREAMS", "5000"))
PARTS = 10


@pytest.mark.parametrize("part", range(PARTS))
def test_lanes_agree_on_many_random_streams(part: int) -> None:
    """A few always; `WSDECO_FUZZ_STREAMS=50000` in continuous integration, 1000000 once before a release."""
    for seed in range(part, FUZZ_STREAMS, PARTS):
        source = random.Random(seed)  # noqa: S311 - the same in every run
        deflate = source.random() < 0.3
        stream = random_stream(source, deflate=deflate)
        cuts = sorted(source.randrange(len(stream) + 1) for _ in range(source.randrange(6)))
        slow = outcome(stream, kind=ReferenceFraming, deflate=deflate)
        assert outcome(stream, cuts=cuts, deflate=deflate) == slow, seed
