"""What a parameter can be given by its name: the headers, the path parameters, and whatever else a request has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, TypeAlias

from starlette.datastructures import Headers, QueryParams
from starlette.requests import HTTPConnection

__all__ = ["SUPPLIES", "Getter", "Supply", "injected_by", "path_supplies", "request_supply"]

Getter: TypeAlias = Callable[[HTTPConnection], object]
"""Takes what a parameter is given from the request."""


@dataclass(frozen=True, slots=True)
class Supply:
    """What a parameter can be given: its class, `None` if that is not known, and its source."""

    kind: type | None
    get: Getter


SUPPLIES: Final = {
    "headers": Supply(Headers, attrgetter("headers")),
    "query_params": Supply(QueryParams, attrgetter("query_params")),
}
"""What every request and every handshake can give."""


def request_supply(kind: type[HTTPConnection]) -> Supply:
    """Return what gives the request itself, which is of this class."""
    return Supply(kind, lambda connection: connection)


def path_supplies(kinds: Mapping[str, type | None]) -> dict[str, Supply]:
    """Return what gives the path parameters, each with the class of its values or `None` if that is not known."""
    return {name: Supply(kind, _path_parameter(name)) for name, kind in kinds.items()}


def _path_parameter(name: str) -> Getter:
    return lambda connection: connection.path_params[name]


def injected_by(parameter: inspect.Parameter, annotation: object) -> str | None:
    """Return the name of what FastAPI would fill a parameter by in one of its endpoints, such as `Depends`, if any.

    Args:
        parameter: The parameter, whose default may be `Depends(...)`.
        annotation: Its annotation, resolved, which may be `Annotated[..., Depends(...)]`.
    """
    marks: tuple[object, ...] = (parameter.default, *getattr(annotation, "__metadata__", ()))
    # Named and not imported: if there is such a mark, FastAPI is there as well.
    kinds: list[type] = [type(mark) for mark in marks]
    return next((kind.__name__ for kind in kinds if kind.__module__ == "fastapi.params"), None)
