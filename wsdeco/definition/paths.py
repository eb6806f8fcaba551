"""Route paths in Starlette's syntax: checked when a route is made, compared to tell whether two are the same."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from starlette.convertors import CONVERTOR_TYPES, Convertor
from starlette.routing import compile_path

from wsdeco.definition.signatures import alternatives, outcome_of, signature_of
from wsdeco.reasons import RouteError
from wsdeco.values import nearest

__all__ = ["check_path", "parameter_kinds", "path_shape", "unknown_path"]

_PARAMETER: Final = re.compile(r"{([a-zA-Z_][a-zA-Z0-9_]*)(?::([a-zA-Z_][a-zA-Z0-9_]*))?}")


def check_path(path: object, example: str = "'/ws', for instance") -> str:
    """Return `path` if Starlette can route it.

    Args:
        path: What was given for the path.
        example: How one is given where this one was.

    Raises:
        RouteError: It is not a `str`, does not begin with a slash, or its parameters are not well formed.
    """
    if not isinstance(path, str):
        raise RouteError(f"the path comes first and is a str, not {path!r}: write {example}")
    if not path.startswith("/"):
        raise RouteError(f"path {path!r} must begin with a slash: write {'/' + path!r}")
    if "?" in path or "#" in path:
        raise RouteError(f"path {path!r} must not hold a query or a fragment: read them from query_params")
    parameters: list[tuple[str, str]] = _PARAMETER.findall(path)
    names = [name for name, _ in parameters]
    if len(set(names)) < len(names):
        raise RouteError(f"path {path!r} uses a parameter twice: give each of {', '.join(names)} a name of its own")
    for _, convertor in parameters:
        if convertor and convertor not in CONVERTOR_TYPES:
            raise RouteError(
                f"path {path!r} uses an unknown convertor {convertor!r}: write one of {', '.join(CONVERTOR_TYPES)}"
            )
    if set("{}") & set(_PARAMETER.sub("", path)):
        raise RouteError(f"path {path!r} has braces that are no parameter: write {{name}} or {{name:int}}")
    return path


def parameter_kinds(path: str) -> dict[str, type | None]:
    """Return the parameters of `path`, each with the class of its values; `None` if its convertor tells none."""
    parameters = compile_path(path)[2] if "{" in path else {}
    return {name: _kind_of(convertor) for name, convertor in parameters.items()}


def _kind_of(convertor: Convertor[Any]) -> type | None:
    convert = type(convertor).convert
    kinds = alternatives(outcome_of(convert, signature_of(convert)).reply)
    return kinds[0] if len(kinds) == 1 and kinds[0] is not object else None


def path_shape(path: str) -> str:
    """Return `path` without the names of its parameters: two paths of one shape match the same URLs."""
    return _PARAMETER.sub(lambda match: "{:" + (match[2] or "str") + "}", path)


def unknown_path(path: str, known: Iterable[str]) -> RouteError:
    """Return the error that says which of the `known` paths was probably meant by `path`."""
    paths = list(known)
    matching = (each for each in paths if compile_path(each)[0].match(path))
    meant = next(matching, None) or nearest(path, paths)
    guess = f"did you mean {meant!r}? " if meant else ""
    there = f"there are {', '.join(map(repr, paths))}" if paths else "there is none"
    return RouteError(f"no connections are served on a path {path!r}: {guess}Paths as they are registered: {there}")
