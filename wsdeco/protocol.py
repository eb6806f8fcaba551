"""The public name of the WebSocket implementation: `uvicorn app:ws --ws wsdeco.protocol:WebSocketProtocol`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsdeco.transport import protocol as _implementation

__all__ = ["WebSocketProtocol"]

if TYPE_CHECKING:
    import asyncio

    class WebSocketProtocol(_implementation.WebSocketProtocol, asyncio.Protocol):
        """What type checkers see: uvicorn's options ask for a class of asyncio's.

        At run time it is none. Event loops look for methods, and a class that is compiled and derives from one that is
        not gets a dict for each instance, and weak references that outlive it.
        """

else:
    WebSocketProtocol = _implementation.WebSocketProtocol
