"""Peers that leave behind more messages than the inbox takes: a full inbox does not hide the end."""

import asyncio
from typing import Any, Final

import pytest

from tests.support import raw
from tests.support.raw import RawPeer, upgraded
from tests.support.recording import Journal, Recorder
from tests.support.stacks import DIRECT, soon, until
from wsdeco import App, Close, Unknown
from wsdeco.testing import ManualClock

pytestmark = pytest.mark.usefixtures("no_errors_logged")

FLOOD: Final = 2000


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


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_peer_leaves_a_hook_that_hangs_with_a_full_inbox(end: str) -> None:
    app, journal, gate = App(), Journal(), asyncio.Event()
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


async def test_what_a_peer_leaves_behind_has_its_grace() -> None:
    clock = ManualClock()
    app, journal, gate = App(clock=clock), Journal(), asyncio.Event()
    limits: dict[str, Any] = {"max_inbox": 1024, "ping_interval": None, "disconnect_grace": 5}
    app.add("/ws", Hanging, factory=lambda headers: Hanging(journal, gate), **limits)
    async with DIRECT.serve(app) as server, upgraded(server, "/ws") as peer:
        await flood(peer)
        assert await journal.take(2) == ["connect", "hangs"]
        before = clock.pending
        peer.writer.write_eof()
        await until(lambda: clock.pending > before)
        await clock.advance(4.9)
        assert journal.ended()
        await clock.advance(0.2)
        assert await journal.next() == Unknown()


@pytest.mark.parametrize("end", ["fin", "close"])
async def test_what_a_peer_leaves_behind_is_handled_within_the_grace(end: str) -> None:
    clock = ManualClock()
    app, journal, gate = App(clock=clock), Journal(), asyncio.Event()
    limits: dict[str, Any] = {"max_inbox": 1024, "ping_interval": None, "disconnect_grace": 5}
    app.add("/ws", Hanging, factory=lambda headers: Hanging(journal, gate), **limits)
    async with DIRECT.serve(app) as server, upgraded(server, "/ws") as peer:
        await flood(peer)
        assert await journal.take(2) == ["connect", "hangs"]
        before = clock.pending
        if end == "close":
            await peer.write(raw.close(4001, "bye"))
        peer.writer.write_eof()
        await until(lambda: clock.pending > before)
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
