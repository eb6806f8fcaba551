"""The access log: one line when a connection is accepted, one when it ends, one for a refusal with its cause.

The lines look like uvicorn's; what they say stands in fields of the record as well, for formatters that print JSON.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from starlette.types import Scope

from wsdeco.channels.data import Address
from wsdeco.reasons import Close, CloseCode, DisconnectReason, Timeout, Unknown, printable

__all__ = ["AccessLog"]

logger: Final = logging.getLogger("wsdeco.access")


class AccessLog:
    """Writes to the logger `wsdeco.access`, at level INFO."""

    def accepted(self, addr: Address, path: str) -> None:
        """Log an upgrade."""
        path = printable(path)
        fields = {"event": "accepted", "client": str(addr), "path": path}
        logger.info('%s - "WebSocket %s" [accepted]', addr, path, extra=fields)

    def refused(self, scope: Scope, status: int, cause: str) -> None:
        """Log a handshake that was refused, or whose peer has left."""
        client = scope.get("client")
        addr = Address(str(client[0]), int(client[1])) if client else Address("", 0)
        path = printable(scope["path"])
        fields = {"event": "refused", "client": str(addr), "path": path, "status": status, "cause": cause}
        logger.info('%s - "WebSocket %s" %s (%s)', addr, path, status or "unanswered", cause, extra=fields)

    def ended(
        self,
        addr: Address,
        path: str,
        reason: DisconnectReason | None,
        seconds: float,
        received: tuple[int, int],
        sent: tuple[int, int],
    ) -> None:
        """Log the end of a connection: why, how long it was, and messages and bytes both ways."""
        code, text, by = _how(reason)
        path = printable(path)
        fields: dict[str, Any] = {
            "event": "ended",
            "client": str(addr),
            "path": path,
            "code": code,
            "reason": text,
            "by": by,
            "duration": round(seconds, 3),
            "messages_received": received[0],
            "bytes_received": received[1],
            "messages_sent": sent[0],
            "bytes_sent": sent[1],
        }
        logger.info(
            '%s - "WebSocket %s" %s by %s%s after %.3f s, %d messages (%d B) in, %d (%d B) out',
            *(addr, path, code, by, f" ({printable(text)})" if text else "", seconds, *received, *sent),
            extra=fields,
        )


def _how(reason: DisconnectReason | None) -> tuple[int, str, str]:
    match reason:
        case Close(code, text, by):
            return int(code), text, by
        case Timeout(message):
            return int(CloseCode.GOING_AWAY), message, "server"
        case Unknown() | None:
            return int(CloseCode.ABNORMAL), "", "network"
        case _:
            return int(CloseCode.INTERNAL_ERROR), "", "server"
