"""What has ended is gone at once, whatever ended it: with the garbage collector off, nothing of it is left."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from tests.support.stacks import DIRECT, HYPERCORN, MEMORY, SANSIO, WSPROTO, Peer, Server, Stack, soon, until
from wsdeco import Address, App, ConnectionClosed, DisconnectReason, Sink
from wsdeco.channels.base import Channel
from wsdeco.connection.lifecycle import Lifecycle
from wsdeco.testing import HandshakeRefused, ManualClock, connect

STACKS: Final = (MEMORY, DIRECT, SANSIO, WSPROTO, HYPERCORN)


class Held:
    """What a hook has in a variable: as long as it is there, so are the messages beside it."""


class Base:
    """A handler whose hooks hold something."""

    def __init__(self) -> None:
        self.sink: Sink

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink

    async def on_message(self, message: str) -> object:
        return None

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        pass


class FailingInit(Base):
    def __init__(self) -> None:
        held = Held()
        raise RuntimeError(held)


class Refusing(Base):
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.held = Held()
        raise HTTPException(401)


class FailingConnect(Base):
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink
        await sink.send("x")
        self.held = held = Held()
        raise RuntimeError(held)


class FailingMessage(Base):
    async def on_message(self, message: str) -> object:
        held = Held()
        nothing: dict[Held, object] = {}
        try:
            return nothing[held]
        except KeyError as exc:
            raise RuntimeError(held) from exc


class FailingReply(Base):
    async def on_message(self, message: str) -> object:
        return Held()


class FailingStream(Base):
    async def on_message(self, message: str) -> AsyncGenerator[str]:  # type: ignore[override]
        held = Held()
        yield "x"
        raise RuntimeError(held)


class FailingGroup(Base):
    async def on_message(self, message: str) -> object:
        # Not by a TaskGroup, which keeps a cycle of its own before Python 3.13.
        held = Held()
        raise ExceptionGroup("two", [RuntimeError(held), KeyError(held)])


class FailingDisconnect(Base):
    async def on_disconnect(self, reason: DisconnectReason) -> None:
        held = Held()
        raise RuntimeError(held)


class FailingTwice(FailingMessage, FailingDisconnect):
    pass


class Closing(Base):
    async def on_message(self, message: str) -> object:
        self.held = Held()
        await self.sink.close(4000)
        return None


class Waiting(Base):
    async def on_message(self, message: str) -> object:
        held = Held()
        await asyncio.Event().wait()
        return held


class Quiet(Base):
    pass


class Sending(Base):
    async def on_message(self, message: str) -> object:
        held = Held()
        while True:
            await asyncio.gather(*(self.sink.send("x" * 100_000) for _ in range(3)))
            if self.sink.closed:
                return held


class LateSend(Base):
    async def on_disconnect(self, reason: DisconnectReason) -> None:
        self.held = Held()
        await self.sink.send("x")


async def close(peer: Peer, server: Server, clock: ManualClock) -> None:
    await peer.close()


async def drop(peer: Peer, server: Server, clock: ManualClock) -> None:
    await peer.drop()


async def speak(peer: Peer, server: Server, clock: ManualClock) -> None:
    await peer.send("xxx")
    await listen(peer, server, clock)


async def speak_and_drop(peer: Peer, server: Server, clock: ManualClock) -> None:
    await peer.send("x")
    await peer.receive()
    await peer.drop()


async def listen(peer: Peer, server: Server, clock: ManualClock) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await peer.receive()


async def time_passes(peer: Peer, server: Server, clock: ManualClock) -> None:
    await peer.send("x")
    await until(lambda: clock.pending > 0)
    await clock.advance(60)
    await listen(peer, server, clock)


async def hook_runs_then(peer: Peer, server: Server, clock: ManualClock) -> None:
    await peer.send("x")
    await until(lambda: any(type(each) is Held for each in gc.get_objects()))


async def stuck_and_closed(peer: Peer, server: Server, clock: ManualClock) -> None:
    await hook_runs_then(peer, server, clock)
    await peer.close()


async def stuck_and_timed_out(peer: Peer, server: Server, clock: ManualClock) -> None:
    await hook_runs_then(peer, server, clock)
    await clock.advance(60)
    await listen(peer, server, clock)


async def shutdown(peer: Peer, server: Server, clock: ManualClock) -> None:
    await asyncio.gather(server.stop(), listen(peer, server, clock))


class End(NamedTuple):
    name: str
    handler: type
    act: Callable[[Peer, Server, ManualClock], Awaitable[None]]
    limits: Mapping[str, Any] = MappingProxyType({})


ENDS: Final = (
    End("the peer closes", Quiet, close),
    End("the peer vanishes", Quiet, drop),
    End("its own close", Closing, speak),
    End("a message that is too big", Quiet, speak, {"max_message_size": 1, "max_inbox": 1}),
    End("__init__ fails", FailingInit, listen),
    End("on_connect refuses", Refusing, listen),
    End("on_connect fails", FailingConnect, listen),
    End("on_message fails", FailingMessage, speak),
    End("a reply that cannot be sent", FailingReply, speak),
    End("a stream fails", FailingStream, speak),
    End("a group of exceptions", FailingGroup, speak),
    End("on_disconnect fails", FailingDisconnect, close),
    End("on_message and on_disconnect fail", FailingTwice, speak),
    End("a send in on_disconnect", LateSend, close),
    End("the duration is over", Quiet, time_passes, {"max_connection_duration": 30}),
    End("the peer closes under a hook", Waiting, stuck_and_closed, {"disconnect_grace": 0}),
    End("the duration is over under a hook", Waiting, stuck_and_timed_out, {"max_connection_duration": 30}),
    End("the peer vanishes under sends", Sending, speak_and_drop),
    End("the server ends", Quiet, shutdown),
)


_KINDS: Final[set[type]] = {Channel, Lifecycle, Held, Base}
_older: Final[list[object]] = []
"""What tests before in this process have left: a variable of a fixture, a frame that pytest keeps for its report."""


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Switch the collector off, and the log, whose records pytest keeps with their tracebacks."""
    monkeypatch.setattr(logging.getLogger("wsdeco"), "disabled", True)
    gc.collect()
    gc.disable()
    # Held until the test is over, so that nothing new is taken for one of them.
    _older[:] = (each for each in gc.get_objects() if not _KINDS.isdisjoint(type(each).__mro__))
    yield
    _older.clear()
    gc.enable()


