"""What stands in for a backplane that is missed: in one of several worker processes, with no broker between them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, Final

from wsdeco.backplanes.interface import CONTROL, ROUTE, BackplaneCounters, BackplaneState
from wsdeco.messages import Data

__all__ = ["MissingBackplane", "number_of_workers"]

logger: Final = logging.getLogger("wsdeco")

_SERVERS: Final = frozenset({"gunicorn", "hypercorn", "uvicorn"})


class MissingBackplane:
    """Reaches nobody, counts what the others do not get, and says so when a room is used.

    Args:
        advice: What to do about it.

    Attributes:
        counters: What the others have not got.
    """

    def __init__(self, advice: str) -> None:
        self.counters: BackplaneCounters = BackplaneCounters()
        self._advice = advice
        self._warned = False

    @property
    def state(self) -> BackplaneState:
        """There is no connection."""
        return "closed"

    def start(self, deliver: Callable[[str, Data], None], /) -> None:
        """Do nothing."""

    def subscribe(self, key: str, /) -> None:
        """Warn of a room that somebody joins; those of routes have members that nobody has asked for."""
        if not key.startswith((ROUTE, CONTROL)):
            self._warn()

    def unsubscribe(self, key: str, /) -> None:
        """Do nothing."""

    def publish_nowait(self, key: str, data: Data, /) -> bool:
        """Warn, and count the broadcast as lost for other processes."""
        self._warn()
        self.counters.lost += 1
        return False

    async def drained(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("rooms reach the connections of one worker process only: for all of them %s", self._advice)


def number_of_workers() -> int:
    """Return how many worker processes the server has that has called this one, as far as that can be known.

    uvicorn, hypercorn and gunicorn tell it to no application. It stands in the configuration that the functions hold
    from which this one was called.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _SERVERS:
            known: dict[str, Any] = frame.f_locals
            for config in (known.get("config"), getattr(known.get("self"), "cfg", None)):
                workers = getattr(config, "workers", None)
                if isinstance(workers, int) and workers > 1:
                    return workers
        frame = frame.f_back
    return 1
