"""Large messages that take several turns of the loop to be sent, on a transport in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn.protocols.utils import ClientDisconnected
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from tests.support.client_frames import PING, client_frame
from tests.support.in_memory import Session, request, settle
from wsdeco.transport.protocol import WebSocketProtocol

TURNS = 3
BEYOND = "ж" * 600_000
COMPRESSED = "the same words again and again, " * 10_000
LARGE = pytest.mark.parametrize(
    ("message", "compressed"),
    [(BEYOND, False), (COMPRESSED, True), (COMPRESSED.encode(), True), (BEYOND[:80_000] + COMPRESSED[:140_000], True)],
    ids=["beyond ASCII", "compressed", "compressed bytes", "compressed, in part beyond ASCII"],
)


class Sending:
    """An application that accepts, and has a test send."""

    def __init__(self) -> None:
        self.send: Callable[[dict[str, Any]], Awaitable[None]]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.send = send
        await send({"type": "websocket.accept"})
        await asyncio.Event().wait()


class Peer:
    """A client, and its server's side of the connection."""

    def __init__(self, *, compressed: bool, context: bool) -> None:
        self.app = Sending()
        self.session = Session(self.app, ws_per_message_deflate=compressed)
        self.protocol: WebSocketProtocol = self.session.protocol
        self.transport = self.session.transport
        self.client = Protocol(Side.CLIENT, state=State.OPEN, max_size=None)
        self.offer = "permessage-deflate" if context else "permessage-deflate; server_no_context_takeover"
        if compressed:
            self.client.extensions = [PerMessageDeflate(not context, False, 12, 12)]

    def read(self) -> list[str | bytes]:
        """Return the messages, and the names of the control frames, that have been written."""
        self.client.receive_data(self.transport.take())
        assert self.client.parser_exc is None
        found: list[str | bytes] = []
        for event in self.client.events_received():
            assert isinstance(event, Frame)
            data = bytes(event.data)
            if event.opcode in (Opcode.TEXT, Opcode.BINARY):
                assert event.fin
                found.append(data.decode() if event.opcode is Opcode.TEXT else data)
            else:
                found.append(event.opcode.name)
        return found

    def begin(self, message: str | bytes | None) -> asyncio.Future[bool]:
        """Send a message as one does who waits."""
        if message is not None and not self.protocol.senders_wait:
            assert not self.protocol.send_message(message)
        return asyncio.ensure_future(self.protocol.send_in_turn(message))


async def opened(*, compressed: bool, context: bool = True) -> Peer:
    peer = Peer(compressed=compressed, context=context)
    await peer.session.open(request(f"sec-websocket-extensions: {peer.offer}"))
    return peer


@LARGE
@pytest.mark.parametrize("context", [True, False])
async def test_others_have_their_turn_and_nothing_is_mixed_up(
    message: str | bytes, compressed: bool, context: bool
) -> None:
    peer = await opened(compressed=compressed, context=context)
    assert peer.protocol.send_message("before, " * 20)
    await settle()
    sending = peer.begin(message)
    behind = peer.begin("behind, " * 20)
    for _ in range(TURNS - 1):
        assert not sending.done()
        # What does not wait goes in front.
        assert peer.protocol.send_message("meanwhile, " * 20)
        peer.transport.feed(client_frame(PING, b"here"))
        await asyncio.sleep(0)
    await settle()
    assert await sending
    assert await behind
    peer.protocol.send_message("after, " * 20)
    await settle()
    assert peer.read() == [
        "before, " * 20,
        *["meanwhile, " * 20, "PONG"] * (TURNS - 1),
        message,
        "behind, " * 20,
        "after, " * 20,
    ]
    await peer.session.end()


