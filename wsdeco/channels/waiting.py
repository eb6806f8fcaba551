"""What waits on a channel, in a module that is not compiled.

A compiled coroutine hands an exception on, such as its cancellation, in a form that Python 3.12 and newer warn of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wsdeco.messages import Data
from wsdeco.reasons import DisconnectReason

if TYPE_CHECKING:
    from wsdeco.channels.base import Channel

__all__ = ["accept_and_close", "end_of", "next_message"]


async def next_message(channel: Channel) -> Data | None:
    """Do what `Channel.receive` says."""
    while (data := channel.take()) is None and channel.reason is None:
        await channel.next_event()
    return data


async def end_of(channel: Channel, finish: Callable[[], None]) -> DisconnectReason:
    """Return why a channel has ended, once it has, and `finish` has been called."""
    while channel.reason is None:
        await channel.next_event()
    finish()
    return channel.reason


async def accept_and_close(channel: Channel, code: int, text: str) -> None:
    """Accept the upgrade, only to close."""
    await channel.accept()
    channel.close_by_server(code, text)
