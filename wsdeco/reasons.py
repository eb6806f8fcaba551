"""Why a connection ended, the close codes of RFC 6455, and every exception of the library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

__all__ = [
    "MAX_CLOSE_REASON_BYTES",
    "BackplaneError",
    "Close",
    "CloseCode",
    "ConnectionClosed",
    "DisconnectReason",
    "Error",
    "HandlerError",
    "HandlerWarning",
    "LimitName",
    "RouteError",
    "ServerError",
    "Timeout",
    "Unknown",
    "WsdecoError",
    "check_close_code",
    "cut_close_reason",
    "printable",
]

LimitName: TypeAlias = Literal[
    "connect_timeout", "first_message_timeout", "idle_timeout", "max_connection_duration", "message_timeout"
]
"""The fields of `ConnectionConfig` whose expiry ends a connection with `Timeout`."""

MAX_CLOSE_REASON_BYTES: Final = 123
"""Bytes of UTF-8 a close frame has room for behind its code (RFC 6455, section 5.5)."""


class CloseCode:
    """The close codes wsdeco itself sends (RFC 6455, section 7.4.1, and the IANA registry)."""

    NORMAL: Final = 1000
    GOING_AWAY: Final = 1001
    PROTOCOL_ERROR: Final = 1002
    NO_STATUS: Final = 1005
    ABNORMAL: Final = 1006
    INVALID_UTF8: Final = 1007
    POLICY: Final = 1008
    TOO_BIG: Final = 1009
    INTERNAL_ERROR: Final = 1011
    SERVICE_RESTART: Final = 1012
    TRY_AGAIN_LATER: Final = 1013
    TOKEN_EXPIRED: Final = 4401


_TIMEOUT_CODES: Final[dict[LimitName, int]] = {
    "first_message_timeout": CloseCode.POLICY,
    "message_timeout": CloseCode.INTERNAL_ERROR,
}
"""Close codes of the limits that end a connection with another one than 1001."""

_SENDABLE_BELOW_3000: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


_MOST_SHOWN: Final = 500
"""Characters of what may come from a peer that go into a line."""


def printable(text: str) -> str:
    """Return `text` with control characters escaped and its rest cut off, fit for one line of a log or a terminal."""
    if len(text) > _MOST_SHOWN:
        text = f"{text[:_MOST_SHOWN]}\u2026"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True, slots=True)
class Close:
    """The connection ended with a close frame.

    Attributes:
        code: The close code of the frame; 1005 for a close frame without a code (RFC 6455, section 7.1.5).
        reason: The text of the frame, or an empty string.
        by: Which side sent the first close frame.
    """

    code: int
    reason: str = ""
    by: Literal["client", "server"] = "client"

    def __str__(self) -> str:
        text = f"closed by the {self.by} with {self.code}"
        return f"{text} ({printable(self.reason)})" if self.reason else text


@dataclass(frozen=True, slots=True)
class Error:
    """A hook failed.

    Attributes:
        message: Which hook failed, and with what, in one line.
        exception: What the hook raised.
    """

    message: str
    exception: BaseException | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"error: {printable(self.message)}"


@dataclass(frozen=True, slots=True)
class Timeout:
    """A time limit of the connection's `ConnectionConfig` ran out.

    Attributes:
        message: The limit and its value, in one line.
        limit: The name of the field that set the limit.
    """

    message: str
    limit: LimitName

    @property
    def code(self) -> int:
        """The close code that goes with it; before the upgrade it is HTTP 503."""
        return _TIMEOUT_CODES.get(self.limit, CloseCode.GOING_AWAY)

    def __str__(self) -> str:
        return f"timeout: {printable(self.message)}"


@dataclass(frozen=True, slots=True)
class Unknown:
    """The transport was lost without a close frame (RFC 6455 calls it 1006)."""

    def __str__(self) -> str:
        return "connection lost without a close frame"


DisconnectReason: TypeAlias = Close | Error | Timeout | Unknown
"""What `on_disconnect` receives: a closed set, made for `match`."""


class WsdecoError(Exception):
    """Base of every exception that wsdeco raises on its own account."""


class HandlerError(WsdecoError, TypeError):
    """A handler class, a factory or an endpoint cannot work as it is written; raised at definition."""


class RouteError(WsdecoError, ValueError):
    """A path cannot be routed: its form is wrong, or something else is registered there."""


class ServerError(WsdecoError, RuntimeError):
    """The server cannot start, or cannot do what was asked in its present state."""


class BackplaneError(WsdecoError):
    """A broadcast could not be published to the other processes, or the broker between them cannot be used."""


class HandlerWarning(UserWarning):
    """A handler class works, though probably not as intended."""


class ConnectionClosed(WsdecoError):
    """The connection has ended, so nothing more can be sent on it.

    Attributes:
        reason: Why it ended, as `on_disconnect` receives it.
    """

    def __init__(self, reason: DisconnectReason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the connection has ended: {self.reason}"


def check_close_code(code: int) -> int:
    """Return `code` if an endpoint may put it into a close frame (RFC 6455, section 7.4).

    Raises:
        TypeError: `code` is not an `int`.
        ValueError: `code` is reserved, unassigned or out of range.
    """
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"close code must be an int, not {type(code).__name__}: write close(1000)")
    if code in _SENDABLE_BELOW_3000 or 3000 <= code <= 4999:
        return code
    raise ValueError(
        f"close code {code} may not be sent (RFC 6455, section 7.4): "
        "use 1000 for a normal end, or a code of your own from 3000 to 4999"
    )


def cut_close_reason(reason: str) -> str:
    """Return `reason` cut to the 123 bytes a close frame has room for, never inside a character.

    Raises:
        TypeError: `reason` is not a `str`.
        ValueError: `reason` holds a lone surrogate, which UTF-8 cannot carry.
    """
    if not isinstance(reason, str):
        raise TypeError(f"close reason must be a str, not {type(reason).__name__}")
    try:
        encoded = reason.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"close reason cannot be encoded as UTF-8: {exc}") from None
    if len(encoded) <= MAX_CLOSE_REASON_BYTES:
        return reason
    return encoded[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
