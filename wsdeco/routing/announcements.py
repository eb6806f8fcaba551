"""What an app says once about limits that the server it runs on does not keep."""

from __future__ import annotations

import builtins
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Final

from wsdeco.config import ConnectionConfig
from wsdeco.routing.registry import RouteInfo

__all__ = ["EMPTY", "MISSING_LIFESPAN", "announce_idle", "announce_limits", "is_interactive"]

logger: Final = logging.getLogger("wsdeco")

EMPTY: Final = (
    "no handler is registered in the app that is served here: decorate a class with @ws.handler('/ws'), in the "
    "module that the server imports or in one that this imports"
)
"""Said of an app that serves nothing (`run` refuses one)."""

MISSING_LIFESPAN: Final = (
    "the lifespan of this app has not run: nothing runs that of a mounted app, so enter it in the lifespan "
    "of the app around it with `async with ws.app.router.lifespan_context(ws.app) as state: yield state`"
)
"""Said of an app with a lifespan."""

_SERVERS_MAX_SIZE: Final = 16 * 1024 * 1024
"""Largest message that uvicorn and hypercorn take by default, in bytes."""


def announce_limits(infos: Iterable[RouteInfo]) -> None:
    """Warn of the limits that a server which `run` has not started may not keep."""
    _announce(
        infos,
        lambda config: config.max_message_size > _SERVERS_MAX_SIZE,
        "max_message_size on %s is above what servers take by default: raise the server's own limit too "
        "(uvicorn: --ws-max-size)",
    )
    _announce(
        infos,
        lambda config: config.max_connections_total is not None,
        "max_connections_total on %s counts the connections of this process only, since this server does not "
        "count over several: `wsdeco run app.py --workers 4` does",
    )


def announce_idle(infos: Iterable[RouteInfo]) -> None:
    """Warn of an `idle_timeout` on a server that shows no pings to its apps."""
    _announce(
        infos,
        lambda config: config.idle_timeout is not None,
        "idle_timeout on %s counts messages only: this server does not show pings to the app "
        "(uvicorn does with --ws wsdeco.protocol:WebSocketProtocol)",
    )


def _announce(infos: Iterable[RouteInfo], is_concerned: Callable[[ConnectionConfig], bool], text: str) -> None:
    paths = [info.path for info in infos if info.config is not None and is_concerned(info.config)]
    if paths:
        logger.warning(text, ", ".join(paths))


def is_interactive() -> bool:
    """Return whether somebody types into a notebook or a shell, whose event loop is not the program's."""
    return hasattr(builtins, "__IPYTHON__") or hasattr(sys, "ps1")
