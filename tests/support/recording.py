"""What tests of whole servers share: handlers that write down what they see, and clients that wait their turn."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from tests.support.stacks import WAIT, Peer, Server, soon
from wsdeco import Address, ConnectionClosed, DisconnectReason, Sink
from wsdeco.testing import HandshakeRefused


def take_errors(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return logger and message of the errors logged so far, and forget them."""
    errors = [(record.name, record.getMessage()) for record in caplog.records if record.levelno >= logging.ERROR]
    caplog.clear()
    return errors


class Journal:
    """What hooks have seen, in order."""

    def __init__(self) -> None:
        self._entries: asyncio.Queue[object] = asyncio.Queue()

    def add(self, entry: object) -> None:
        self._entries.put_nowait(entry)

    async def next(self) -> Any:
        return await soon(self._entries.get())

    async def take(self, number: int) -> list[Any]:
        return [await self.next() for _ in range(number)]

    def ended(self) -> bool:
        """Whether nothing has come beyond what the test has taken."""
        return self._entries.empty()


class Recorder:
    """A handler that writes everything down; a base for those of the tests."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.sink: Sink

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink
        self.journal.add("connect")

    async def on_message(self, message: str | bytes) -> str | bytes | None:
        self.journal.add(message)
        return None

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        self.journal.add(reason)


async def refusal(server: Server, path: str, **options: Any) -> HandshakeRefused:
    """Return how a handshake is refused."""
    with pytest.raises(HandshakeRefused) as caught:
        async with server.connect(path, **options):
            pass
    return caught.value


async def refusal_with_a_slot(server: Server, path: str) -> HandshakeRefused:
    """Return how it is refused as soon as a slot is free: it is, soon after the refusal before it."""
    async with asyncio.timeout(WAIT):
        while (refused := await refusal(server, path)).status == 503:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.001)
    return refused


@asynccontextmanager
async def admitted(server: Server, path: str) -> AsyncGenerator[Peer]:
    """Connect as soon as a slot is free: it is, soon after the last `on_disconnect`."""
    async with AsyncExitStack() as connection:
        async with asyncio.timeout(WAIT):
            while True:
                try:
                    peer = await connection.enter_async_context(server.connect(path))
                    break
                except HandshakeRefused as exc:
                    if exc.status != 503:
                        raise
                    await asyncio.sleep(0.001)
        yield peer


async def closing(peer: Peer) -> DisconnectReason:
    """Return why the server closes, which it does before it sends anything."""
    with pytest.raises(ConnectionClosed) as caught:
        await peer.receive()
    return caught.value.reason
