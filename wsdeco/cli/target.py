"""The app that a command is about."""

from __future__ import annotations

from wsdeco.routing.application import Application
from wsdeco.server.loading import Reference, describe_failure, find

__all__ = ["find_app"]


def find_app(target: str) -> tuple[Application, Reference]:
    """Return the app that `target` means, and where other processes find it.

    Raises:
        SystemExit: There is none: with one line that says why, behind the traceback of what its module has raised.
    """
    try:
        return find(target)
    except Exception as exc:
        raise SystemExit(describe_failure(exc, target)) from None
