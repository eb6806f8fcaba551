"""What carries broadcasts between the worker processes of one machine."""

from __future__ import annotations

import logging
from collections.abc import Callable

from wsdeco.backplanes.choice import BACKPLANE_VARIABLE
from wsdeco.backplanes.interface import BackplaneCounters, BackplaneState
from wsdeco.backplanes.urls import open_backplane
from wsdeco.rooms.members import route_key
from wsdeco.routing.application import Application, rooms_of
from wsdeco.workers.nats_server import NatsServer, find_program

__all__ = ["choose_backplane", "use_backplane"]

logger = logging.getLogger("wsdeco")


def choose_backplane(app: Application) -> tuple[str | None, list[NatsServer]]:
    """Return the URL that workers are to use, and the broker behind it where it has been started for them.

    There is no URL where the app or the environment names one already, and where no broker is installed. Whether an app
    uses rooms shows itself only in a hook; that the extra is installed says it before.

    Raises:
        BackplaneError: The environment names one that cannot be used.
        ServerError: The broker is installed and cannot start.
    """
    if _is_chosen(app):
        return None, []
    program = find_program()
    if program is None:
        return None, []
    broker = NatsServer(program)
    return broker.url, [broker]


def use_backplane(app: Application, url: str | None) -> None:
    """Let `app`, in this worker process, use the backplane that `choose_backplane` has chosen."""
    if url is not None:
        # For this app alone: another one in the process, which is mounted in it, has rooms of its own.
        rooms_of(app).backplane = open_backplane(url)
    elif not _is_chosen(app):
        rooms_of(app).backplane = _NoBackplane()


def _is_chosen(app: Application) -> bool:
    rooms_of(app).find_backplane()
    return app.backplane is not None


class _NoBackplane:
    """Stands where a backplane is missed, and says so when a room is used."""

    def __init__(self) -> None:
        self.counters = BackplaneCounters()
        self._warned = False

    @property
    def state(self) -> BackplaneState:
        """There is no connection."""
        return "closed"

    def start(self, deliver: Callable[[str, str | bytes], None], /) -> None:
        """Do nothing."""

    def subscribe(self, key: str, /) -> None:
        """Warn of a room that somebody joins; those of routes have members that nobody has asked for."""
        if not key.startswith(route_key("")):
            self._warn()

    def unsubscribe(self, key: str, /) -> None:
        """Do nothing."""

    def publish_nowait(self, key: str, data: str | bytes, /) -> bool:
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
            logger.warning(
                "rooms reach the connections of one worker process only: for all of them `pip install "
                "'wsdeco[cluster]'`, or name a broker in %s",
                BACKPLANE_VARIABLE,
            )
