"""The checks at definition: which hooks a class has, how they run, and everything that is wrong with them.

Pure: a class is read, nothing of it is called. Every check yields its faults, so that one error can list them all.
"""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence, MutableSet
from dataclasses import dataclass
from functools import cached_property, partialmethod, singledispatchmethod
from types import FunctionType, MethodType, NoneType
from typing import Any, Final

from wsdeco.channels.data import Address
from wsdeco.channels.sink import Sink
from wsdeco.definition.signatures import (
    UNKNOWN,
    Outcome,
    accepts,
    alternatives,
    bindable,
    calling_layer,
    class_annotations,
    innermost,
    is_subclass,
    is_wrapper,
    namespace_of,
    outcome_of,
    receivers,
    resolve,
    shown_signature,
    shown_type,
    signature_of,
    where,
)
from wsdeco.reasons import Close, Error, HandlerError, HandlerWarning, Timeout, Unknown

__all__ = [
    "HOOK_NAMES",
    "Hooks",
    "abstract_faults",
    "class_name",
    "described",
    "handler_faults",
    "hook_faults",
    "raise_class_faults",
    "raise_faults",
    "read_hooks",
    "require_class",
    "user_bases",
    "warn_of_shared_attributes",
]

HOOK_NAMES: Final = ("on_connect", "on_message", "on_disconnect")

_WANTED: Final = {
    "on_connect": "async def on_connect(self, addr, sink)",
    "on_message": "async def on_message(self, text)",
    "on_disconnect": "async def on_disconnect(self, reason)",
}
"""How each hook is written."""

_ARGUMENTS: Final = {"on_connect": ("addr", "sink"), "on_message": ("text",), "on_disconnect": ("reason",)}
"""What each hook is called with, positionally."""

_REASONS: Final = (Close, Error, Timeout, Unknown)

_OTHER_NAMES: Final = {
    "on_open": "on_connect",
    "on_opened": "on_connect",
    "on_msg": "on_message",
    "on_receive": "on_message",
    "on_received": "on_message",
    "on_recv": "on_message",
    "on_close": "on_disconnect",
    "on_closed": "on_disconnect",
}
"""What other frameworks call the hooks."""

_POSSIBLE_NAMES: Final = {
    "connect": "on_connect",
    "open": "on_connect",
    "on_ready": "on_connect",
    "message": "on_message",
    "receive": "on_message",
    "recv": "on_message",
    "on_data": "on_message",
    "on_text": "on_message",
    "close": "on_disconnect",
    "disconnect": "on_disconnect",
    "on_error": "on_disconnect",
}
"""Names of helpers in a class that has hooks, and probably meant as hooks in a class that has none."""

_NO_METHODS: Final = (staticmethod, classmethod, property, cached_property)

_BOUND: Final = (MethodType, partialmethod)
"""What has been given its `self`, when `_called` has looked at it."""

_CLOSE_MATCH: Final = 0.85
"""Similarity from which a name counts as a misspelt hook; `on_collect` is 0.8 of `on_connect`."""

_NOT_MISSPELT: Final = frozenset({"on_reconnect"})
"""Similar names that mean something else."""

_DEFAULTS_MODULE: Final = "wsdeco.definition.base"
"""Where the hooks are defined that stand in for missing ones; those do not count as defined."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the lifecycle needs to know of a handler class.

    Attributes:
        takes_text: `on_message` takes text messages.
        takes_binary: `on_message` takes binary messages.
        streams: `on_message` is an asynchronous generator, each of whose values is a reply.
    """

    takes_text: bool
    takes_binary: bool
    streams: bool


@dataclass(frozen=True, slots=True)
class _Hook:
    """A hook as a class defines it.

    Attributes:
        name: Which of the hooks it is.
        label: Its place, for messages.
        raw: What stands in the class.
        function: What is called, before `self` is bound.
        signature: How the bound hook is called, if that can be read.
        parameters: The parameters that receive the hook's arguments, each with its resolved annotation; a wrapper
            may convert what it passes on, so what it has from the wrapped function tells nothing here.
        data: The resolved annotation of the first argument, in a wrapped function as well.
        outcome: How it runs and what it gives.
    """

    name: str
    label: str
    raw: object
    function: object
    signature: inspect.Signature | None
    parameters: tuple[tuple[inspect.Parameter, object], ...]
    data: object
    outcome: Outcome


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


