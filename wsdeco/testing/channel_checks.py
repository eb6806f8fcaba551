"""The checker for channels, which those of wsdeco pass on every server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, TypeAlias

from wsdeco.channels.base import Channel
from wsdeco.config import ConnectionConfig
from wsdeco.reasons import Close, ConnectionClosed, Unknown

__all__ = ["ChannelPeer", "MakePair", "check_channel"]

_TIMEOUT: Final = 5.0


class ChannelPeer(Protocol):
    """The other end of a channel, as `check_channel` drives it."""

    async def send(self, data: str | bytes) -> None:
        """Send one message."""

    async def receive(self) -> str | bytes:
        """Return the next message; raise `ConnectionClosed` when the channel's side has closed."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame."""

    async def drop(self) -> None:
        """Vanish without a close frame."""


MakePair: TypeAlias = Callable[[ConnectionConfig], AbstractAsyncContextManager[tuple[Channel, ChannelPeer]]]
"""Makes a channel with these limits that has just accepted the upgrade and is being read, and its peer."""


async def check_channel(make_pair: MakePair, timeout: float = _TIMEOUT) -> None:
    """Check that a channel behaves as the lifecycle relies on.

    Args:
        make_pair: Makes a fresh pair for each check, as an async context manager.
        timeout: Seconds of real time that each check may take.

    Raises:
        AssertionError: It does not; the text says where.
    """
    for check in (_check_order, _check_empty, _check_peer_close, _check_own_close, _check_lost, _check_too_big):
        try:
            async with asyncio.timeout(timeout), make_pair(ConnectionConfig(max_message_size=1000)) as (channel, peer):
                await check(channel, peer)
        except TimeoutError:
            name = check.__name__.strip("_")
            raise AssertionError(f"check_channel: {name} waits for something that does not come") from None


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(f"check_channel: {what}")


async def _check_order(channel: Channel, peer: ChannelPeer) -> None:
    sent: list[str | bytes] = ["a", b"b", "\u20ac", "", b""]
    for data in sent:
        await peer.send(data)
    received = [await channel.receive() for _ in sent]
    _require(received == sent, f"messages arrive unchanged and in order: {received!r}")
    await channel.send("1")
    _require(channel.send_nowait("2"), "send_nowait takes a message while the outbox has room")
    await asyncio.gather(channel.send("3"), channel.send(b"4"))
    replies = [await peer.receive() for _ in range(4)]
    _require(replies == ["1", "2", "3", b"4"], f"messages leave in the order of the calls: {replies!r}")


async def _check_empty(channel: Channel, peer: ChannelPeer) -> None:
    await channel.send("")
    await channel.send(b"")
    _require([await peer.receive(), await peer.receive()] == ["", b""], "empty messages are messages")


async def _check_peer_close(channel: Channel, peer: ChannelPeer) -> None:
    await peer.send("last")
    await peer.close(4001, "bye")
    _require(await channel.ended() == Close(4001, "bye", by="client"), f"the peer's close is seen: {channel.reason}")
    _require(await channel.receive() == "last", "a message before the close frame is delivered")
    _require(await channel.receive() is None, "nothing comes after the last message")
    await _require_closed(channel)


async def _check_own_close(channel: Channel, peer: ChannelPeer) -> None:
    await channel.send("last")
    reason = Close(4002, "enough", by="server")
    channel.close(4002, "enough", reason)
    channel.close(4003, "again", Close(4003, "again", by="server"))
    _require(channel.reason == reason, "the first close decides")
    await _require_closed(channel)
    await channel.flushed()
    _require(await peer.receive() == "last", "what was sent before the close frame arrives before it")
    try:
        data = await peer.receive()
    except ConnectionClosed as exc:
        _require(exc.reason == reason, f"the peer sees code and text: {exc.reason}")
    else:
        raise AssertionError(f"check_channel: the peer sees the close frame, not {data!r}")


async def _check_lost(channel: Channel, peer: ChannelPeer) -> None:
    await peer.drop()
    _require(await channel.ended() == Unknown(), f"a lost transport is Unknown: {channel.reason}")
    await _require_closed(channel)


async def _check_too_big(channel: Channel, peer: ChannelPeer) -> None:
    largest = "x" * channel.config.max_message_size
    await peer.send(largest)
    await peer.send("\u20ac" * (channel.config.max_message_size // 3 + 1))
    _require(await channel.receive() == largest, "a message of exactly max_message_size is delivered")
    await channel.send("reply")
    _require(await channel.receive() is None, "nothing comes after a message that is too big")
    ended = await channel.ended()
    _require(isinstance(ended, Close) and (ended.code, ended.by) == (1009, "server"), f"1009 for too much: {ended}")


async def _require_closed(channel: Channel) -> None:
    _require(channel.closed, "a channel that has ended says so")
    _require(not channel.send_nowait("x"), "send_nowait refuses after the end")
    try:
        await channel.send("x")
    except ConnectionClosed as exc:
        _require(exc.reason == channel.reason, "ConnectionClosed holds the reason")
    else:
        raise AssertionError("check_channel: send raises ConnectionClosed after the end")
