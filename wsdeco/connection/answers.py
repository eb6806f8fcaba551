"""What the peer, the log and observers are told of an exception that leaves a hook, and of the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from starlette.exceptions import HTTPException, WebSocketException

from wsdeco.channels.base import Channel
from wsdeco.channels.observer import Observer
from wsdeco.reasons import Close, DisconnectReason, Error, Timeout, check_close_code, cut_close_reason, printable

__all__ = ["LATE_REFUSAL", "close_of", "described", "late_refusal_of", "refusal_of", "tell_end", "tell_refusal"]

LATE_REFUSAL: Final = 4000
"""What is added to the HTTP status of a refusal behind the upgrade, to make it a close code."""


def refusal_of(exc: HTTPException | WebSocketException) -> tuple[int, str, Mapping[str, str] | None]:
    """Return status, body and headers of the response that refuses a handshake.

    Raises:
        TypeError: JSON has no form for the detail of the exception.
        ValueError: The detail refers to itself.
    """
    if isinstance(exc, WebSocketException):
        # Starlette answers 403 as well.
        return 403, exc.reason or "Forbidden", None
    detail: object = exc.detail
    if isinstance(detail, str):
        return exc.status_code, detail, exc.headers
    headers = {name.lower(): value for name, value in (exc.headers or {}).items()}
    return exc.status_code, json.dumps(detail), {"content-type": "application/json"} | headers


def late_refusal_of(exc: HTTPException | WebSocketException) -> tuple[int, int, str]:
    """Return status, close code and text of a refusal that is told behind the upgrade.

    Raises:
        TypeError: As `refusal_of`.
        ValueError: As `refusal_of`; or no endpoint may send such a code.
    """
    status, body, _ = refusal_of(exc)
    if isinstance(exc, WebSocketException):
        return status, check_close_code(exc.code), cut_close_reason(exc.reason or "")
    return status, check_close_code(LATE_REFUSAL + status), cut_close_reason(body)


def close_of(exc: WebSocketException) -> Close | TypeError | ValueError:
    """Return how the connection ends, or why it cannot end so: no endpoint may send such a code or reason."""
    try:
        return Close(check_close_code(exc.code), cut_close_reason(exc.reason or ""), by="server")
    except (TypeError, ValueError) as fault:
        return fault


def tell_end(channel: Channel, observer: Observer) -> None:
    """Tell the observer that everything about a connection, or a handshake that came to nothing, has ended."""
    if channel.accepted:
        observer.ended(channel)
    else:
        observer.refused(channel.request.scope, *_refusal_for(channel.reason))


def tell_refusal(channel: Channel, status: int) -> None:
    """Tell the observer, if there is one, that the handler has refused the handshake; it is told nothing more."""
    observer, channel.observer = channel.observer, None
    if observer is not None:
        observer.refused(channel.request.scope, status, "handler")


def _refusal_for(reason: DisconnectReason | None) -> tuple[int, str]:
    """Return the HTTP status and the cause of a handshake that ended for `reason`; 0 if its peer left before."""
    match reason:
        case Error():
            return 500, "failure"
        case Timeout():
            return 503, "connect_timeout"
        case Close(by="server"):
            return 503, "shutdown"
        case _:
            return 0, "gone"


def described(exc: BaseException) -> str:
    """Return class and text of an exception, fit for one line of a log."""
    kind = type(exc).__name__
    try:
        return printable(f"{kind}: {exc}")
    except Exception:
        # Its own __str__ fails, which must not cost the connection its on_disconnect.
        return kind
