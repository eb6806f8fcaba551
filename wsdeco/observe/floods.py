"""A flood of refusals or failures is summed up: one line a second, and a count of those like it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, TypeAlias

__all__ = ["FloodFilter"]

_SECOND: Final = 1.0

Key: TypeAlias = tuple[str, str]


class FloodFilter(logging.Filter):
    """Lets the first of a kind through in each second, and one line that counts those like it.

    Two records are of one kind if one logger makes them of one format. Warnings, errors and refusals are held back,
    nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began: dict[Key, float] = {}
        self._held_back: dict[Key, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is written."""
        if getattr(record, "is_summary", False):
            return True
        if record.levelno < logging.WARNING and getattr(record, "event", "") != "refused":
            return True
        # Formats are those of this package: no peer chooses what is kept.
        key = record.name, str(record.msg)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # Floods come from connections, and those live in a loop; elsewhere nothing would bring the count.
            return True
        now = time.monotonic()
        if now - self._began.get(key, -_SECOND) >= _SECOND:
            self._sum_up(key)
            self._began[key] = now
            return True
        held_back = self._held_back[key] = self._held_back.get(key, 0) + 1
        if held_back == 1:
            loop.call_later(_SECOND, self._sum_up, key)
        return False

    def _sum_up(self, key: Key) -> None:
        count = self._held_back.pop(key, 0)
        if count:
            name, message = key
            extra = {"is_summary": True, "event": "flood", "count": count}
            logging.getLogger(name).warning("%d more like this in the last second: %s", count, message, extra=extra)
