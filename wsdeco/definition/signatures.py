"""What a callable says of itself: its layers, how it runs, its signature, and what its annotations let in.

Everything here reads and calls nothing. What cannot be read counts as unknown, and unknown is never a fault.
"""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, partialmethod, singledispatchmethod
from types import MethodType, NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = [
    "UNKNOWN",
    "Outcome",
    "accepts",
    "alternatives",
    "bindable",
    "call_of",
    "class_annotations",
    "innermost",
    "is_subclass",
    "is_typed",
    "is_wrapper",
    "namespace_of",
    "outcome_of",
    "parameters_of",
    "passes_on",
    "receivers",
    "resolve",
    "shown_type",
    "signature_of",
    "where",
]

UNKNOWN: Final = inspect.Parameter.empty
"""Stands for an annotation that is missing, or that names what only a type checker can see."""

_SELF: Final = object()
_MOST_LAYERS: Final = 100
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

class_annotations: Callable[..., dict[str, Any]]
"""Returns the annotations of a class, those of its bases not among them."""

if sys.version_info >= (3, 14):  # pragma: no cover
    from annotationlib import Format

    # Annotations are evaluated when they are asked for, and may name what exists for type checkers only.
    _read_signature = partial(inspect.signature, follow_wrapped=False, annotation_format=Format.FORWARDREF)
    class_annotations = partial(inspect.get_annotations, format=Format.FORWARDREF)
else:  # pragma: no cover
    _read_signature = partial(inspect.signature, follow_wrapped=False)
    class_annotations = inspect.get_annotations


@dataclass(frozen=True, slots=True)
class Outcome:
    """What calling a hook gives.

    Attributes:
        running: Whether the callable is awaited, iterated with `async for`, or done when it returns.
        reply: The annotation of what it returns when awaited, or of what it yields; `UNKNOWN` without one.
        misannotated: It yields, though its annotation is not that of an asynchronous iterator.
    """

    running: Literal["coroutine", "stream", "plain"]
    reply: object
    misannotated: bool = False


def _layers(function: object) -> Iterator[object]:
    """Yield `function` and what runs inside it, outermost first."""
    for _ in range(_MOST_LAYERS):
        yield function
        wrapped = getattr(function, "__wrapped__", None)
        if isinstance(function, MethodType):
            function = function.__func__
        elif isinstance(function, partial | partialmethod | singledispatchmethod):
            function = function.func
        elif wrapped is not None:
            function = wrapped
        elif isinstance(function, type) or inspect.isroutine(function) or not callable(function):
            return
        else:
            function = type(function).__call__


def namespace_of(function: object) -> Mapping[str, object]:
    """Return the globals that the annotations of `function` were written among."""
    found: Mapping[str, object] = {}
    for layer in _layers(function):
        found = getattr(layer, "__globals__", found)
    return found


def where(function: object) -> str:
    """Return `file:line` of the innermost function in `function`, or an empty string if there is no source."""
    found = ""
    for layer in _layers(function):
        code = getattr(layer, "__code__", None)
        if code is not None:
            found = f"{code.co_filename}:{code.co_firstlineno}"
    return found


def signature_of(function: object, *, bound: bool = False) -> inspect.Signature | None:
    """Return how `function` is called, or `None` if it does not say.

    Args:
        function: Any callable.
        bound: Leave out the first parameter, which a method call fills.
    """
    return call_of(function, bound=bound)[1]


def call_of(function: object, *, bound: bool = False) -> tuple[object, inspect.Signature | None]:
    """Return the layer of `function` that says how it is called, and what it says.

    A wrapper that passes everything on (`*args, **kwargs`) is called like what it wraps; any other is called as
    it is written.
    """
    layer, signature = function, None
    for layer in _wrapped_layers(function):
        signature = _own_signature(layer, bound=bound)
        if signature is not None and not passes_on(signature):
            break
    return layer, signature


def innermost(function: object) -> object:
    """Return what `functools.wraps` says is inside `function`, or `function` itself."""
    *_, found = _wrapped_layers(function)
    return found


def is_wrapper(function: object) -> bool:
    """Return whether `functools.wraps` made `function` look like another one; its annotations are then not its own."""
    return getattr(function, "__wrapped__", None) is not None


def _wrapped_layers(function: object) -> Iterator[object]:
    for _ in range(_MOST_LAYERS):
        yield function
        wrapped: object = getattr(function, "__wrapped__", None)
        if wrapped is None:
            return
        function = wrapped


def _own_signature(function: object, *, bound: bool) -> inspect.Signature | None:
    called: Any = MethodType(function, _SELF) if bound and callable(function) else function
    try:
        return _read_signature(called)
    except (TypeError, ValueError):
        return None


def parameters_of(signature: inspect.Signature | None) -> list[inspect.Parameter]:
    """Return the parameters that are filled by name: all but `*args` and `**kwargs`, and none that cannot be read."""
    return [] if signature is None else [each for each in signature.parameters.values() if each.kind not in _VARIADIC]


def passes_on(signature: inspect.Signature) -> bool:
    """Return whether `signature` is `(*args, **kwargs)`, which tells nothing."""
    return tuple(parameter.kind for parameter in signature.parameters.values()) == _VARIADIC