def require_class(cls: object) -> None:
    """Refuse what is not a class.

    Raises:
        HandlerError: `cls` is a function, an instance or something else; the error says what to write.
    """
    if isinstance(cls, type):
        return
    if inspect.isroutine(cls):
        raise HandlerError(
            f"{described(cls.__name__, cls)} is a function, and a handler is a class: write `class Handler:` with "
            f"`{_WANTED['on_message']}` in it; a function that answers requests is registered with `@ws.route(path)`"
        )
    origin: object = getattr(cls, "__origin__", None)
    if isinstance(origin, type):
        raise HandlerError(f"{shown_type(cls)} is not a class of its own: write `{class_name(origin)}`")
    name = class_name(type(cls))
    raise HandlerError(f"a handler is a class, and this is an instance of {name}: write a class in its place")


def read_hooks(cls: type) -> Hooks:
    """Return what the lifecycle needs to know of `cls`, which has no faults."""
    hook = _find_hook(cls, "on_message")
    if hook is None:
        return Hooks(takes_text=False, takes_binary=False, streams=False)
    takes_binary = hook.data is not UNKNOWN and accepts(hook.data, bytes)
    return Hooks(
        takes_text=not takes_binary or accepts(hook.data, str),
        takes_binary=takes_binary,
        streams=hook.outcome.running == "stream",
    )


def handler_faults(cls: type) -> Iterator[str]:
    """Yield what keeps `cls` from handling connections: faults of its hooks, misspelt and missing ones."""
    yield from hook_faults(cls)
    missing = [name for name in HOOK_NAMES if not any(name in vars(base) for base in user_bases(cls))]
    misspelt = list(_named_like_hooks(cls, missing, _OTHER_NAMES))
    yield from misspelt
    if len(missing) == len(HOOK_NAMES) and not misspelt:
        choice = "`, `".join(_WANTED.values())
        yield f"it has no hook: write at least one of `{choice}`"
        yield from _named_like_hooks(cls, missing, _POSSIBLE_NAMES)


def hook_faults(cls: type) -> Iterator[str]:
    """Yield the faults of those hooks that `cls` has."""
    for name in HOOK_NAMES:
        hook = _find_hook(cls, name)
        if hook is not None:
            yield from (f"{hook.label} {fault}" for fault in _faults_of(hook))
        else:
            yield from _hidden_hook(cls, name)


def abstract_faults(cls: type) -> Iterator[str]:
    """Yield what keeps `cls` from being instantiated, if abstract methods are left."""
    left = sorted(getattr(cls, "__abstractmethods__", ()))
    if left:
        yield f"abstract methods are left: define {', '.join(left)}, or decorate a subclass that does"


def user_bases(cls: type) -> list[type]:
    """Return the classes of the method resolution order that are neither Python's root nor this library's."""
    return [base for base in cls.__mro__ if base is not object and base.__module__ != _DEFAULTS_MODULE]


def warn_of_shared_attributes(cls: type) -> None:
    """Warn of mutable class attributes, which all connections share.

    Constants (written in capitals or annotated `Final`) and what is annotated `ClassVar` are shared on purpose. Only
    bases from the package of `cls` are looked at.
    """
    shared = list(_shared_attributes(cls))
    if not shared:
        return
    names = ", ".join(f"{name} ({type(value).__name__})" for name, value in shared)
    first = shared[0][0]
    message = (
        f"class {class_name(cls)}: every connection shares the mutable class attribute {names}: "
        f"set `self.{first}` in `__init__` or `on_connect` to give each connection its own, "
        f"or annotate it `{first}: ClassVar[...]` if sharing is meant"
    )
    hooks = filter(None, (_find_hook(cls, name) for name in HOOK_NAMES))
    file, _, line = next((where(hook.function) for hook in hooks), "").rpartition(":")
    warnings.warn_explicit(message, HandlerWarning, file or cls.__module__, int(line or 1), cls.__module__)


