"""Where the log of a server that `run` starts goes: to uvicorn's handlers, in its format or as JSON."""

from __future__ import annotations

import copy
import logging
from typing import Any, Final

from uvicorn.config import LOGGING_CONFIG, Config

from wsdeco.observe.access import AccessLog
from wsdeco.observe.floods import FloodFilter
from wsdeco.observe.json_format import JsonFormatter
from wsdeco.observe.numbers import numbers_of
from wsdeco.reasons import printable
from wsdeco.routing.application import Application, context_of
from wsdeco.tracebacks import PRINTABLE_TRACEBACKS

__all__ = ["PRINTABLE_ARGUMENTS", "log_config", "watch"]


class _PrintableArguments(logging.Filter):
    """Cuts and escapes the texts of a line: uvicorn's has the path of a request at full length."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass."""
        if isinstance(record.args, tuple):
            record.args = tuple(printable(each) if isinstance(each, str) else each for each in record.args)
        return True


PRINTABLE_ARGUMENTS: Final = _PrintableArguments()
"""Of the lines of uvicorn about requests."""

_FORMATTER: Final = {"()": JsonFormatter}


def log_config(log_format: str) -> dict[str, Any]:
    """Return the configuration of uvicorn's loggers: its own, with JSON in the place of its formats if asked for."""
    config = copy.deepcopy(LOGGING_CONFIG)
    if log_format == "json":
        config["formatters"] = dict.fromkeys(config["formatters"], _FORMATTER)
    return config


def watch(app: Application, config: Config, *, is_shown: bool) -> None:
    """Count the connections of `app`, and log them.

    Args:
        app: The application that is about to be served.
        config: uvicorn's configuration, which has set up its loggers.
        is_shown: The loggers of wsdeco write through the handlers of uvicorn, unless the program has its own.
    """
    wsdeco, access = logging.getLogger("wsdeco"), logging.getLogger("wsdeco.access")
    numbers_of(context_of(app)).log = AccessLog() if config.access_log else None
    if access.level == logging.NOTSET:
        access.setLevel(logging.INFO)
    for each in (wsdeco, access):
        _sum_up_floods(each)
    logging.getLogger("asyncio").addFilter(PRINTABLE_TRACEBACKS)
    logging.getLogger("uvicorn.access").addFilter(PRINTABLE_ARGUMENTS)
    if not is_shown or logging.getLogger().handlers:
        # The program has said where the log goes.
        return
    # Peers make those of uvicorn as well: requests that break HTTP, and routes that fail.
    _sum_up_floods(logging.getLogger("uvicorn.error"))
    # uvicorn sets the level that it was told on this one; that of its root stays INFO.
    wsdeco.setLevel(logging.getLogger("uvicorn.error").level)
    wsdeco.handlers = logging.getLogger("uvicorn").handlers.copy()


def _sum_up_floods(logger: logging.Logger) -> None:
    if not any(isinstance(known, FloodFilter) for known in logger.filters):
        # Before tracebacks are made printable, which costs more.
        logger.filters.insert(0, FloodFilter())