@LARGE
async def test_who_does_not_wait_has_it_written_at_once(message: str | bytes, compressed: bool) -> None:
    peer = await opened(compressed=compressed)
    assert not peer.protocol.write_message(message)
    sending = peer.begin(message)
    assert peer.protocol.send_message(message, at_once=True)
    assert peer.read() == [message]
    await settle()
    assert await sending
    peer.protocol.send_message("after, " * 20)
    await settle()
    assert peer.read() == [message, "after, " * 20]
    await peer.session.end()


@LARGE
async def test_nothing_is_encoded_for_a_peer_that_does_not_read(message: str | bytes, compressed: bool) -> None:
    peer = await opened(compressed=compressed)
    sending = peer.begin(message)
    peer.transport.fill()
    await settle()
    assert not sending.done()
    peer.transport.empty()
    await settle()
    assert await sending
    assert peer.read() == [message]
    await peer.session.end()


@LARGE
@pytest.mark.parametrize("how", ["close", "lose", "abort"])
async def test_the_end_of_the_connection_leaves_nothing(message: str | bytes, compressed: bool, how: str) -> None:
    peer = await opened(compressed=compressed)
    sending = [peer.begin(message), peer.begin(message)]
    await asyncio.sleep(0)
    ends: dict[str, Callable[[], None]] = {
        "close": peer.protocol.close,
        "lose": peer.transport.lose,
        "abort": peer.protocol.abort,
    }
    ends[how]()
    await settle()
    assert [await each for each in sending] == [False, False]
    assert peer.read() == (["CLOSE"] if how == "close" else [])
    await peer.session.end()


@LARGE
async def test_a_sender_that_is_cancelled_sends_nothing(message: str | bytes, compressed: bool) -> None:
    peer = await opened(compressed=compressed)
    sending = peer.begin(message)
    behind = peer.begin("behind")
    await asyncio.sleep(0)
    sending.cancel()
    await settle()
    assert await behind
    assert peer.read() == ["behind"]
    await peer.session.end()


@pytest.mark.parametrize("compressed", [False, True])
async def test_what_cannot_be_encoded_fails_alone(compressed: bool) -> None:
    peer = await opened(compressed=compressed)
    sending = peer.begin(BEYOND + "\ud800")
    behind = peer.begin("behind")
    await settle()
    with pytest.raises(UnicodeEncodeError):
        await sending
    assert await behind
    with pytest.raises(UnicodeEncodeError):
        peer.protocol.send_message(BEYOND + "\ud800", at_once=True)
    assert peer.read() == ["behind"]
    await peer.session.end()


@LARGE
async def test_an_application_waits_for_it(message: str | bytes, compressed: bool) -> None:
    peer = await opened(compressed=compressed)
    event = {"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message}
    sending = asyncio.ensure_future(peer.app.send(event))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not sending.done()
    await settle()
    assert sending.done()
    assert peer.read() == [message]
    sending = asyncio.ensure_future(peer.app.send(event))
    await asyncio.sleep(0)
    peer.protocol.close()
    with pytest.raises(ClientDisconnected):
        await sending
    await peer.session.end()


async def test_two_connections_share_the_turns() -> None:
    first = await opened(compressed=False)
    second = Peer(compressed=False, context=True)
    second.session = Session(second.app, state=first.session.state)
    second.protocol, second.transport = second.session.protocol, second.session.transport
    await second.session.open()
    sending = [peer.begin(BEYOND) for peer in (first, second)]
    await settle()
    assert [await each for each in sending] == [True, True]
    assert [peer.read() for peer in (first, second)] == [[BEYOND]] * 2
    for peer in (first, second):
        await peer.session.end()


@pytest.mark.parametrize("size", [0, 1, 10_000])
async def test_what_is_large_and_takes_no_turns_is_written_at_once(size: int) -> None:
    for compressed, large in ((False, "ж" * 250_000), (False, bytes(3_000_000)), (True, bytes(120_000))):
        peer = await opened(compressed=compressed)
        assert peer.protocol.send_message(large[size:])
        assert peer.read() == [large[size:]]
        await settle()
        await peer.session.end()
