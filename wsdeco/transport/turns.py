"""Responses of HTTP in many pieces take turns with everything else in the event loop.

uvicorn's `send` waits only while the peer does not read. An app that awaits nothing else, as one that yields rows it
has already, keeps the loop for itself while the peer reads fast, and for good once it has gone, since nothing tells the
app so then.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["in_turns"]

_BYTES: Final = 64 * 1024
"""Bytes of a response in one turn of the loop."""

_PIECES: Final = 16
"""Pieces of a response in one turn of the loop."""


def in_turns(app: ASGIApp) -> ASGIApp:
    """Return what does the same as an ASGI app, and lets others have their turn between the pieces of a response."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        size = pieces = 0

        async def send_in_turn(message: Message) -> None:
            nonlocal size, pieces
            await send(message)
            if message.get("more_body"):
                size += len(message.get("body", b""))
                pieces += 1
                if size >= _BYTES or pieces >= _PIECES:
                    size = pieces = 0
                    await asyncio.sleep(0)

        # What an app returns by mistake is said by uvicorn.
        return await app(scope, receive, send_in_turn)

    return serve