def left(handler: type) -> list[str]:
    kinds = {*_KINDS, handler}
    older = set(map(id, _older))
    return sorted(
        type(each).__name__
        for each in gc.get_objects()
        if not kinds.isdisjoint(type(each).__mro__) and id(each) not in older
    )


async def connect_and_end(server: Server, end: End, clock: ManualClock) -> None:
    with contextlib.suppress(HandshakeRefused):
        async with server.connect("/ws") as peer:
            await soon(end.act(peer, server, clock))


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.name)
@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
async def test_nothing_is_left_of_what_has_ended(stack: Stack, end: End) -> None:
    if stack is HYPERCORN and end.act is shutdown:
        pytest.skip("it cancels by a TaskGroup, whose cycle keeps what the cancellation went through")
    clock = ManualClock()
    app = App(clock=clock)
    app.add("/ws", end.handler, **end.limits)
    async with stack.serve(app) as server:
        await connect_and_end(server, end, clock)
        for _ in range(50):
            if not left(end.handler):
                break
            await asyncio.sleep(0.005)
        assert left(end.handler) == []


async def test_nothing_is_left_of_what_the_server_has_cancelled() -> None:
    app = App(clock=ManualClock())
    app.add("/ws", Quiet)
    calls: list[asyncio.Task[None]] = []

    async def in_a_task(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(asyncio.create_task(app(scope, receive, send)))
        await asyncio.wait(calls)

    async with connect(in_a_task, "/ws"):
        calls.pop().cancel()
        await until(lambda: not left(Quiet))
