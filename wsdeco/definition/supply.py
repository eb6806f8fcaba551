"""What a parameter can be given by its name: the headers, the path parameters, and whatever else a request has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, TypeAlias

from starlette.convertors import CONVERTOR_TYPES
from starlette.datastructures import Headers, QueryParams
from starlette.requests import HTTPConnection

from wsdeco.definition.hooks import ARGUMENTS
from wsdeco.definition.signatures import accepts, shown_type
from wsdeco.values import nearest

__all__ = ["SUPPLIES", "Supply", "fault_of", "path_supplies", "request_supply", "supplied_call"]

_Getter: TypeAlias = Callable[[HTTPConnection], object]
"""Takes what a parameter is given from the request."""


@dataclass(frozen=True, slots=True)
class Supply:
    """What a parameter can be given: its class, `None` if that is not known, its source, if it is in the path."""

    kind: type | None
    get: _Getter
    in_path: bool = False


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
    return {name: Supply(kind, _path_parameter(name), in_path=True) for name, kind in kinds.items()}


def _path_parameter(name: str) -> _Getter:
    return lambda connection: connection.path_params[name]


def fault_of(
    parameter: inspect.Parameter,
    annotation: object,
    supply: Supply | None,
    supplies: Mapping[str, Supply],
    otherwise: str = "give it a default",
) -> str | None:
    """Return why a parameter cannot be given what a request has, and what to write; `None` if it can.

    Args:
        parameter: The parameter.
        annotation: Its annotation, resolved, with its metadata.
        supply: What it is given, if that is something.
        supplies: All that it could be given, by name.
        otherwise: What to do if it is meant to be none of them.
    """
    name = parameter.name
    mark = _injected_by(parameter, annotation)
    if mark is not None:
        return (
            f"has {mark}(...) for `{name}`, which FastAPI fills in its own endpoints only: write one that takes "
            f"`{name}`; for a handler that is `async def endpoint(websocket: WebSocket, {name}=...)` with "
            f"`await handle_socket(websocket, Handler({name}))` in it"
        )
    if supply is None and parameter.default is parameter.empty:
        return f"needs `{name}`, which nothing supplies: {_advice(name, supplies, otherwise)}"
    if supply is None or supply.kind is None or accepts(annotation, supply.kind):
        return None
    wanted = f"`{name}: {supply.kind.__name__}`"
    convertor = annotation.__name__.lower() if isinstance(annotation, type) else None
    if supply.in_path and convertor in CONVERTOR_TYPES:
        wanted += f", or `{{{name}:{convertor}}}` in the path"
    return f"annotates `{name}: {shown_type(parameter.annotation)}`, and gets {shown_type(supply.kind)}: write {wanted}"


def _injected_by(parameter: inspect.Parameter, annotation: object) -> str | None:
    """Return the name of what FastAPI would fill a parameter by in one of its endpoints, such as `Depends`, if any."""
    marks: tuple[object, ...] = (parameter.default, *getattr(annotation, "__metadata__", ()))
    # Named and not imported: if there is such a mark, FastAPI is there as well.
    kinds: list[type] = [type(mark) for mark in marks]
    return next((kind.__name__ for kind in kinds if kind.__module__ == "fastapi.params"), None)


def _advice(name: str, supplies: Mapping[str, Supply], otherwise: str) -> str:
    if name in ARGUMENTS["on_connect"]:
        return (
            f"it comes with the connection, so write `async def on_connect(self, addr, sink)` and keep `{name}` there"
        )
    meant = nearest(name, supplies)
    guess = f"did you mean `{meant}`? " if meant else ""
    choice = ", ".join(f"`{each}`" for each in supplies)
    return f"{guess}It can be one of {choice}, or a parameter of the path; {otherwise}"


def supplied_call(
    function: Callable[..., Any], parameters: Iterable[inspect.Parameter], supplied: Mapping[str, Supply]
) -> Callable[[HTTPConnection], Any]:
    """Return what calls `function` with what a request gives, everything else computed.

    Args:
        function: What is called.
        parameters: Its parameters, as `parameters_of` returns them.
        supplied: What they are given, by their names; others keep their defaults.
    """
    positional: list[_Getter] = []
    named: dict[str, _Getter] = {}
    for parameter in parameters:
        supply = supplied.get(parameter.name)
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(_constant(parameter.default) if supply is None else supply.get)
        elif supply is not None:
            named[parameter.name] = supply.get
    if not positional:
        return lambda connection: function(**{name: get(connection) for name, get in named.items()})
    return lambda connection: function(
        *[get(connection) for get in positional], **{name: get(connection) for name, get in named.items()}
    )


def _constant(value: object) -> _Getter:
    return lambda connection: value
