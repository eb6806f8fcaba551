"""How the faults of a definition are worded, and the one error that lists them."""

from __future__ import annotations

from collections.abc import Iterable

from wsdeco.definition.signatures import shown_signature, where
from wsdeco.reasons import HandlerError

__all__ = ["class_name", "described", "raise_class_faults", "raise_faults"]


def class_name(cls: type) -> str:
    """Return the qualified name of `cls`, without the function it was defined in."""
    return cls.__qualname__.rpartition("<locals>.")[2]


def described(name: str, function: object) -> str:
    """Return `name` with the signature of `function` and the place of its definition."""
    place = where(function)
    return f"{name}{shown_signature(function)}" + (f" [{place}]" if place else "")


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
    raise_faults(f"class {class_name(cls)} cannot handle WebSocket connections", faults)
