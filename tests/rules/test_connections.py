"""Who is here: the open connections of an app, one by one, on every server."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.recording import Journal, Recorder
from tests.support.stacks import DIRECT, MEMORY, Stack, until
from wsdeco import Address, App, RouteError, Sink, WebSocketUpgrade, handle_upgrade
from wsdeco.channels.observer import Observer
from wsdeco.routing.application import context_of
from wsdeco.testing import ManualClock


class Member(Recorder):
    def __init__(self, journal: Journal, app: App, gate: asyncio.Event) -> None:
        super().__init__(journal)
        self.app = app
        self.gate = gate

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        await super().on_connect(addr, sink)
        for name in ("tea", "user:7"):
            self.app.room(name).join(sink)

    async def on_message(self, message: str | bytes) -> str:
        await self.gate.wait()
        return f"{message!r}"


async def test_who_is_here(stack: Stack) -> None:
    journal, gate, clock = Journal(), asyncio.Event(), ManualClock()
    app = App(clock=clock)
    # granian may still be writing the upgrade when the clock is put forward.
    app.add("/rooms/{room}", Member, factory=lambda _: Member(journal, app, gate), send_timeout=None)
    app.add("/other", Recorder, factory=lambda _: Recorder(journal), send_timeout=None)
    assert app.connections() == []
    async with stack.serve(app) as server, server.connect("/rooms/7") as peer, server.connect("/other"):
        assert await journal.take(2) == ["connect", "connect"]
        await clock.advance(60)
        await peer.send("hello")
        await peer.send("you")
        await until(lambda: app.connections("/rooms/{room}")[0].messages_received == 2)
        (info,) = app.connections("/rooms/{room}")
        assert (info.path, info.rooms) == ("/rooms/{room}", ("tea", "user:7"))
        assert info.addr == info.sink.addr
        assert info.since is not None
        assert abs(datetime.now(UTC) - info.since - timedelta(seconds=60)) < timedelta(seconds=30)
        assert (info.bytes_received, info.messages_sent, info.bytes_sent) == (8, 0, 0)
        assert info.inbox == 1
        assert info.inbox_size > 0
        assert info.unsent == 0
        gate.set()
        assert [await peer.receive(), await peer.receive()] == ["'hello'", "'you'"]
        await until(lambda: app.connections("/rooms/{room}")[0].messages_sent == 2)
        (info,) = app.connections("/rooms/{room}")
        assert (info.messages_sent, info.bytes_sent, info.inbox, info.inbox_size) == (2, 12, 0, 0)
        assert sorted(each.path for each in app.connections()) == ["/other", "/rooms/{room}"]
        info.sink.close_nowait(4001, "bye")
        assert [each.path for each in app.connections()] == ["/other"]
    await until(lambda: app.connections() == [])


async def test_what_was_not_counted_is_not_known() -> None:
    app = App()
    context_of(app).observe(Observer())

    @app.route("/ws")
    async def endpoint(upgrade: WebSocketUpgrade) -> None:
        await handle_upgrade(upgrade, Recorder(Journal()))

    async with MEMORY.serve(app) as server, server.connect("/ws"):
        (info,) = app.connections()
        assert (info.path, info.rooms, info.round_trip) == ("/ws", (), None)
        counted = info.since, info.messages_received, info.bytes_received, info.messages_sent, info.bytes_sent
        assert counted == (None,) * 5
        async with server.connect("/ws"):
            await until(lambda: {each.messages_received for each in app.connections("/ws")} == {None, 0})
    with pytest.raises(RouteError, match="/nowhere"):
        app.connections("/nowhere")


@pytest.mark.parametrize("ping_timeout", [None, 20])
async def test_round_trips_are_measured_for_who_asks(ping_timeout: float | None) -> None:
    journal = Journal()
    app = App()
    limits: dict[str, Any] = {"ping_interval": 0.03, "ping_timeout": ping_timeout}
    app.add("/ws", Recorder, factory=lambda _: Recorder(journal), **limits)
    async with DIRECT.serve(app) as server, server.connect("/ws"):
        assert await journal.next() == "connect"
        assert [each.round_trip for each in app.connections()] == [None]
        await until(lambda: app.connections()[0].round_trip is not None)
        assert 0 <= (app.connections()[0].round_trip or 0) < 10


async def test_a_connection_with_types_waits_in_no_room() -> None:
    app = App()

    class Asks:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            await sink.accept()
            _ = sink.create_task(sink.ask({"type": "question"}, dict[str, Any]))

        async def on_message(self, message: dict[str, Any]) -> None: ...

    app.add("/ws", Asks)
    async with MEMORY.serve(app) as server, server.connect("/ws") as peer:
        assert "question" in str(await peer.receive())
        assert [each.rooms for each in app.connections()] == [()]


async def test_without_pings_there_is_no_round_trip() -> None:
    journal = Journal()
    app = App()
    app.add("/ws", Recorder, factory=lambda _: Recorder(journal), ping_interval=None)
    async with DIRECT.serve(app) as server, server.connect("/ws"):
        assert await journal.next() == "connect"
        assert [each.round_trip for each in app.connections()] == [None]