def _shared_attributes(cls: type) -> Iterator[tuple[str, object]]:
    own = [base for base in user_bases(cls) if _package(base) == _package(cls)]
    # What a base from elsewhere has as well is that library's affair, such as `model_config` of a pydantic model.
    foreign = {name for base in cls.__mro__ if base not in own for name in vars(base)}
    annotations = ChainMap(*(class_annotations(base) for base in own))
    visible = ChainMap(*(dict(vars(base)) for base in own))
    for name in dict.fromkeys(name for base in own for name in vars(base)):
        is_meant = name.isupper() or any(word in str(annotations.get(name)) for word in ("ClassVar", "Final"))
        is_mutable = isinstance(visible[name], (MutableSequence, MutableMapping, MutableSet))
        if is_mutable and not is_meant and name not in foreign and not name.startswith("__"):
            yield name, visible[name]


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _find_hook(cls: type, name: str) -> _Hook | None:
    for owner in cls.__mro__:
        if name in vars(owner):
            raw: object = vars(owner)[name]
            return None if _is_default(raw) else _as_hook(name, owner, raw)
    return None


def _is_default(raw: object) -> bool:
    # Its globals, as `functools.wraps` would give its `__module__` to a function of the user's.
    return isinstance(raw, FunctionType) and raw.__globals__.get("__name__") == _DEFAULTS_MODULE


def _as_hook(name: str, owner: type, raw: object) -> _Hook:
    function = _called(raw)
    bound = hasattr(type(raw), "__get__") and not _is_one_of(_BOUND, raw)
    signature = signature_of(function, bound=bound)
    received = [] if signature is None else receivers(signature, len(_ARGUMENTS[name]))
    converts = is_wrapper(calling_layer(function, bound=bound))
    namespace = namespace_of(function)
    wrapped = signature_of(innermost(function), bound=bound)
    first = [] if wrapped is None else receivers(wrapped, 1)
    return _Hook(
        name=name,
        label=described(f"{class_name(owner)}.{name}", function),
        raw=raw,
        function=function,
        signature=signature,
        parameters=tuple((each, UNKNOWN if converts else resolve(each.annotation, namespace)) for each in received),
        data=resolve(first[0].annotation, namespace) if first else UNKNOWN,
        outcome=outcome_of(function, signature),
    )


def _is_one_of(kinds: tuple[type, ...], raw: object) -> bool:
    return isinstance(raw, kinds)


def _called(raw: Any) -> object:
    match raw:
        case property():
            return raw.fget
        case singledispatchmethod() | cached_property():
            return raw.func
        case partialmethod():
            return raw.__get__(_BOUND, tuple)
        case _:
            return raw


def _hidden_hook(cls: type, name: str) -> Iterator[str]:
    for owner in user_bases(cls):
        if name in vars(owner) and not _is_default(vars(owner)[name]):
            yield (
                f"{class_name(owner)}.{name} is hidden behind the default of WebSocketHandler: "
                f"name WebSocketHandler last in `class {class_name(cls)}(...)`"
            )


def _faults_of(hook: _Hook) -> Iterator[str]:
    wanted = f"write `{_WANTED[hook.name]}`"
    if _is_one_of(_NO_METHODS, hook.raw):
        kind = type(hook.raw).__name__
        yield f"is a {kind}, and a hook is a method of the connection's instance: {wanted}, without @{kind}"
    elif not callable(hook.function):
        yield f"is of type {type(hook.raw).__name__}, which cannot be called: {wanted}, or delete it"
    else:
        yield from _running_faults(hook, wanted)
        yield from _parameter_faults(hook, wanted)
        if hook.name == "on_message":
            yield from _reply_faults(hook.outcome)


def _running_faults(hook: _Hook, wanted: str) -> Iterator[str]:
    running = hook.outcome.running
    if running == "plain":
        yield f"is not async: {wanted}"
    elif running == "stream" and hook.name != "on_message":
        yield f"has a `yield`, which only on_message may have: {wanted} with `await sink.send(...)` in place of it"


def _parameter_faults(hook: _Hook, wanted: str) -> Iterator[str]:
    arguments = _ARGUMENTS[hook.name]
    if hook.signature is None:
        written = signature_of(hook.function)
        if written is not None and not receivers(written, 1):
            yield f"has no parameter for `self`: {wanted}"
    elif not bindable(hook.signature, len(arguments)):
        yield f"{_misfit(hook.signature, arguments)}: {wanted}"
    elif hook.name == "on_connect" and _is_swapped(*hook.parameters):
        yield f"takes the sink first, and is called with the address first: {wanted}"
    else:
        yield from _ANNOTATION_FAULTS[hook.name](hook)


