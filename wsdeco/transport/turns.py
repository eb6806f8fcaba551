"""Responses of HTTP in many pieces take turns with everything else in the event loop.

uvicorn's `send` waits only while the peer does not read. An app that awaits nothing else, as one that yields rows it
has already, keeps the loop for itself while the peer reads fast, and for good once it has gone, since nothing tells the
app so then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["in_turns"]

_BYTES: Final = 64 * 1024
"""Bytes of a response in one turn of the loop."""

_PIECES: Final = 16
"""Pieces of a response in one turn of the loop."""


def in_turns(app: ASGIApp) -> ASGIApp:
    """Return what does the same as an ASGI app, and lets others have their turn between the pieces of a response.

    None of its functions but the one for pieces is a coroutine, so that a response in one piece costs no further frame.
    """

    def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        size = pieces = 0

        async def send_piece(message: Message) -> None:
            nonlocal size, pieces
            await send(message)
            size += len(message.get("body", b""))
            pieces += 1
            if size >= _BYTES or pieces >= _PIECES:
                size = pieces = 0
                await asyncio.sleep(0)

        def send_in_turn(message: Message) -> Awaitable[None]:
            return send_piece(message) if message.get("more_body") else send(message)

        # What an app returns by mistake is said by uvicorn.
        return app(scope, receive, send_in_turn)

    return serve
