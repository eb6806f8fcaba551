"""How the faults of a definition are worded, and the one error that lists them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from wsdeco.definition.signatures import signature_of, where
from wsdeco.reasons import HandlerError

__all__ = ["described", "name_of", "raise_class_faults", "raise_faults"]


def name_of(target: object) -> str:
    """Return the qualified name of a class or function, or else of the class of `target`, without what it stands in."""
    named: Any = target if hasattr(target, "__qualname__") else type(target)
    return str(named.__qualname__).rpartition("<locals>.")[2]


def described(name: str, function: object) -> str:
    """Return `name` with the signature of `function` as its author wrote it, and the place of its definition."""
    place = where(function)
    return f"{name}{signature_of(function) or '(...)'}" + (f" [{place}]" if place else "")


def raise_faults(heading: str, faults: Iterable[str]) -> None:
    """Raise one error that lists all `faults` below `heading`.

    Raises:
        HandlerError: There are faults.
    """
    lines = [f"{heading}:", *faults]
    if len(lines) > 1:
        raise HandlerError("\n  - ".join(lines))


def raise_class_faults(cls: type, faults: Iterable[str]) -> None:
    """Raise one error for all `faults` of `cls`.

    Raises:
        HandlerError: There are faults.
    """
    raise_faults(f"class {name_of(cls)} cannot handle WebSocket connections", faults)
