"""Peers that leave behind more messages than the inbox takes: a full inbox does not hide the end."""

import asyncio
import ctypes
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from tests.support import raw
from tests.support.middleware import Looking
from tests.support.raw import Opcode, RawPeer, upgraded
from tests.support.recording import Journal, Recorder
from tests.support.stacks import DIRECT, soon, until
from tests.support.wire import CountingClock
from wsdeco import App, Close, Unknown, handle_socket

pytestmark = pytest.mark.usefixtures("no_errors_logged")

FLOOD: Final = 2000

MakeApp = Callable[..., App]


def directly(**options: Any) -> App:
    return App(**options)


def behind_middleware(**options: Any) -> App:
    return App(middleware=[Middleware(Looking)], **options)


each_channel = pytest.mark.parametrize("make_app", [directly, behind_middleware])


class Hanging(Recorder):
    def __init__(self, journal: Journal, gate: asyncio.Event) -> None:
        super().__init__(journal)
        self.gate = gate

    async def on_message(self, message: str | bytes) -> None:
        if message == "0":
            self.journal.add("hangs")
        await self.gate.wait()
        self.journal.add(message)


async def flood(peer: RawPeer) -> None:
    # More than any inbox here takes, and less than the system's buffers.
    await peer.write(b"".join(raw.text(str(number)) for number in range(FLOOD)))


@each_channel
@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_peer_leaves_a_hook_that_hangs_with_a_full_inbox(make_app: MakeApp, end: str) -> None:
    app, journal, gate = make_app(), Journal(), asyncio.Event()
    limits: dict[str, Any] = {"max_inbox": 1024, "ping_interval": None, "disconnect_grace": 0}
    app.add("/ws", Hanging, factory=lambda headers: Hanging(journal, gate), **limits)
    async with DIRECT.serve(app) as server, upgraded(server, "/ws") as peer:
        await flood(peer)
        assert await journal.take(2) == ["connect", "hangs"]
        if end == "fin":
            peer.writer.write_eof()
        else:
            peer.reset()
        assert await journal.next() == Unknown()


@each_channel
async def test_what_a_peer_leaves_behind_has_its_grace(make_app: MakeApp) -> None:
    clock = CountingClock()
    app, journal, gate = make_app(clock=clock), Journal(), asyncio.Event()
    limits: dict[str, Any] = {"max_inbox": 1024, "ping_interval": None, "disconnect_grace": 5}
    app.add("/ws", Hanging, factory=lambda headers: Hanging(journal, gate), **limits)
    async with DIRECT.serve(app) as server, upgraded(server, "/ws") as peer:
        await flood(peer)
        assert await journal.take(2) == ["connect", "hangs"]
        before = clock.made
        peer.writer.write_eof()
        await until(lambda: clock.made > before)
        await clock.advance(4.9)
        assert journal.ended()
        await clock.advance(0.2)
        assert await journal.next() == Unknown()


@each_channel
@pytest.mark.parametrize("end", ["fin", "close"])
async def test_what_a_peer_leaves_behind_is_handled_within_the_grace(make_app: MakeApp, end: str) -> None:
    clock = CountingClock()
    app, journal, gate = make_app(clock=clock), Journal(), asyncio.Event()
    limits: dict[str, Any] = {"max_inbox": 1024, "ping_interval": None, "disconnect_grace": 5}
    app.add("/ws", Hanging, factory=lambda headers: Hanging(journal, gate), **limits)
    async with DIRECT.serve(app) as server, upgraded(server, "/ws") as peer:
        await flood(peer)
        assert await journal.take(2) == ["connect", "hangs"]
        before = clock.made
        if end == "close":
            await peer.write(raw.close(4001, "bye"))
        peer.writer.write_eof()
        await until(lambda: clock.made > before)
        gate.set()
        assert await journal.take(FLOOD) == [str(number) for number in range(FLOOD)]
        assert await journal.next() == (Close(4001, "bye", by="client") if end == "close" else Unknown())
        await soon(peer.at_end())


async def test_a_peer_leaves_between_two_floods() -> None:
    app, journal, gate = App(), Journal(), asyncio.Event()
    app.add("/ws", Hanging, factory=lambda headers: Hanging(journal, gate), max_inbox=1024, ping_interval=None)
    async with DIRECT.serve(app) as server, upgraded(server, "/ws") as peer, upgraded(server, "/ws") as other:
        for each in (peer, other):
            await flood(each)
        gate.set()
        assert len(await journal.take(4 + 2 * FLOOD)) == 4 + 2 * FLOOD
        gate.clear()
        await flood(peer)
        assert await journal.next() == "hangs"
        gate.set()
        assert len(await journal.take(FLOOD)) == FLOOD


