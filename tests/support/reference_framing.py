"""The reference for `Framing`: the same, with each whole frame taken by the `websockets` library's Sans-I/O `Protocol`.

What `Framing` takes inline, and its methods for data and control frames, are left out of it. Boundaries, what is
refused from a header, UTF-8 and inflating are what both have in common; `test_frames` holds them against the library
alone, and against zlib.
"""

from typing import cast

from websockets.exceptions import PayloadTooBig
from websockets.extensions import Extension
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side
from websockets.typing import ExtensionName

from tests.support.client_frames import client_frame
from wsdeco.messages import Data
from wsdeco.reasons import Close
from wsdeco.wire.deflate import Deflate
from wsdeco.wire.incoming import Framing

NEVER = -1
"""The largest message that is taken inline."""


class Inflating(Extension):
    """What `Deflate` is to `Framing`, as the library asks for it."""

    name = ExtensionName("permessage-deflate")

    def __init__(self, deflate: Deflate) -> None:
        self.deflate = deflate
        self.room = 0
        self.compressed = False

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self.compressed = frame.rsv1
        if not self.compressed or frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return frame
        return Frame(
            frame.opcode, b"".join(self.deflate.inflated([bytes(frame.data)], self.room, ends=frame.fin)), frame.fin
        )

    def encode(self, frame: Frame) -> Frame:
        return frame


class ReferenceFraming(Framing):
    """`Framing`, with the library for each frame."""

    def __init__(self, max_message_size: int, *, deflate: Deflate | None = None) -> None:
        super().__init__(max_message_size, deflate=deflate)
        # The library would count a control frame between two fragments as if it were one of them.
        self.library = Protocol(Side.SERVER, max_size=None)
        self.inflating = None if deflate is None else Inflating(deflate)
        self.library.extensions = [] if self.inflating is None else [self.inflating]
        self._inline_limit = NEVER

    def _take_deflated(self, first: int, size: int, payload: list[bytes | bytearray], messages: list[Data]) -> int:
        return self._take_frame(first, b"".join(payload), messages)

    def _take_frame(self, first: int, payload: bytes, messages: list[Data]) -> int:
        if self.inflating is not None:
            self.inflating.room = self._max_message_size - self._reassembled
        self.library.receive_data(client_frame(first & 0x0F, payload, fin=first >= 0x80, reserved=first & 0x70))
        replies = self.library.data_to_send()
        received, failed = self.library.close_rcvd, self.library.close_sent
        if received is not None:
            # The library refuses a close frame inside a fragmented message; RFC 6455, section 5.4, allows it.
            self._end(Close(int(received.code), received.reason))
        elif failed is not None:
            if isinstance(self.library.parser_exc, PayloadTooBig):
                raise self._too_big()
            self._end(Close(int(failed.code), failed.reason, by="server"))
        else:
            frame = cast(Frame, self.library.events_received()[0])
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                opcode, data = int(frame.opcode), bytes(frame.data)
                cost = self._take_data(opcode, data, messages, ends=frame.fin, rsv1=first & 0x40 != 0)
                self._inline_limit = NEVER
                return cost
            self._notice_control(frame, replies)
        return 1

    def _notice_control(self, frame: Frame, replies: list[bytes]) -> None:
        self.noticed = True
        if frame.opcode is Opcode.PONG and frame.data == self.ping_payload:
            self.ping_payload = None
            return
        self._active = True
        if self.hold_pongs:
            self._held_pong = b"".join(replies) or self._held_pong
        else:
            self._pongs = [*(self._pongs or ()), *replies]
