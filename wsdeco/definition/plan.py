"""The message plan of a handler class, made once: what `on_message` gets of a frame, and what a reply becomes.

Text and bytes are handed over as they are; messages with types have a dialogue, which `wsdeco.typed` makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MemberDescriptorType, NoneType
from typing import Any, Final
from weakref import WeakKeyDictionary

from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data
from wsdeco.channels.dialogue import Conversation, Dialogue
from wsdeco.channels.sink import Sink
from wsdeco.config import Codec
from wsdeco.definition.base import DEFAULT_HOOKS, bound_hook, hooks_of, source_of
from wsdeco.definition.hooks import ARGUMENTS
from wsdeco.definition.types import make_dialogue

__all__ = ["Plan", "begin_conversation", "bound_on_message", "continue_conversation", "plan_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What the lifecycle does with the messages of a handler.

    Attributes:
        takes_text: `on_message` gets text frames.
        takes_binary: `on_message` gets binary frames.
        streams: `on_message` is an asynchronous generator, each of whose values is a reply.
        keeps: Which of `addr` and `sink` are set on an instance before its own `on_connect`.
        dialogue: What decodes and encodes messages with types; `None` if there are none.
    """

    takes_text: bool
    takes_binary: bool
    streams: bool
    keeps: tuple[str, ...]
    dialogue: Dialogue | None


_plans: Final[WeakKeyDictionary[type, dict[object, Plan]]] = WeakKeyDictionary()


def plan_of(cls: type, codec: str | Codec | None = None) -> Plan:
    """Return the plan of a handler class whose messages travel by `codec`.

    Raises:
        HandlerError: The class cannot handle connections, or what decodes its messages is not installed.
    """
    plans = _plans.get(cls)
    if plans is None:
        plans = _plans[cls] = {}
    # A codec of the user's need not be hashable.
    key = codec if codec is None or isinstance(codec, str) else id(codec)
    plan = plans.get(key)
    if plan is None:
        hooks = hooks_of(cls)
        source = source_of(cls)
        # Decoders are made once, for the class it was generated from.
        dialogue = (
            make_dialogue(hooks.message, hooks.reply, codec) if source is cls else plan_of(source, codec).dialogue
        )
        plan = plans[key] = Plan(hooks.takes_text, hooks.takes_binary, hooks.streams, _kept_by(cls), dialogue)
    return plan


def begin_conversation(plan: Plan, handler: object, channel: Channel, sink: Sink) -> Conversation | None:
    """Prepare an instance for its connection; return what reads and writes its messages, if these have types."""
    for name in plan.keeps:
        if not hasattr(handler, name):
            try:
                # A frozen dataclass refuses plain assignment.
                object.__setattr__(handler, name, channel.addr if name == "addr" else sink)
            except AttributeError:
                # It has `__slots__`, and its own on_connect does without.
                break
    return None if plan.dialogue is None else plan.dialogue.begin(channel)


def continue_conversation(plan: Plan, conversation: Conversation | None, channel: Channel) -> Conversation | None:
    """Return what reads and writes the messages of a connection whose handler has another class, perhaps."""
    dialogue = plan.dialogue
    if dialogue is None or conversation is None:
        return None if dialogue is None else dialogue.begin(channel)
    dialogue.take_over(conversation)
    return conversation


def bound_on_message(plan: Plan, handler: object, conversation: Conversation | None) -> Callable[[Data], Any]:
    """Return what takes the frames that arrive: the hook itself, if it has no types."""
    on_message: Callable[[Any], Any] = bound_hook(handler, "on_message")
    return on_message if conversation is None else conversation.bind(on_message, streams=plan.streams)


def _kept_by(cls: type) -> tuple[str, ...]:
    if getattr(cls, "on_connect", None) in (None, DEFAULT_HOOKS["on_connect"]):
        # The default one keeps both.
        return ()
    return tuple(name for name in ARGUMENTS["on_connect"] if _is_free(cls, name))


def _is_free(cls: type, name: str) -> bool:
    raw: object = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
    return isinstance(raw, MemberDescriptorType | NoneType)
