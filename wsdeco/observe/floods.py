"""A flood of refusals or failures is summed up: one line a second, and a count of those like it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TypeAlias

__all__ = ["FloodFilter"]

Key: TypeAlias = tuple[str, str, str]
"""The name of the logger, the format, and what else tells kinds apart."""


class FloodFilter(logging.Filter):
    """Lets the first of a kind through in each second, and one line that counts those like it.

    Two records are of one kind if one logger makes them of one format, about the same handler, for the same cause and
    with an exception of the same class. Warnings, errors and refusals are held back, nothing else.

    Attributes:
        seconds: How long those like the first are held back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: float = 1.0
        self._began: dict[Key, float] = {}
        self._held_back: dict[Key, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is written."""
        if getattr(record, "is_summary", False):
            return True
        if record.levelno < logging.WARNING and getattr(record, "event", "") != "refused":
            return True
        key = record.name, str(record.msg), _details(record)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # Floods come from connections, and those live in a loop; elsewhere nothing would bring the count.
            return True
        now = time.monotonic()
        if now - self._began.get(key, -self.seconds) >= self.seconds:
            self._sum_up(key)
            self._began[key] = now
            return True
        held_back = self._held_back[key] = self._held_back.get(key, 0) + 1
        if held_back == 1:
            loop.call_later(self.seconds, self._sum_up, key)
        return False

    def _sum_up(self, key: Key) -> None:
        count = self._held_back.pop(key, 0)
        if count:
            name, message, details = key
            extra = {"is_summary": True, "event": "flood", "count": count}
            text = f"{message} ({details})" if details else message
            logging.getLogger(name).warning("%d more like this in the last second: %s", count, text, extra=extra)


def _details(record: logging.LogRecord) -> str:
    # No peer chooses what is kept: lines that begin with a text begin with the name of a handler or a hook.
    first = record.args[0] if isinstance(record.args, tuple) and record.args else None
    handler = first if isinstance(first, str) and str(record.msg).startswith("%s") else ""
    kind = record.exc_info[0] if record.exc_info else None
    named = handler, getattr(record, "cause", ""), "" if kind is None else kind.__qualname__
    return ", ".join(each for each in named if each)
