"""What carries broadcasts between the worker processes of one machine."""

from __future__ import annotations

from wsdeco.backplanes.choice import BACKPLANE_VARIABLE
from wsdeco.backplanes.missing import MissingBackplane
from wsdeco.backplanes.urls import open_backplane
from wsdeco.routing.application import Application, rooms_of
from wsdeco.workers.nats_server import NatsServer, find_program

__all__ = ["choose_backplane", "use_backplane"]


def choose_backplane(app: Application) -> tuple[str | None, list[NatsServer]]:
    """Return the URL that workers are to use, and the broker behind it if it has been started for them.

    There is no URL if the app or the environment names one already, or if no broker is installed. Whether an app
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


def use_backplane(app: Application, url: str | None) -> bool:
    """Let `app`, in this worker process, use the backplane that `choose_backplane` has chosen.

    Returns:
        Whether rooms reach the connections of all workers.
    """
    if url is not None:
        # For this app alone: an app that is mounted in it has rooms of its own.
        rooms_of(app).backplane = open_backplane(url)
    elif not _is_chosen(app):
        advice = f"`pip install 'wsdeco[cluster]'`, or name a broker in {BACKPLANE_VARIABLE}"
        rooms_of(app).backplane = MissingBackplane(advice)
        return False
    return True


def _is_chosen(app: Application) -> bool:
    rooms_of(app).find_backplane()
    return app.backplane is not None
