"""How those wait whose messages have to wait, in a module that is not compiled.

A compiled coroutine hands an exception on, such as its cancellation, in a form that Python 3.12 and newer warn of.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from typing import TypeAlias

from wsdeco.messages import Data

__all__ = ["Pieces", "Senders", "wait_for_turn"]

Pieces: TypeAlias = Iterator[bytes | memoryview]
"""The frame of a large message, as `wsdeco.wire.incoming.Framing.encode_large` makes it."""

Senders: TypeAlias = OrderedDict[asyncio.Future[bool], Data | Pieces | None]
"""Who waits, and for what to be written: a message, what is left of one, or nothing."""


async def wait_for_turn(waiter: asyncio.Future[bool], senders: Senders) -> bool:
    """Return what `waiter` brings, which is among `senders` no longer than that."""
    try:
        return await waiter
    finally:
        # A sender that was cancelled leaves nothing behind, and the traceback of an exception holds this frame.
        senders.pop(waiter, None)
        del waiter