def _misfit(signature: inspect.Signature, arguments: tuple[str, ...]) -> str:
    required = [each for each in signature.parameters.values() if each.default is each.empty]
    by_keyword = [f"`{each.name}`" for each in required if each.kind is each.KEYWORD_ONLY]
    if by_keyword:
        return f"takes {', '.join(by_keyword)} by keyword only, and hooks are called positionally"
    called = f"is called with ({', '.join(arguments)})"
    count = len(receivers(signature, len(arguments)))
    if count < len(arguments):
        return f"{called} and takes {count or 'none'} of that"
    positional = [f"`{each.name}`" for each in required if each.kind is not each.VAR_POSITIONAL]
    names = ", ".join(positional[len(arguments) :])
    return (
        f"{called} and nothing fills {names}; give it a default or, where a decorator fills it, "
        "name the parameters of the decorator's own wrapper"
    )


def _is_swapped(
    first: tuple[inspect.Parameter, object],
    second: tuple[inspect.Parameter, object],
) -> bool:
    names = first[0].name.strip("_"), second[0].name.strip("_")
    if names[0] == "sink" or names[1] in {"addr", "address"}:
        return True
    return not accepts(first[1], Address) and not accepts(second[1], Sink) and accepts(first[1], Sink)


def _connect_annotation_faults(hook: _Hook) -> Iterator[str]:
    for (parameter, annotation), arriving in zip(hook.parameters, (Address, Sink), strict=True):
        if not accepts(annotation, arriving):
            name = arriving.__name__
            yield (
                f"is annotated `{_shown(parameter)}`, and what arrives is {name}: "
                f"write `{parameter.name}: {name}` (`from wsdeco import {name}`)"
            )


def _message_annotation_faults(hook: _Hook) -> Iterator[str]:
    for parameter, annotation in hook.parameters:
        if not accepts(annotation, str) and not accepts(annotation, bytes):
            yield (
                f"is annotated `{_shown(parameter)}`, and what arrives is str or bytes: "
                "write `text: str` for text, `data: bytes` for binary, or `data: str | bytes` for both"
            )


def _disconnect_annotation_faults(hook: _Hook) -> Iterator[str]:
    for parameter, annotation in hook.parameters:
        left_out = [reason.__name__ for reason in _REASONS if not accepts(annotation, reason)]
        if left_out:
            yield (
                f"is annotated `{_shown(parameter)}`, and {', '.join(left_out)} can arrive: "
                f"write `{parameter.name}: DisconnectReason` (`from wsdeco import DisconnectReason`)"
            )


_ANNOTATION_FAULTS: Final = {
    "on_connect": _connect_annotation_faults,
    "on_message": _message_annotation_faults,
    "on_disconnect": _disconnect_annotation_faults,
}


def _shown(parameter: inspect.Parameter) -> str:
    return f"{parameter.name}: {shown_type(parameter.annotation)}"


def _reply_faults(outcome: Outcome) -> Iterator[str]:
    streams = outcome.running == "stream"
    sendable = (str, bytes) if streams else (str, bytes, NoneType)
    if outcome.misannotated:
        yield "has a `yield`, and its return annotation says otherwise: write `-> AsyncIterator[str]`"
    elif not all(is_subclass(option, sendable) or is_subclass(str, option) for option in alternatives(outcome.reply)):
        verb, choice = ("yield", "str or bytes") if streams else ("return", "str, bytes or None")
        yield (
            f"is annotated to {verb} `{shown_type(outcome.reply)}`, and a reply is {choice}: "
            f"write `{verb} json.dumps(...)`, for instance"
        )


def _named_like_hooks(cls: type, missing: list[str], other_names: Mapping[str, str]) -> Iterator[str]:
    for owner in user_bases(cls):
        for name, raw in vars(owner).items():
            meant = _meant_hook(name, other_names)
            if meant in missing and callable(raw) and not isinstance(raw, type):
                label = described(f"{class_name(owner)}.{name}", raw)
                yield f"{label} is never called: did you mean {meant}? Write `{_WANTED[meant]}`"


def _meant_hook(name: str, other_names: Mapping[str, str]) -> str | None:
    if name.startswith("_") or name in _NOT_MISSPELT:
        return None
    snake_case = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    close = difflib.get_close_matches(snake_case, HOOK_NAMES, 1, _CLOSE_MATCH)
    return close[0] if close else other_names.get(snake_case)
