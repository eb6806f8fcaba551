"""What the events of ASGI mean on the servers there are, and what these do beside the specification."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Literal, cast

from starlette.types import Message, Receive
from starlette.websockets import WebSocketDisconnect

from wsdeco.messages import Data
from wsdeco.reasons import Close, CloseCode, DisconnectReason, Unknown

__all__ = ["GONE", "abort_of", "disconnect_reason", "nothing_more", "refusal_done", "sent_event"]

GONE: Final = (OSError, RuntimeError, WebSocketDisconnect)
"""What servers raise from `send` once the peer has gone: OSError by ASGI 2.4, the others in practice."""

_TURNS_TO_CLOSE: Final = 3
"""Turns of the event loop after which a transport that was told to close has closed."""

_SERVER_CODES: Final = frozenset({CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_UTF8, CloseCode.TOO_BIG})
"""Codes that a server uses on its own account; ASGI does not say which side sent them."""


def disconnect_reason(message: Message) -> DisconnectReason:
    """Return the reason that a `websocket.disconnect` event stands for.

    Servers report a lost transport as 1006, or (uvicorn) as 1005 without the key `reason`; their own shutdown as
    1012 without that key.
    """
    # With wsproto underneath, the code is a member of an enumeration of its own.
    code = int(message.get("code", CloseCode.NO_STATUS))
    text: str | None = message.get("reason")
    if code == CloseCode.ABNORMAL or (code == CloseCode.NO_STATUS and text is None):
        return Unknown()
    by_server = code in _SERVER_CODES or (code == CloseCode.SERVICE_RESTART and text is None)
    by: Literal["client", "server"] = "server" if by_server else "client"
    return Close(code, text or "", by)


async def refusal_done() -> None:
    """Wait until the transport of a refused handshake is closed.

    An application that returns sooner is blamed by uvicorn, at ERROR, for an incomplete handshake.
    """
    for _ in range(_TURNS_TO_CLOSE):
        await asyncio.sleep(0)


def sent_event(data: Data) -> Message:
    """Return the event that sends a message."""
    if isinstance(data, str):
        return {"type": "websocket.send", "text": data}
    return {"type": "websocket.send", "bytes": data}


def abort_of(receive: Receive) -> Callable[[], None] | None:
    """Return what drops the transport behind `receive`, if the server lets it be reached.

    uvicorn passes bound methods of its asyncio protocol. ASGI itself has no way to drop a peer that does not read:
    after the end of the application such a server waits for the peer to read, however long that takes.
    """
    protocol: Any = getattr(receive, "__self__", None)
    transport: Any = getattr(protocol, "transport", None)
    abort: Any = getattr(transport, "abort", None)
    return cast("Callable[[], None]", abort) if callable(abort) else None


async def nothing_more(*_: object) -> Any:
    """Stand for `receive` and `send` of a connection that is over."""
    raise RuntimeError("the connection is over")
