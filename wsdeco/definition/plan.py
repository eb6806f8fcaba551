"""The message plan of a handler class, made once: what `on_message` gets of a frame, and what a reply becomes.

Text and bytes are handed over as they are.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import MemberDescriptorType, NoneType
from typing import Final
from weakref import WeakKeyDictionary

from wsdeco.channels.data import Address
from wsdeco.channels.sink import Sink
from wsdeco.definition.base import DEFAULT_HOOKS, hooks_of

__all__ = ["Plan", "keep_connection", "plan_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What the lifecycle does with the messages of a handler.

    Attributes:
        takes_text: `on_message` gets text frames.
        takes_binary: `on_message` gets binary frames.
        streams: `on_message` is an asynchronous generator, each of whose values is a reply.
        keeps: Which of `addr` and `sink` are set on an instance before its own `on_connect`.
    """

    takes_text: bool
    takes_binary: bool
    streams: bool
    keeps: tuple[str, ...]


_plans: Final[WeakKeyDictionary[type, Plan]] = WeakKeyDictionary()


def plan_of(cls: type) -> Plan:
    """Return the plan of a handler class.

    Raises:
        HandlerError: The class cannot handle connections.
    """
    plan = _plans.get(cls)
    if plan is None:
        hooks = hooks_of(cls)
        plan = _plans[cls] = Plan(hooks.takes_text, hooks.takes_binary, hooks.streams, _kept_by(cls))
    return plan


def keep_connection(plan: Plan, handler: object, addr: Address, sink: Sink) -> None:
    """Set what `plan` says on an instance that has no such attribute, if there is room for it."""
    for name, value in (("addr", addr), ("sink", sink)):
        if name in plan.keeps and not hasattr(handler, name):
            try:
                # A frozen dataclass refuses plain assignment.
                object.__setattr__(handler, name, value)
            except AttributeError:
                # It has `__slots__`, and its own on_connect does without.
                return


def _kept_by(cls: type) -> tuple[str, ...]:
    if getattr(cls, "on_connect", None) in (None, DEFAULT_HOOKS["on_connect"]):
        # The default one keeps both.
        return ()
    return tuple(name for name in ("addr", "sink") if _is_free(cls, name))


def _is_free(cls: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(cls, name, None), MemberDescriptorType | NoneType)
