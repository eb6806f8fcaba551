"""What an app says once about limits that the server it runs on does not keep."""

from __future__ import annotations

import builtins
import logging
import sys
from collections.abc import Iterable
from typing import Final

from wsdeco.routing.registry import RouteInfo

__all__ = ["announce_empty", "announce_idle", "announce_limits", "announce_missing_lifespan", "is_interactive"]

logger: Final = logging.getLogger("wsdeco")

_SERVERS_MAX_SIZE: Final = 16 * 1024 * 1024
"""Largest message that uvicorn and hypercorn take by default, in bytes."""


def announce_limits(infos: Iterable[RouteInfo]) -> None:
    """Warn of the limits that a server which `run` has not started may not keep."""
    limited = [(info.path, info.config) for info in infos if info.config is not None]
    large = [path for path, config in limited if config.max_message_size > _SERVERS_MAX_SIZE]
    if large:
        logger.warning(
            "max_message_size on %s is above what servers take by default: raise the server's own limit too "
            "(uvicorn: --ws-max-size)",
            ", ".join(large),
        )
    shared = [path for path, config in limited if config.max_connections_total]
    if shared:
        logger.warning(
            "max_connections_total on %s counts the connections of this process only, since this server does not "
            "count over several: `wsdeco run app.py --workers 4` does",
            ", ".join(shared),
        )


def announce_idle(infos: Iterable[RouteInfo]) -> None:
    """Warn of an `idle_timeout` on a server that shows no pings to its apps."""
    idle = [info.path for info in infos if info.config is not None and info.config.idle_timeout is not None]
    if idle:
        logger.warning(
            "idle_timeout on %s counts messages only: this server does not show pings to the app "
            "(uvicorn does with --ws wsdeco.protocol:WebSocketProtocol)",
            ", ".join(idle),
        )


def is_interactive() -> bool:
    """Return whether somebody types into a notebook or a shell, whose event loop is not the program's."""
    return hasattr(builtins, "__IPYTHON__") or hasattr(sys, "ps1")


def announce_empty() -> None:
    """Warn of an app that serves nothing (`run` refuses one)."""
    logger.warning(
        "no handler is registered in the app that is served here: decorate a class with @ws.handler('/ws'), in the "
        "module that the server imports or in one that this imports"
    )


def announce_missing_lifespan() -> None:
    """Warn of a lifespan that nothing has run."""
    logger.warning(
        "the lifespan of this app has not run: nothing runs that of a mounted app, so enter it in the lifespan "
        "of the app around it with `async with ws.app.router.lifespan_context(ws.app) as state: yield state`"
    )
