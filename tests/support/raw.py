"""A WebSocket client of bytes, for what no well-behaved client does."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from typing import Final, NamedTuple

from tests.support.stacks import Server, soon

_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="


class Opcode(IntEnum):
    """What a frame is (RFC 6455, section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Frame(NamedTuple):
    """A frame that has arrived."""

    opcode: int
    payload: bytes


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a frame as a client sends it, masked with zeros."""
    first = (0x80 if fin else 0) | opcode
    if len(payload) < 126:
        head = struct.pack("!BB", first, 0x80 | len(payload))
    elif len(payload) < 1 << 16:
        head = struct.pack("!BBH", first, 0x80 | 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, len(payload))
    return head + bytes(4) + payload


def text(message: str) -> bytes:
    return frame(Opcode.TEXT, message.encode())


def close(code: int | None, reason: str = "") -> bytes:
    return frame(Opcode.CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())


def handshake(path: str) -> bytes:
    lines = (
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {_KEY}",
        "Sec-WebSocket-Version: 13",
    )
    return "\r\n".join([*lines, "", ""]).encode()


class RawPeer:
    """The client's end of a TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.socket: socket.socket = writer.get_extra_info("socket")

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await soon(self.writer.drain())

    async def status(self) -> int:
        """Read the head of an HTTP response; return its status."""
        head = await soon(self.reader.readuntil(b"\r\n\r\n"))
        return int(head.split(b" ", 2)[1])

    async def frame(self) -> Frame | None:
        """Read one frame; `None` at the end of the connection."""
        try:
            first, second = await soon(self.reader.readexactly(2))
            length = second & 0x7F
            if length > 125:
                extended = await soon(self.reader.readexactly(2 if length == 126 else 8))
                length = int.from_bytes(extended)
            return Frame(first & 0x0F, await soon(self.reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def close_code(self) -> int | None:
        """Read up to a close frame; return its code, or `None` where the connection ends without one."""
        while (received := await self.frame()) is not None:
            if received.opcode == Opcode.CLOSE:
                return int.from_bytes(received.payload[:2])
        return None

    async def at_end(self) -> None:
        """Read to the end of the connection."""
        with suppress(ConnectionError):
            await soon(self.reader.read())

    def reset(self) -> None:
        """End the connection with RST."""
        if not self.writer.is_closing():
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()


@asynccontextmanager
async def dial(server: Server, *, receive_buffer: int | None = None) -> AsyncGenerator[RawPeer]:
    """Open a TCP connection to a server."""
    opened = socket.socket()
    opened.setblocking(False)
    if receive_buffer is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await soon(asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", server.port)))
        # The limit is what the stream reader holds before it stops reading: a peer that does not read holds nothing.
        reader, writer = await asyncio.open_connection(sock=opened, limit=1024 if receive_buffer else 1 << 20)
    except BaseException:
        opened.close()
        raise
    peer = RawPeer(reader, writer)
    try:
        yield peer
    finally:
        peer.reset()
        with suppress(ConnectionError):
            await soon(writer.wait_closed())


@asynccontextmanager
async def upgraded(server: Server, path: str, *, receive_buffer: int | None = None) -> AsyncGenerator[RawPeer]:
    """Open a WebSocket connection to a server."""
    async with dial(server, receive_buffer=receive_buffer) as peer:
        await peer.write(handshake(path))
        assert await peer.status() == 101
        yield peer