def few() -> bytes:
    # More than the inbox of the channel takes here, and less than what is read from the network.
    return b"".join(raw.text(str(number)) for number in range(100))


@each_channel
async def test_a_peer_closes_behind_messages_that_have_arrived_but_do_not_fit_the_inbox(make_app: MakeApp) -> None:
    app, journal, gate = make_app(), Journal(), asyncio.Event()
    limits: dict[str, Any] = {"max_inbox": 1024, "ping_interval": None, "disconnect_grace": 0}
    app.add("/ws", Hanging, factory=lambda headers: Hanging(journal, gate), **limits)
    async with DIRECT.serve(app) as server, upgraded(server, "/ws") as peer:
        await peer.write(few() + raw.close(4001, "bye"))
        assert await journal.take(2) == ["connect", "hangs"]
        assert await journal.next() == Close(4001, "bye", by="client")


async def test_a_peer_has_left_before_the_handler_is_called() -> None:
    journal, gate = Journal(), asyncio.Event()

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        await until(lambda: websocket.scope["extensions"]["wsdeco"].connection.end is not None)
        await handle_socket(websocket, Hanging(journal, gate), max_inbox=1024, disconnect_grace=0)

    app = Starlette(routes=[WebSocketRoute("/ws", endpoint)])
    async with DIRECT.serve(app) as server, upgraded(server, "/ws") as peer:
        await peer.write(few() + raw.close(4001, "bye"))
        assert await journal.take(2) == ["connect", "hangs"]
        assert await journal.next() == Close(4001, "bye", by="client")


async def test_a_server_that_stops_does_not_wait_for_room_in_the_inbox() -> None:
    # As a function of Starlette's under uvicorn, whose connections are not those of an app that is shut down.
    journal, gate = Journal(), asyncio.Event()

    async def endpoint(websocket: WebSocket) -> None:
        await handle_socket(websocket, Hanging(journal, gate), max_inbox=1024, close_timeout=0.1)

    app = Starlette(routes=[WebSocketRoute("/ws", endpoint)])
    async with DIRECT.serve(app) as server, upgraded(server, "/ws") as peer:
        await peer.write(few())
        assert await journal.take(2) == ["connect", "hangs"]
        await soon(server.stop())
        assert await peer.close_code() == 1012
        assert await journal.next() == Close(1012, "", by="server")


# Peers that vanish, and say nothing.


def vanish(peer: RawPeer) -> None:
    """Drop what arrives for the peer in front of its TCP, as the network does once a peer has vanished."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    so_attach_filter = 26
    peer.socket.setsockopt(socket.SOL_SOCKET, so_attach_filter, program)


def pinging(make_app: MakeApp, journal: Journal, gate: asyncio.Event) -> App:
    app = make_app()
    limits: dict[str, Any] = {"max_inbox": 1024, "disconnect_grace": 0, "ping_interval": 0.1, "ping_timeout": 0.1}
    app.add("/ws", Hanging, factory=lambda headers: Hanging(journal, gate), **limits)
    return app


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is acknowledged")
@each_channel
async def test_a_peer_vanishes_behind_a_full_inbox(make_app: MakeApp) -> None:
    journal, gate = Journal(), asyncio.Event()
    async with DIRECT.serve(pinging(make_app, journal, gate)) as server, upgraded(server, "/ws") as peer:
        await flood(peer)
        assert await journal.take(2) == ["connect", "hangs"]
        vanish(peer)
        assert await journal.next() == Unknown()


async def test_a_peer_that_cannot_be_read_but_lives_is_not_lost() -> None:
    journal, gate = Journal(), asyncio.Event()
    async with DIRECT.serve(pinging(directly, journal, gate)) as server, upgraded(server, "/ws") as peer:
        await flood(peer)
        assert await journal.take(2) == ["connect", "hangs"]
        for _ in range(6):
            frame = await peer.frame()
            assert frame is not None
            assert frame.opcode == Opcode.PING
        assert journal.ended()
        gate.set()
        assert len(await journal.take(FLOOD)) == FLOOD
