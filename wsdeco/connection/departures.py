"""`ConnectionClosed` that leaves a hook: whose connection has ended, and what is said if it is that of another."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final, cast

from wsdeco.reasons import ConnectionClosed, DisconnectReason

__all__ = ["advise", "closed_reasons", "is_only_closed"]

logger = logging.getLogger("wsdeco")

_advised: Final[set[str]] = set()
"""The hooks whose author has been told how to send to many."""


def is_only_closed(exc: BaseException) -> bool:
    """Return whether `exc` is `ConnectionClosed`, or a group of nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", exc).split(ConnectionClosed)[1] is None
    return isinstance(exc, ConnectionClosed)


def closed_reasons(exc: BaseException) -> Iterator[DisconnectReason]:
    """Yield the reason of each `ConnectionClosed` that `exc` is, or holds."""
    if isinstance(exc, BaseExceptionGroup):
        for each in cast("BaseExceptionGroup[BaseException]", exc).exceptions:
            yield from closed_reasons(each)
    elif isinstance(exc, ConnectionClosed):
        yield exc.reason


def advise(where: str, exc: BaseException) -> None:
    """Say once, at WARNING, how the hook `where` sends to others of whom some may have left."""
    level = logging.DEBUG if where in _advised else logging.WARNING
    _advised.add(where)
    logger.log(
        level,
        "%s stopped at a send to another connection, which has ended (%s): to send to many write "
        "`await ws.room(name).broadcast(...)`, which passes over those who have left, or catch ConnectionClosed around "
        "each send; said once",
        where,
        next(closed_reasons(exc)),
    )
