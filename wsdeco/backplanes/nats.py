"""NATS by nats-py: one connection, which is not reconnected, since the supervisor does that.

nats-py makes a queue and a task for each subscription (4 to 6 KB), wakes that task for each message that comes, and two
for each that is published. What it does not offer are messages as they are read, many subjects for one subscription,
and a PING that nobody waits for: for these its internals are used.
"""

# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final
from urllib.parse import SplitResult, unquote

from nats.aio.client import Client
from nats.protocol import command
from typing_extensions import override

from wsdeco.backplanes.link import BrokerRefusal, Done, Link, Message, Receive

__all__ = ["NatsBroker"]

_DEFAULT_MAX_PAYLOAD: Final = 1024 * 1024
"""What a nats-server takes unless it is configured otherwise, in bytes."""

_NEVER: Final = 365 * 24 * 3600
"""Seconds that are no limit: nats-py has times of its own for what the supervisor limits."""

_CLOSE_TIME: Final = 1.0
"""Seconds for a connection to be closed in an orderly way."""

_PING: Final = b"PING\r\n"

_commands: Any = command
"""How commands are written; untyped in nats-py."""


class NatsBroker:
    """A NATS server, or a cluster of them.

    Attributes:
        name: What it is called in the log.
        max_payload: The largest message it takes, in bytes, as far as is known.
    """

    def __init__(self, name: str, urls: Sequence[SplitResult]) -> None:
        self.name = name
        self.max_payload = _DEFAULT_MAX_PAYLOAD
        # nats-py would send the escapes of a URL as part of the credentials.
        self._servers = [url._replace(netloc=url.netloc.rpartition("@")[2]).geturl() for url in urls]
        self._credentials: dict[str, str] = _credentials(urls)
        self._encrypted = any(url.scheme == "tls" for url in urls)

    async def connect(self, receive: Receive) -> Link:
        """Return a new connection."""
        link = _NatsLink(receive, encrypted=self._encrypted)
        try:
            await link.open(self._servers, self._credentials)
        except BaseException:
            # When a server refuses, nats-py leaves the socket open.
            await link.close()
            raise
        return link


def _credentials(urls: Sequence[SplitResult]) -> dict[str, str]:
    for url in urls:
        if url.username:
            user = unquote(url.username)
            return {"token": user} if url.password is None else {"user": user, "password": unquote(url.password)}
    return {}


class _Client(Client):
    """One that hands on what it reads as it is, without a queue."""

    def __init__(self, receive: Receive) -> None:
        super().__init__()
        # A version of nats-py that names it otherwise fails here: it would lose all messages without a word.
        _ = Client._process_msg
        self._received = receive

    @override
    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self._received(subject.decode(), data)


class _NatsLink:
    def __init__(self, receive: Receive, *, encrypted: bool) -> None:
        self.max_payload = 0
        self._encrypted = encrypted
        self._client: Any = _Client(receive)
        self._last_number = 0
        self._numbers: dict[str, int] = {}
        self._done: Done | None = None
        self._unasked = 0
        self._asked: deque[int] = deque()
        self._error: Exception | None = None
        self._refused = 0
        self._lost = asyncio.Event()

    async def open(self, servers: list[str], credentials: dict[str, str]) -> None:
        # nats-py goes on without TLS if the server, or somebody on the way, does not ask for it. It looks at the
        # credentials when it has decided.
        checked = {name: partial(self._checked, value) for name, value in credentials.items()}
        try:
            await self._client.connect(
                servers,
                error_cb=self._note_error,
                closed_cb=self._note_loss,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_NEVER,
                ping_interval=_NEVER,
                no_echo=True,
                **checked,
            )
            self._checked("")
        except Exception as exc:
            # That there is no server to connect to is said after why each could not be.
            error = self._error or exc
            if "authorization" in str(error).lower():
                raise BrokerRefusal("the server refuses the credentials of the URL") from error
            raise error from None
        self.max_payload = self._client.max_payload
        # What was said of servers that could not be connected to.
        self._error = None
        self._lost.clear()

    def _checked(self, credential: str) -> str:
        told: dict[str, Any] = self._client._server_info
        if self._encrypted and not told.get("tls_required"):
            raise ConnectionError(
                "the server does not encrypt, as tls:// wants it: let it require TLS, or write nats://"
            )
        return credential

    async def subscribe(self, subjects: Sequence[str]) -> None:
        for subject in subjects:
            self._last_number += 1
            self._numbers[subject] = self._last_number
            self._write(_commands.sub_cmd(subject, "", self._last_number))

    async def unsubscribe(self, subjects: Sequence[str]) -> None:
        for subject in subjects:
            self._write(_commands.unsub_cmd(self._numbers.pop(subject), 0))

    def publish(self, messages: Sequence[Message], done: Done) -> None:
        self._done = done
        self._unasked += len(messages)
        self._write(b"".join([_commands.pub_cmd(subject, "", payload) for subject, payload in messages]))

    def confirm(self) -> None:
        if self._unasked:
            _ = self._ask()

    def _ask(self) -> asyncio.Future[Any]:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append(self._unasked)
        self._unasked = 0
        self._client._pongs.append(answered)
        self._write(_PING)
        answered.add_done_callback(self._answered)
        return answered

    def _answered(self, answered: asyncio.Future[Any]) -> None:
        messages = self._asked.popleft()
        if self._done is not None and not answered.cancelled():
            # The server tells what it has refused before it answers.
            refused, self._refused = min(self._refused, messages), 0
            if refused:
                self._done(refused, False)
            self._done(messages - refused, True)

    def _write(self, written: bytes) -> None:
        if not self._lost.is_set():
            self._client._transport.write(written)

    async def ping(self) -> None:
        # Not cancelled when the wait is: nats-py would report an answer that comes nevertheless as an error of its own.
        await asyncio.wait((self._ask(),))

    async def lost(self) -> None:
        await self._lost.wait()
        raise self._error or ConnectionError("the server has closed it")

    async def close(self) -> None:
        try:
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_TIME):
                    await self._client.close()
        finally:
            self._drop()

    def _drop(self) -> None:
        # nats-py only has an orderly close, which waits for a server that does not read.
        writer = getattr(getattr(self._client, "_transport", None), "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _note_error(self, exc: Exception) -> None:
        if "permissions violation for publish" in str(exc).lower():
            self._refused += 1
        else:
            # Also if nats-py would go on, with a room that may not be subscribed and gets nothing.
            self._error = exc
            self._lost.set()

    async def _note_loss(self) -> None:
        self._lost.set()