def bindable(signature: inspect.Signature | None, count: int) -> bool:
    """Return whether `signature`, if it can be read, lets itself be called with `count` positional arguments."""
    if signature is None:
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def receivers(signature: inspect.Signature | None, count: int) -> list[inspect.Parameter]:
    """Return the parameters that receive the first `count` positional arguments, in order; none that cannot be read."""
    found: list[inspect.Parameter] = []
    for parameter in () if signature is None else signature.parameters.values():
        if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            found.append(parameter)
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            found += [parameter] * (count - len(found))
    return found[:count]


def resolve(annotation: object, namespace: Mapping[str, object], *, extras: bool = False) -> object:
    """Return what `annotation` stands for among the names of `namespace`, or `UNKNOWN`.

    Args:
        annotation: As it is written.
        namespace: The globals it is written among.
        extras: Keep the metadata of `Annotated`.
    """
    # Nearly all annotations are classes or their names; evaluating one takes 20 us.
    found = annotation
    if isinstance(annotation, str) and annotation.isidentifier():
        found = namespace.get(annotation, vars(builtins).get(annotation, UNKNOWN))
    if found is None:
        return NoneType
    if isinstance(found, type) or (
        isinstance(found, UnionType) and all(isinstance(part, type) for part in get_args(found))
    ):
        return found

    def holder() -> None: ...

    holder.__annotations__ = {"it": annotation}
    try:
        resolved: object = get_type_hints(holder, dict(namespace), include_extras=extras)["it"]
    except Exception:
        # A string can hold anything, and names imported for type checkers only do not exist here.
        return UNKNOWN
    return resolved


def alternatives(annotation: object) -> tuple[type, ...]:
    """Return the classes a value of the resolved `annotation` may have; `object` for what has no class."""
    if annotation is UNKNOWN or annotation is Any:
        return (object,)
    if isinstance(annotation, type):
        return (annotation,)
    if get_origin(annotation) is Literal:
        return tuple({type(value): None for value in get_args(annotation)})
    parts = _parts(annotation)
    if parts is not None:
        return tuple(option for part in parts for option in alternatives(part))
    named: object = get_origin(annotation) or annotation
    return (named,) if isinstance(named, type) else (object,)


def _parts(annotation: object) -> tuple[object, ...] | None:
    """Return the annotations that this one stands for, if it stands for others."""
    origin = get_origin(annotation)
    if origin is Union or origin is UnionType:
        return get_args(annotation)
    if origin is Annotated:
        return get_args(annotation)[:1]
    if isinstance(annotation, TypeVar):
        bound: object = annotation.__bound__
        return annotation.__constraints__ or (object if bound is None else bound,)
    if isinstance(annotation, NewType):
        return (annotation.__supertype__,)
    try:
        # That of a `type` statement, which may have parameters.
        value: object = getattr(origin or annotation, "__value__", UNKNOWN)
    except NameError:
        # It is evaluated here, and may name what exists for type checkers only.
        return (object,)
    return None if value is UNKNOWN else (value,)


def is_subclass(kind: type, of: type | tuple[type, ...]) -> bool:
    """Return `issubclass(kind, of)`; a class that cannot answer (a protocol with attributes) counts as yes."""
    try:
        return issubclass(kind, of)
    except TypeError:
        return True


def accepts(annotation: object, arriving: type) -> bool:
    """Return whether a parameter with the resolved `annotation` may be given an instance of `arriving`."""
    options = alternatives(annotation)
    # PEP 484: if a float is asked for, an int will do.
    return any(is_subclass(arriving, option) for option in options) or (arriving is int and float in options)


def is_typed(annotation: object) -> bool:
    """Return whether a value of the resolved `annotation` is a message with a type, neither text nor bytes."""
    return annotation is Any or not all(_is_raw(option) for option in alternatives(annotation))


def _is_raw(option: type) -> bool:
    return is_subclass(option, (str, bytes, NoneType)) or is_subclass(str, option) or is_subclass(bytes, option)


def shown_type(annotation: object) -> str:
    """Return `annotation` as it is written in source."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def outcome_of(function: object, signature: inspect.Signature | None) -> Outcome:
    """Return how `function` runs and what it is annotated to give.

    The outermost layer that is asynchronous decides; what it gives is unknown if it wraps another. A plain function
    counts as asynchronous when its annotation says that it returns an awaitable or an asynchronous iterator.
    """
    annotation = UNKNOWN if signature is None else resolve(signature.return_annotation, namespace_of(function))
    for layer in _layers(function):
        own = UNKNOWN if is_wrapper(layer) else annotation
        if inspect.iscoroutinefunction(layer):
            return Outcome("coroutine", own)
        if inspect.isasyncgenfunction(layer):
            return Outcome("stream", _part(own, AsyncIterable, 0), misannotated=not accepts(own, AsyncGenerator))
    if _is_always(annotation, AsyncIterable):
        return Outcome("stream", _part(annotation, AsyncIterable, 0))
    if _is_always(annotation, Awaitable):
        return Outcome("coroutine", _part(annotation, Awaitable, -1))
    return Outcome("plain", annotation)


def _is_always(annotation: object, kind: type) -> bool:
    return all(is_subclass(option, kind) for option in alternatives(annotation))


def _part(annotation: object, kind: type, index: int) -> object:
    parts = get_args(annotation) if _is_always(annotation, kind) else ()
    return parts[index] if parts else UNKNOWN
