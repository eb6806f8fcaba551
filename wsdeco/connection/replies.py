"""What `on_message` gives, sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final

from wsdeco.channels.base import Channel
from wsdeco.channels.data import checked_kind

__all__ = ["ADVICE", "send_stream"]

ADVICE: Final = "annotate on_message with what it gives, such as `-> dict`, or write json.dumps(...) first"
"""What to write if a reply has no form on the wire."""


async def send_stream(channel: Channel, replies: AsyncIterable[object]) -> None:
    """Send each value of a stream as it comes, and end the stream if the connection ends before it."""
    try:
        async for reply in replies:
            await channel.send(checked_kind(reply, advice=ADVICE))
    finally:
        if isinstance(replies, AsyncGenerator):
            await replies.aclose()
