"""A member that leaves while others send to it: that is its end, and not theirs."""

import asyncio
import logging
from collections.abc import AsyncGenerator

import pytest

from tests.support.recording import Journal, Recorder
from tests.support.stacks import Peer, Server, Stack, soon
from wsdeco import Address, App, ConnectionClosed, DisconnectReason, Sink, Unknown
from wsdeco.connection.departures import advised

pytestmark = pytest.mark.usefixtures("no_errors_logged")


@pytest.fixture(autouse=True)
def nobody_advised() -> None:
    advised.clear()


class Manager(Recorder):
    """As the tutorials have it: one loop over all sinks."""

    gone: Sink

    async def send_to_all(self, message: str) -> None:
        await self.sink.send(message)
        await self.gone.send(message)


class InOnMessage(Manager):
    async def on_message(self, message: str | bytes) -> None:
        await self.send_to_all(str(message))


class InAStream(Manager):
    async def on_message(self, message: str | bytes) -> AsyncGenerator[str]:  # type: ignore[override]
        yield str(message)
        await self.gone.send("x")


class InAGroup(Manager):
    async def on_message(self, message: str | bytes) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.send_to_all(str(message)))
            group.create_task(self.gone.send("x"))


class InATask(Manager):
    async def on_message(self, message: str | bytes) -> None:
        await asyncio.wait([self.sink.create_task(self.send_to_all(str(message)), name="news")])


class InOnConnect(Manager):
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        await super().on_connect(addr, sink)
        await self.gone.send("hello")

    async def on_message(self, message: str | bytes) -> str | bytes:
        return message


async def leave(app: App, server: Server) -> None:
    """Connect to /gone, and leave."""
    async with server.connect("/gone") as peer:
        await peer.close()


async def gone_sink(app: App, server: Server) -> Sink:
    journal = Journal()

    class Gone(Recorder):
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            journal.add(self.sink)

    app.add("/gone", Gone, factory=lambda headers: Gone(Journal()))
    await leave(app, server)
    sink: Sink = await journal.next()
    return sink


async def echoed(peer: Peer, message: str) -> None:
    await peer.send(message)
    assert await soon(peer.receive()) == message


def advice(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "another connection" in each.getMessage()]


@pytest.mark.parametrize("handler", [InOnMessage, InAStream, InAGroup, InATask, InOnConnect])
async def test_a_member_that_leaves_ends_nobody_who_sends_to_it(
    stack: Stack, handler: type[Manager], caplog: pytest.LogCaptureFixture
) -> None:
    app = App()
    journal = Journal()
    app.add("/ws", handler, factory=lambda headers: handler(journal))
    async with stack.serve(app) as server:
        handler.gone = await gone_sink(app, server)
        caplog.set_level(logging.WARNING, "wsdeco")
        async with server.connect("/ws") as peer:
            for message in ("one", "two"):
                await echoed(peer, message)
            await peer.close()
        assert await journal.next() == "connect"
        assert await journal.next() == stack.peer_closed(1000)
    assert len(advice(caplog)) == 1
    assert "ws.room(name).broadcast(...)" in advice(caplog)[0]


async def test_a_member_that_leaves_while_another_says_goodbye(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    journal = Journal()

    class Goodbye(Manager):
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            self.journal.add(reason)
            await self.gone.send("bye")

    app.add("/ws", Goodbye, factory=lambda headers: Goodbye(journal))
    async with stack.serve(app) as server:
        Goodbye.gone = await gone_sink(app, server)
        caplog.set_level(logging.WARNING, "wsdeco")
        async with server.connect("/ws") as peer:
            await peer.close()
        assert await journal.take(2) == ["connect", stack.peer_closed(1000)]
    assert [each.split(" stopped")[0] for each in advice(caplog)] == ["Goodbye.on_disconnect"]


async def test_its_own_end_is_no_news_for_a_hook(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    journal = Journal()

    class Talker(Recorder):
        async def on_disconnect(self, reason: DisconnectReason) -> None:
            self.journal.add(reason)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.sink.send("bye"))

    app.add("/ws", Talker, factory=lambda headers: Talker(journal))
    async with stack.serve(app) as server:
        async with server.connect("/ws") as peer:
            await peer.close()
        assert await journal.take(2) == ["connect", stack.peer_closed(1000)]
    assert advice(caplog) == []


async def test_a_group_with_another_failure_in_it_is_a_failure(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    app = App()
    journal = Journal()

    class Mixed(Recorder):
        async def on_message(self, message: str | bytes) -> None:
            raise ExceptionGroup("both", [ConnectionClosed(Unknown()), ValueError("x")])

    app.add("/ws", Mixed, factory=lambda headers: Mixed(journal))
    async with stack.serve(app) as server, server.connect("/ws") as peer:
        await peer.send("x")
        with pytest.raises(ConnectionClosed, match="1011"):
            await peer.receive()
    assert [each.levelname for each in caplog.records if each.name == "wsdeco"] == ["ERROR"]
    caplog.clear()
