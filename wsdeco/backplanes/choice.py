"""Which backplane an app has: the one it names, or the one that the environment names."""

from __future__ import annotations

import os
from typing import Final, cast

from wsdeco.backplanes.interface import Backplane, PublishErrors
from wsdeco.backplanes.missing import MissingBackplane, number_of_workers
from wsdeco.reasons import BackplaneError

__all__ = ["BACKPLANE_VARIABLE", "backplane_of_environment", "checked_backplane", "checked_errors"]

BACKPLANE_VARIABLE: Final = "WSDECO_BACKPLANE"
"""Names the backplane of an app that names none, in the environment."""


def checked_backplane(backplane: object) -> Backplane | None:
    """Return the backplane that an app names by a URL or an object.

    Raises:
        BackplaneError: The client library of the backplane is not installed.
        TypeError: `backplane` is neither a URL nor a backplane.
        ValueError: The URL cannot be used.
    """
    if isinstance(backplane, str):
        return _open_backplane(backplane)
    methods = ("start", "subscribe", "unsubscribe", "publish_nowait", "drained", "close")
    missing = [name for name in methods if not callable(getattr(backplane, name, None))]
    if backplane is not None and missing:
        raise TypeError(
            "backplane must be a URL such as 'nats://127.0.0.1:4222', or an object with the methods of "
            f"wsdeco.Backplane: {type(backplane).__name__} has no {', '.join(missing)}"
        )
    return cast("Backplane | None", backplane)


def backplane_of_environment() -> Backplane | None:
    """Return the backplane that the environment names; if it names none, one only if it is missed.

    That is in one of several worker processes of somebody else's server.

    Raises:
        BackplaneError: It names none that can be used.
    """
    url = os.environ.get(BACKPLANE_VARIABLE)
    if not url:
        if number_of_workers() == 1:
            return None
        return MissingBackplane(
            f"name a broker in {BACKPLANE_VARIABLE}, or serve with `wsdeco run --workers` and `pip install "
            "'wsdeco[cluster]'`"
        )
    try:
        return _open_backplane(url)
    except (BackplaneError, ValueError) as exc:
        raise BackplaneError(f"the environment variable {BACKPLANE_VARIABLE} names no backplane to use: {exc}") from exc


def _open_backplane(url: str) -> Backplane:
    from wsdeco.backplanes import urls  # noqa: PLC0415 - loaded only if there are other processes

    return urls.open_backplane(url)


def checked_errors(publish_errors: object) -> PublishErrors:
    """Return `publish_errors`.

    Raises:
        ValueError: It is neither `"count"` nor `"raise"`.
    """
    if publish_errors not in ("count", "raise"):
        raise ValueError(f"publish_errors must be 'count' or 'raise', not {publish_errors!r}")
    return publish_errors
