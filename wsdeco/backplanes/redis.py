"""Redis, or what speaks its protocol, by redis-py: one connection to publish and one to listen."""

# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import ConnectionPool
from redis.exceptions import AuthenticationError, ResponseError

from wsdeco.backplanes.link import BrokerRefusal, Done, Link, Message, Receive

__all__ = ["RedisBroker"]

_MAX_PAYLOAD: Final = 8 * 1024 * 1024
"""Bytes of a message. Redis would take more, but ends listeners that have more than this to read for a minute."""


class RedisBroker:
    """A Redis server.

    Attributes:
        name: What it is called in the log.
        max_payload: The largest message it takes, in bytes.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.max_payload = _MAX_PAYLOAD
        # RESP2, which every server speaks; what waits is limited by the supervisor.
        pools: Any = ConnectionPool
        self._pool = pools.from_url(url, protocol=2, socket_timeout=None, socket_connect_timeout=None)

    async def connect(self, receive: Receive) -> Link:
        """Return a new connection."""
        link = _RedisLink(receive, self._pool.make_connection(), self._pool.make_connection())
        try:
            await link.open()
        except AuthenticationError as exc:
            await link.close()
            raise BrokerRefusal("the server refuses the credentials of the URL") from exc
        except BaseException:
            await link.close()
            raise
        return link


class _RedisLink:
    def __init__(self, receive: Receive, publishing: Any, listening: Any) -> None:
        self.max_payload = _MAX_PAYLOAD
        self._receive = receive
        self._publishing = publishing
        self._listening = listening
        self._pongs: deque[asyncio.Future[None]] = deque()
        self._awaited: deque[Done | asyncio.Future[None]] = deque()

    async def open(self) -> None:
        for connection in (self._publishing, self._listening):
            await connection.connect()
            await self._send(connection, ["PING"])
            await _answer(connection)

    async def subscribe(self, subjects: Sequence[str]) -> None:
        await self._send(self._listening, ["SUBSCRIBE", *subjects])

    async def unsubscribe(self, subjects: Sequence[str]) -> None:
        await self._send(self._listening, ["UNSUBSCRIBE", *subjects])

    def publish(self, messages: Sequence[Message], done: Done) -> None:
        # Without waiting for the server to read, which whoever publishes limits, and redis-py always does.
        # In one piece: from Python 3.12 to 3.13.1 `writelines` of asyncio fails if the server has gone.
        self._publishing._writer.write(b"".join([_publish(*message) for message in messages]))
        self._awaited.extend([done] * len(messages))

    def confirm(self) -> None:
        """Do nothing: the server answers each command."""

    async def ping(self) -> None:
        for connection, answers in ((self._publishing, self._awaited), (self._listening, self._pongs)):
            pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            answers.append(pong)
            await self._send(connection, ["PING"])
            await pong

    async def lost(self) -> None:
        # Both are read at all times, as a server may end either: one that is quiet, for instance.
        reading = [asyncio.ensure_future(each) for each in (self._take_messages(), self._take_answers())]
        try:
            await asyncio.gather(*reading)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    async def _take_answers(self) -> None:
        # Not through the connection, which is ready for timeouts, retries and another protocol at each answer.
        read = self._publishing._parser.read_response
        while True:
            taken = not isinstance(await read(), ResponseError)
            awaited = self._awaited.popleft()
            if callable(awaited):
                awaited(1, taken)
            else:
                awaited.set_result(None)

    async def _take_messages(self) -> None:
        read = self._listening._parser.read_response
        while True:
            answer = await read()
            if isinstance(answer, ResponseError):
                raise answer
            if answer[0] == b"message":
                self._receive(answer[1].decode(), answer[2])
            elif answer[0] == b"pong" or answer == b"PONG":
                self._pongs.popleft().set_result(None)

    async def close(self) -> None:
        for connection in (self._publishing, self._listening):
            # redis-py only has an orderly close, which waits for a server that does not read.
            writer: Any = getattr(connection, "_writer", None)
            if writer is not None:
                writer.transport.abort()
            with suppress(Exception):
                await connection.disconnect(nowait=True)

    async def _send(self, connection: Any, *commands: Sequence[object]) -> None:
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)


def _publish(subject: str, payload: bytes) -> bytes:
    # As `pack_commands` of redis-py writes it, in an eighth of the time.
    channel = subject.encode()
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(payload), payload)


async def _answer(connection: Any) -> Any:
    # A connection that closes itself would be opened again, without its subscriptions, by the next command.
    return await connection.read_response(disconnect_on_error=False)
