"""The hooks of a handler class: which it has, how each is called, how it runs, what it takes and gives.

Pure: a class is read, nothing of it is called. Each signature is read once, and a text is made for a fault only.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partialmethod, singledispatchmethod
from types import FunctionType, MethodType, NoneType, UnionType
from typing import Any, Final, get_args

from wsdeco.channels.data import Address
from wsdeco.channels.sink import Sink
from wsdeco.definition.faults import described, name_of
from wsdeco.definition.signatures import (
    UNKNOWN,
    Outcome,
    accepts,
    call_of,
    class_annotations,
    innermost,
    is_typed,
    is_wrapper,
    namespace_of,
    outcome_of,
    receivers,
    resolve,
    signature_of,
)
from wsdeco.reasons import DisconnectReason

__all__ = ["ARGUMENTS", "HOOK_NAMES", "Hook", "Hooks", "defines", "find_hooks", "is_default", "summary", "user_bases"]

ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "on_connect": ("addr", "sink"),
    "on_message": ("text",),
    "on_disconnect": ("reason",),
}
"""What each hook is called with, positionally."""

HOOK_NAMES: Final = tuple(ARGUMENTS)

_USUAL: Final = {id(each) for each in (str, bytes, NoneType, Address, Sink, *get_args(DisconnectReason), UNKNOWN)}
"""The classes in the annotations of nearly all hooks; all of them outlive any handler."""

_FACTS: Final = ("data", "message", "reply", "outcome")
"""What is asked of a hook without faults."""

_sound: Final[dict[object, dict[str, object]]] = {}
"""The facts of hooks without faults, by their form; a program has a few."""

_DEFAULTS_MODULE: Final = "wsdeco.definition.base"
"""Where the hooks are defined that stand in for missing ones; those do not count as defined."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the lifecycle needs to know of a handler class.

    Attributes:
        takes_text: `on_message` takes text messages.
        takes_binary: `on_message` takes binary messages.
        streams: `on_message` is an asynchronous generator, each of whose values is a reply.
        message: The annotation of what `on_message` takes, if that is a message with a type; otherwise `UNKNOWN`.
        reply: The annotation of what it returns or yields, likewise.
    """

    takes_text: bool
    takes_binary: bool
    streams: bool
    message: object = UNKNOWN
    reply: object = UNKNOWN


class Hook:
    """A hook as a class defines it.

    Attributes:
        name: Which of the hooks it is.
        raw: What stands in the class.
        function: What is called, before `self` is bound.
        is_sound: A hook of the same form was found to have no faults, so that this one has none.
    """

    def __init__(self, name: str, owner: type, raw: object) -> None:
        """Describe what stands under `name` in the namespace of the class `owner`."""
        self.name = name
        self.raw = raw
        self.function: object = _called(raw)
        self._owner = owner
        self._form = _form_of(name, raw)
        facts = _sound.get(self._form)
        self.is_sound: bool = facts is not None
        if facts is not None:
            vars(self).update(facts)

    def keep_as_sound(self) -> None:
        """Let all hooks of the same form be known to have no faults, as this one."""
        if self._form is not None:
            _sound[self._form] = {name: getattr(self, name) for name in _FACTS}

    @property
    def label(self) -> str:
        """Its class, name, signature and place, for messages."""
        return described(f"{name_of(self._owner)}.{self.name}", self.function)

    @property
    def signature(self) -> inspect.Signature | None:
        """How the bound hook is called, if that can be read."""
        return self._call[1]

    @cached_property
    def _call(self) -> tuple[object, inspect.Signature | None]:
        return call_of(self.function, bound=self._is_bound)

    @property
    def _is_bound(self) -> bool:
        return hasattr(type(self.raw), "__get__") and not isinstance(self.raw, MethodType | partialmethod)

    @cached_property
    def _namespace(self) -> Mapping[str, object]:
        return namespace_of(self.function)

    @cached_property
    def parameters(self) -> list[tuple[inspect.Parameter, object]]:
        """The parameters that receive the hook's arguments, each with its resolved annotation.

        A wrapper may convert what it passes on, so what it has from the wrapped function tells nothing here.
        """
        received = receivers(self.signature, len(ARGUMENTS[self.name]))
        converts = is_wrapper(self._call[0])
        return [(each, UNKNOWN if converts else resolve(each.annotation, self._namespace)) for each in received]

    @cached_property
    def data(self) -> object:
        """The resolved annotation of the first argument, in a wrapped function as well."""
        inner = innermost(self.function)
        if inner is self._call[0] and self.parameters:
            return self.parameters[0][1]
        first = receivers(signature_of(inner, bound=self._is_bound), 1)
        return resolve(first[0].annotation, self._namespace) if first else UNKNOWN

    @cached_property
    def message(self) -> object:
        """The annotation of the message, with its metadata, if that is one with a type; otherwise `UNKNOWN`."""
        if not self.parameters or not is_typed(self.parameters[0][1]):
            return UNKNOWN
        return resolve(self.parameters[0][0].annotation, self._namespace, extras=True)

    @cached_property
    def reply(self) -> object:
        """The annotation of what it returns or yields, if that is a message with a type; otherwise `UNKNOWN`."""
        found = self.outcome.reply
        # `Any` says nothing of a reply, though of a message that it is whatever the wire carries.
        return found if found is not Any and is_typed(found) else UNKNOWN

    @cached_property
    def outcome(self) -> Outcome:
        """How it runs and what it gives."""
        return outcome_of(self.function, self.signature)


def find_hooks(cls: type) -> dict[str, Hook]:
    """Return the hooks that `cls` or a base of it defines, by name; the defaults of this library do not count."""
    found: dict[str, Hook] = {}
    for name in HOOK_NAMES:
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        if owner is not None and not is_default(vars(owner)[name]):
            found[name] = Hook(name, owner, vars(owner)[name])
    return found


def summary(found: Mapping[str, Hook]) -> Hooks:
    """Return what the lifecycle needs to know of a class with these hooks, which have no faults."""
    hook = found.get("on_message")
    if hook is None:
        return Hooks(takes_text=False, takes_binary=False, streams=False)
    is_typed = hook.message is not UNKNOWN
    takes_binary = is_typed or (hook.data is not UNKNOWN and accepts(hook.data, bytes))
    takes_text = is_typed or not takes_binary or accepts(hook.data, str)
    return Hooks(takes_text, takes_binary, hook.outcome.running == "stream", hook.message, hook.reply)


def user_bases(cls: type) -> list[type]:
    """Return the classes of the method resolution order that are neither Python's root nor this library's."""
    return [base for base in cls.__mro__ if base is not object and base.__module__ != _DEFAULTS_MODULE]


def defines(cls: type, name: str) -> bool:
    """Return whether `cls` or a base of it has something under `name`; what this library has does not count."""
    return any(name in vars(base) for base in user_bases(cls))


def is_default(raw: object) -> bool:
    """Return whether `raw` is a hook of this library, which stands in for a missing one."""
    # Its globals, as `functools.wraps` would give its `__module__` to a function of the user's.
    return isinstance(raw, FunctionType) and raw.__globals__.get("__name__") == _DEFAULTS_MODULE


def _form_of(name: str, raw: object) -> object:
    """Return what is equal for hooks that say the same of themselves; `None` if it may not be all that one says."""
    if type(raw) is not FunctionType or raw.__dict__ or raw.__defaults__ or raw.__kwdefaults__:
        return None
    code = raw.__code__
    if code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return None
    said: list[object] = []
    for parameter, annotation in class_annotations(raw).items():
        if isinstance(annotation, str) and not annotation.isidentifier():
            # Evaluating it costs more than is saved.
            return None
        found = resolve(annotation, raw.__globals__)
        parts = [id(each) for each in (get_args(found) if isinstance(found, UnionType) else (found,))]
        if not _USUAL.issuperset(parts):
            return None
        said.append((parameter, *parts))
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return name, names, code.co_flags, code.co_posonlyargcount, code.co_kwonlyargcount, *said


def _called(raw: Any) -> object:
    match raw:
        case property():
            return raw.fget
        case singledispatchmethod() | cached_property():
            return raw.func
        case partialmethod():
            # Bound to something, as by an instance: what it passes on is left out of its signature.
            return raw.__get__(raw, object)
        case _:
            return raw
