"""Log records as JSON, one object a line, by the standard library alone."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["JsonFormatter"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "is_summary"}
"""Attributes that every record has, or that say the same in another form."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, the fields of `extra`, and the traceback.

    Args:
        options: What uvicorn passes to its own formatters: whether to use colours. JSON has none.
    """

    def __init__(self, **options: object) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = record.exc_text or self.formatException(record.exc_info)
        # JSON escapes line ends, quotes, control bytes and lone surrogates.
        return json.dumps(line, default=str)
