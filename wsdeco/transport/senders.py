"""How those wait whose messages have to wait, in a module that is not compiled.

A compiled coroutine hands an exception on, such as its cancellation, in a form that Python 3.12 and newer warn of.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from wsdeco.messages import Data

__all__ = ["wait_for_turn"]


async def wait_for_turn(waiter: asyncio.Future[bool], senders: OrderedDict[asyncio.Future[bool], Data | None]) -> bool:
    """Return what `waiter` brings, which is among `senders` no longer than that."""
    try:
        return await waiter
    finally:
        # A sender that was cancelled leaves nothing behind, and the traceback of an exception holds this frame.
        senders.pop(waiter, None)
        del waiter
