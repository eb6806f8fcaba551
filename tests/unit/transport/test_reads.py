"""Routes with small limits read little at once."""

import asyncio
from typing import Any, Final

from tests.support import raw
from tests.support.raw import Opcode, upgraded
from tests.support.recording import Journal, Recorder
from tests.support.stacks import soon, uvicorn_serve
from wsdeco import App, Unknown
from wsdeco.protocol import WebSocketProtocol
from wsdeco.transport.reads import SmallReads

SMALL: Final[dict[str, Any]] = {"max_message_size": 1024, "max_inbox": 1024, "max_outbox": 1024, "ping_interval": None}


async def test_a_flood_at_a_hook_that_hangs() -> None:
    gate, journal = asyncio.Event(), Journal()
    largest = 0

    class Protocol(WebSocketProtocol):
        def data_received(self, data: bytes) -> None:
            nonlocal largest
            largest = max(largest, len(data))
            super().data_received(data)

    class Hanging(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            await gate.wait()
            self.journal.add(message)

    app = App()
    app.add("/ws", Hanging, factory=lambda headers: Hanging(journal), **SMALL)
    async with uvicorn_serve(Protocol, http="wsdeco.http:HttpProtocol")(app) as server, upgraded(server, "/ws") as peer:
        assert await journal.next() == "connect"
        peer.writer.write(raw.text("ab") * 20_000)
        gate.set()
        assert await journal.take(20_000) == ["ab"] * 20_000
        assert largest <= 16 * 1024
        peer.writer.write_eof()
        assert await journal.next() == Unknown()


async def test_a_peer_that_reads_slowly_gets_everything_and_resets() -> None:
    journal = Journal()

    class Sending(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            for _ in range(3000):
                await self.sink.send("x" * 1000)
            self.journal.add("sent")

    app = App()
    app.add("/ws", Sending, factory=lambda headers: Sending(journal), **SMALL)
    serve = uvicorn_serve("wsdeco.protocol:WebSocketProtocol", http="wsdeco.http:HttpProtocol")
    async with serve(app) as server, upgraded(server, "/ws", receive_buffer=4096) as peer:
        await peer.write(raw.text("go"))
        assert await journal.next() == "connect"
        for _ in range(3000):
            frame = await peer.frame()
            assert frame is not None
            assert (frame.opcode, len(frame.payload)) == (Opcode.TEXT, 1000)
        assert await journal.next() == "sent"
        peer.reset()
        assert await soon(journal.next()) == Unknown()


async def test_what_a_transport_tells_of_writing_is_passed_on() -> None:
    told: list[str] = []

    class Told(asyncio.Protocol):
        def pause_writing(self) -> None:
            told.append("pause")

        def resume_writing(self) -> None:
            told.append("resume")

    reads = SmallReads(Told(), bytearray(1))
    reads.pause_writing()
    reads.resume_writing()
    assert told == ["pause", "resume"]
