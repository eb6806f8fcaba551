"""`ConnectionClosed` that leaves a hook: whose connection has ended, and what is said if it is that of another."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final, cast

from starlette.exceptions import HTTPException

from wsdeco.channels.base import Channel
from wsdeco.reasons import ConnectionClosed, DisconnectReason

__all__ = ["advise_at_end", "advised", "is_departure", "is_end_of_another"]

logger: Final = logging.getLogger("wsdeco")

advised: Final[set[str]] = set()
"""The hooks whose author has been told how to send to many."""


def is_departure(channel: Channel, exc: BaseException, hook: str | None) -> bool:
    """Return whether `exc` leaves `hook` because the connection of `channel` has ended."""
    if not channel.closed and channel.reason is None:
        return False
    # A handshake whose peer has gone cannot be refused, and need not be.
    is_late_refusal = isinstance(exc, HTTPException) and hook == "on_connect" and not channel.accepted
    return is_late_refusal or _is_only_closed(exc)


def is_end_of_another(channel: Channel, exc: BaseException, where: str) -> bool:
    """Return whether `exc` tells of the end of another connection than that of `channel`; if so, say what to write."""
    # While this connection lives, `exc` tells of another one, and this one goes on.
    if channel.closed or channel.reason is not None or not _is_only_closed(exc):
        return False
    _advise(where, exc)
    return True


def advise_at_end(channel: Channel, exc: BaseException, hook: str | None, where: str) -> None:
    """Say what to write, if `on_disconnect` stopped at a send to another connection than that of `channel`."""
    if hook == "on_disconnect" and any(each is not channel.reason for each in _closed_reasons(exc)):
        _advise(where, exc)


def _is_only_closed(exc: BaseException) -> bool:
    """Return whether `exc` is `ConnectionClosed`, or a group of nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", exc).split(ConnectionClosed)[1] is None
    return isinstance(exc, ConnectionClosed)


def _closed_reasons(exc: BaseException) -> Iterator[DisconnectReason]:
    """Yield the reason of each `ConnectionClosed` of a departure from `on_disconnect`, which holds nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        for each in cast("BaseExceptionGroup[BaseException]", exc).exceptions:
            yield from _closed_reasons(each)
    else:
        yield cast("ConnectionClosed", exc).reason


def _advise(where: str, exc: BaseException) -> None:
    """Say once, at WARNING, how the hook `where` sends to others of whom some may have left."""
    level = logging.DEBUG if where in advised else logging.WARNING
    advised.add(where)
    logger.log(
        level,
        "%s stopped at a send to another connection, which has ended (%s): to send to many write "
        "`await ws.room(name).broadcast(...)`, which passes over those who have left, or catch ConnectionClosed around "
        "each send; said once",
        where,
        next(_closed_reasons(exc)),
    )
