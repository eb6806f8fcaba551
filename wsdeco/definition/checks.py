"""The checks at definition: everything that is wrong with a handler class and its hooks.

Every check yields its faults, so that one error can list them all. Nothing is formatted for a class without any.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, MutableSet
from functools import cached_property, lru_cache
from types import FunctionType, NoneType
from typing import Final

from wsdeco.channels.data import Address
from wsdeco.channels.sink import Sink
from wsdeco.definition.faults import described, name_of
from wsdeco.definition.hooks import ARGUMENTS, HOOK_NAMES, Hook, defines, is_default, user_bases
from wsdeco.definition.signatures import (
    UNKNOWN,
    accepts,
    alternatives,
    bindable,
    class_annotations,
    is_subclass,
    receivers,
    shown_type,
    signature_of,
    where,
)
from wsdeco.definition.types import type_faults
from wsdeco.reasons import Close, Error, HandlerError, HandlerWarning, Timeout, Unknown
from wsdeco.values import nearest

__all__ = ["abstract_faults", "handler_faults", "hook_faults", "require_class", "warn_of_shared_attributes"]

_WANTED: Final = {name: f"async def {name}({', '.join(('self', *given))})" for name, given in ARGUMENTS.items()}
"""How each hook is written."""

_REASONS: Final = (Close, Error, Timeout, Unknown)

_OTHER_NAMES: Final = {
    "on_connect": ("on_open", "on_opened"),
    "on_message": ("on_msg", "on_receive", "on_received", "on_recv"),
    "on_disconnect": ("on_close", "on_closed"),
}
"""What other frameworks call the hooks."""

_POSSIBLE_NAMES: Final = {
    "on_connect": ("connect", "open", "on_ready"),
    "on_message": ("message", "receive", "recv", "on_data", "on_text"),
    "on_disconnect": ("close", "disconnect", "on_error"),
}
"""Names of helpers in a class that has hooks, and probably meant as hooks in a class that has none."""

_NO_METHODS: Final = (staticmethod, classmethod, property, cached_property)

_CLOSE_MATCH: Final = 0.85
"""Similarity from which a name counts as a misspelt hook; `on_collect` is 0.8 of `on_connect`."""

_NOT_MISSPELT: Final = frozenset({"on_reconnect"})
"""Similar names that mean something else."""


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
        raise HandlerError(f"{shown_type(cls)} is not a class of its own: write `{name_of(origin)}`")
    name = name_of(type(cls))
    raise HandlerError(f"a handler is a class, and this is an instance of {name}: write a class in its place")


def handler_faults(cls: type, hooks: Mapping[str, Hook]) -> Iterator[str]:
    """Yield what keeps `cls` from handling connections: faults of these hooks of it, misspelt and missing ones."""
    yield from hook_faults(cls, hooks)
    missing = [name for name in HOOK_NAMES if not defines(cls, name)]
    misspelt = list(_named_like_hooks(cls, missing, _OTHER_NAMES))
    yield from misspelt
    if len(missing) == len(HOOK_NAMES) and not misspelt:
        choice = "`, `".join(_WANTED.values())
        yield f"it has no hook: write at least one of `{choice}`"
        yield from _named_like_hooks(cls, missing, _POSSIBLE_NAMES)


def hook_faults(cls: type, hooks: Mapping[str, Hook]) -> Iterator[str]:
    """Yield the faults of the `hooks` of `cls`."""
    for name in HOOK_NAMES:
        hook = hooks.get(name)
        if hook is None:
            yield from _hidden_hook(cls, name)
        elif not hook.is_sound:
            faults = [f"{hook.label} {fault}" for fault in _faults_of(hook)]
            if not faults:
                hook.keep_as_sound()
            yield from faults


def abstract_faults(cls: type) -> Iterator[str]:
    """Yield what keeps `cls` from being instantiated, if abstract methods are left."""
    left = sorted(getattr(cls, "__abstractmethods__", ()))
    if left:
        yield f"abstract methods are left: define {', '.join(left)}, or decorate a subclass that does"


def warn_of_shared_attributes(cls: type, hooks: Mapping[str, Hook]) -> None:
    """Warn of mutable class attributes of `cls`, which all connections share, at the first of its `hooks`.

    Constants (written in capitals or annotated `Final`) and what is annotated `ClassVar` are shared on purpose. Only
    bases from the package of `cls` are looked at.
    """
    shared = list(_shared_attributes(cls))
    if not shared:
        return
    names = ", ".join(f"{name} ({type(value).__name__})" for name, value in shared)
    first = shared[0][0]
    message = (
        f"class {name_of(cls)}: every connection shares the mutable class attribute {names}: "
        f"set `self.{first}` in `__init__` or `on_connect` to give each connection its own, "
        f"or annotate it `{first}: ClassVar[...]` if sharing is meant"
    )
    file, _, line = next((where(hook.function) for hook in hooks.values()), "").rpartition(":")
    warnings.warn_explicit(message, HandlerWarning, file or cls.__module__, int(line or 1), cls.__module__)


def _shared_attributes(cls: type) -> Iterator[tuple[str, object]]:
    own = [base for base in user_bases(cls) if _package(base) == _package(cls)]
    visible: dict[str, object] = {}
    for base in own:
        for name, value in vars(base).items():
            visible.setdefault(name, value)
    shared = [name for name, value in visible.items() if _is_mutable(value) and not name.startswith("__")]
    if not shared:
        return
    # What a base from elsewhere has as well is that library's affair, such as `model_config` of a pydantic model.
    foreign = {name for base in cls.__mro__ if base not in own for name in vars(base)}
    annotations = ChainMap(*(class_annotations(base) for base in own))
    for name in shared:
        is_meant = name.isupper() or any(word in str(annotations.get(name)) for word in ("ClassVar", "Final"))
        if not is_meant and name not in foreign:
            yield name, visible[name]


def _is_mutable(value: object) -> bool:
    # Most members of a class are functions; `isinstance` with the classes of `collections.abc` is slow to say no.
    return not isinstance(value, FunctionType) and isinstance(value, (MutableSequence, MutableMapping, MutableSet))


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _hidden_hook(cls: type, name: str) -> Iterator[str]:
    for owner in user_bases(cls):
        if name in vars(owner) and not is_default(vars(owner)[name]):
            yield (
                f"{name_of(owner)}.{name} is hidden behind the default of WebSocketHandler: "
                f"name WebSocketHandler last in `class {name_of(cls)}(...)`"
            )


def _faults_of(hook: Hook) -> Iterator[str]:
    wanted = f"write `{_WANTED[hook.name]}`"
    kind = type(hook.raw).__name__
    if isinstance(hook.raw, _NO_METHODS):
        yield f"is a {kind}, and a hook is a method of the connection's instance: {wanted}, without @{kind}"
    elif not callable(hook.function):
        yield f"is of type {kind}, which cannot be called: {wanted}, or delete it"
    else:
        yield from _running_faults(hook, wanted)
        yield from _parameter_faults(hook, wanted)
        if hook.name == "on_message":
            yield from _reply_faults(hook)


def _running_faults(hook: Hook, wanted: str) -> Iterator[str]:
    running = hook.outcome.running
    if running == "plain":
        yield f"is not async: {wanted}"
    elif running == "stream" and hook.name != "on_message":
        yield f"has a `yield`, which only on_message may have: {wanted} with `await sink.send(...)` in place of it"


def _parameter_faults(hook: Hook, wanted: str) -> Iterator[str]:
    arguments = ARGUMENTS[hook.name]
    if hook.signature is None:
        written = signature_of(hook.function)
        if written is not None and not receivers(written, 1):
            yield f"has no parameter for `self`: {wanted}"
    elif not bindable(hook.signature, len(arguments)):
        written = signature_of(hook.function)
        if written is not None and next(iter(written.parameters), None) == arguments[0]:
            yield f"has no `self` in front of `{arguments[0]}`: {wanted}"
            return
        yield f"{_misfit(hook.signature, arguments)}: {wanted}"
    elif hook.name == "on_connect" and _is_swapped(hook):
        yield f"takes the sink first, and is called with the address first: {wanted}"
    else:
        yield from _annotation_faults(hook)


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
        f"{called} and nothing fills {names}; give it a default or, if a decorator fills it, "
        "name the parameters of the decorator's own wrapper"
    )


def _is_swapped(hook: Hook) -> bool:
    (first, of_first), (second, of_second) = hook.parameters
    if first.name.strip("_") == "sink" or second.name.strip("_") in {"addr", "address"}:
        return True
    return not accepts(of_first, Address) and not accepts(of_second, Sink) and accepts(of_first, Sink)


def _annotation_faults(hook: Hook) -> Iterator[str]:
    for (parameter, annotation), given in zip(hook.parameters, ARGUMENTS[hook.name], strict=True):
        for fault in _misfits(hook, given, parameter.name, annotation):
            yield f"is annotated `{parameter.name}: {shown_type(parameter.annotation)}`{fault}"


def _misfits(hook: Hook, given: str, name: str, annotation: object) -> Iterator[str]:
    """Yield why what a hook is given does not fit the annotation of the parameter that gets it."""
    if hook.name == "on_connect":
        kind = Address if given == "addr" else Sink
        if not accepts(annotation, kind):
            shown = kind.__name__
            yield f", and what arrives is {shown}: write `{name}: {shown}` (`from wsdeco import {shown}`)"
    elif hook.name == "on_disconnect":
        options = alternatives(annotation)
        left_out = [reason.__name__ for reason in _REASONS if not any(is_subclass(reason, each) for each in options)]
        if left_out:
            yield (
                f", and {', '.join(left_out)} can arrive: "
                f"write `{name}: DisconnectReason` (`from wsdeco import DisconnectReason`)"
            )
    elif hook.message is not UNKNOWN:
        yield from (f": {fault}" for fault in type_faults(hook.message))
    elif not accepts(annotation, str) and not accepts(annotation, bytes):
        yield (
            ", and what arrives is str or bytes: "
            "write `text: str` for text, `data: bytes` for binary, or `data: str | bytes` for both"
        )


def _reply_faults(hook: Hook) -> Iterator[str]:
    outcome = hook.outcome
    streams = outcome.running == "stream"
    sendable = (str, bytes) if streams else (str, bytes, NoneType)
    verb, choice = ("yield", "str or bytes") if streams else ("return", "str, bytes or None")
    if outcome.misannotated:
        yield "has a `yield`, and its return annotation says otherwise: write `-> AsyncIterator[str]`"
    elif hook.reply is not UNKNOWN:
        shown = shown_type(outcome.reply)
        yield from (f"is annotated to {verb} `{shown}`: {fault}" for fault in type_faults(hook.reply, is_reply=True))
    elif not all(is_subclass(option, sendable) or is_subclass(str, option) for option in alternatives(outcome.reply)):
        yield (
            f"is annotated to {verb} `{shown_type(outcome.reply)}`, and a reply is {choice}: "
            f"write `{verb} json.dumps(...)`, for instance"
        )


def _named_like_hooks(cls: type, missing: list[str], other_names: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    if not missing:
        return
    for owner in user_bases(cls):
        for name, raw in vars(owner).items():
            if callable(raw) and not isinstance(raw, type):
                meant = _meant_hook(name, other_names)
                if meant in missing:
                    label = described(f"{name_of(owner)}.{name}", raw)
                    yield f"{label} is never called: did you mean {meant}? Write `{_WANTED[meant]}`"


def _meant_hook(name: str, other_names: Mapping[str, tuple[str, ...]]) -> str | None:
    if name.startswith("_") or name in _NOT_MISSPELT:
        return None
    snake_case = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return _close_hook(snake_case) or next((hook for hook, names in other_names.items() if snake_case in names), None)


@lru_cache(maxsize=1024)
def _close_hook(name: str) -> str | None:
    # Comparing takes 40 us, and many classes have methods of the same names.
    return nearest(name, HOOK_NAMES, _CLOSE_MATCH)
