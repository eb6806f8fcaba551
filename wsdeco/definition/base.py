"""Handler classes: the metaclass that checks them, the explicit base, and what the lifecycle asks of an instance."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import chain
from types import MethodType
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from starlette.requests import HTTPConnection

from wsdeco.channels.data import Address, Outgoing
from wsdeco.channels.sink import Sink
from wsdeco.definition.checks import (
    abstract_faults,
    handler_faults,
    hook_faults,
    require_class,
    warn_of_shared_attributes,
)
from wsdeco.definition.faults import name_of, raise_class_faults
from wsdeco.definition.hooks import HOOK_NAMES, Hooks, find_hooks, summary
from wsdeco.reasons import DisconnectReason, HandlerError

__all__ = [
    "DEFAULT_HOOKS",
    "Factory",
    "Generated",
    "HandlerMeta",
    "Hooks",
    "WebSocketHandler",
    "bound_hook",
    "hooks_of",
    "inspected",
    "source_of",
]

Factory: TypeAlias = Callable[[HTTPConnection], object]
"""Makes the handler instance of a connection from its handshake request."""


class Generated:
    """Comes first in the bases of a generated subclass, and keeps it from the `__init_subclass__` of the others."""

    __slots__ = ()

    def __init_subclass__(cls, **keywords: object) -> None:
        pass


class HandlerMeta(ABCMeta):
    """The class of handler classes: to define one is to have its hooks checked.

    Raises:
        HandlerError: A hook cannot work as it is written; the error lists every fault.
    """

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **kwargs: Any) -> None:
        super().__init__(name, bases, namespace, **kwargs)
        # A generated class was checked as the one it is made from, which only a metaclass of the user's could change.
        if type(cls) is not HandlerMeta or bases[:1] != (Generated,):
            raise_class_faults(cls, hook_faults(cls, find_hooks(cls)))


class WebSocketHandler(metaclass=HandlerMeta):
    """A base for handler classes, for those who like an explicit one; a plain class works just as well.

    Deriving from it lets a type checker check the signatures of the hooks. Each of them may be left out.

    Attributes:
        addr: The peer's address, kept by `on_connect`.
        sink: The sending side of the connection, kept by `on_connect`.
    """

    __slots__ = ()

    addr: Address
    sink: Sink

    def on_connect(self, addr: Address, sink: Sink, /) -> Awaitable[None]:
        """Keep `addr` and `sink` as attributes; a subclass does here what a new connection needs.

        The upgrade is accepted when this hook first sends, calls `sink.accept()`, or returns.

        Args:
            addr: The peer's address.
            sink: The sending side of the connection.

        Raises:
            starlette.exceptions.HTTPException: A subclass raises it to refuse the handshake with its status and body.
            HandlerError: The instance has no room for the two attributes.
        """
        try:
            # A frozen dataclass refuses plain assignment.
            object.__setattr__(self, "addr", addr)
            object.__setattr__(self, "sink", sink)
        except AttributeError:
            name = name_of(type(self))
            raise HandlerError(
                f"{name} has no on_connect, and the default one cannot set `self.addr` and `self.sink`: "
                f'add "addr" and "sink" to its __slots__, or write `async def on_connect(self, addr, sink)`'
            ) from None
        return _nothing()

    def on_message(self, message: Any, /) -> Awaitable[Outgoing | None] | AsyncIterator[Outgoing]:
        """Do nothing; a subclass handles a message here.

        Messages come one at a time and in order. What the hook returns is sent as the reply; an `async def` with
        `yield` sends each value as one.

        Args:
            message: A text message as `str`; if a subclass annotates its parameter `bytes` or `str | bytes`,
                a binary message as `bytes`; if it names other types, a message of these (`wsdeco[typed]`).
        """
        return _nothing()

    def on_disconnect(self, reason: DisconnectReason, /) -> Awaitable[None]:
        """Do nothing; a subclass tidies up here.

        Runs exactly once for each connection whose handshake was not refused, after the last `on_message`.

        Args:
            reason: Why the connection ended.
        """
        return _nothing()


async def _nothing() -> None:
    pass


DEFAULT_HOOKS: Final[dict[str, Callable[..., Any]]] = {name: vars(WebSocketHandler)[name] for name in HOOK_NAMES}
"""What stands in for a hook that a class does not define, by its name."""

_known_hooks: Final[WeakKeyDictionary[type, Hooks]] = WeakKeyDictionary()


def source_of(cls: type) -> type:
    """Return the handler class that `cls` was generated from, or else `cls` itself."""
    return cls.__bases__[1] if cls.__bases__[:1] == (Generated,) else cls


def hooks_of(cls: type) -> Hooks:
    """Return what the lifecycle needs to know of `cls`, which is inspected once in its life.

    Raises:
        HandlerError: `cls` is no class, or cannot work as it is written; the error lists every fault.

    Warns:
        HandlerWarning: A mutable class attribute is shared by all connections.
    """
    require_class(cls)
    source = source_of(cls)
    return _known_hooks.get(source) or inspected(source, abstract_faults(source))


def inspected(cls: type, *others: Iterable[str]) -> Hooks:
    """Return what `hooks_of` says of `cls` from now on, if it has no faults, and there are no others.

    Raises:
        HandlerError: `cls` is no class, or there are faults; the error lists all.

    Warns:
        HandlerWarning: As `hooks_of`, at the first time.
    """
    require_class(cls)
    found = find_hooks(cls)
    raise_class_faults(cls, chain(handler_faults(cls, found), *others))
    hooks = _known_hooks.get(cls)
    if hooks is None:
        warn_of_shared_attributes(cls, found)
        hooks = _known_hooks[cls] = summary(found)
    return hooks


def bound_hook(handler: object, name: str) -> Any:
    """Return a hook of an instance, or the default one if its class defines none."""
    hook = getattr(handler, name, None)
    return hook if hook is not None else MethodType(DEFAULT_HOOKS[name], handler)
