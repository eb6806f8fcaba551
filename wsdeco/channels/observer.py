"""Who watches what happens to connections: access logs, numbers, traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.types import Scope

if TYPE_CHECKING:
    from wsdeco.channels.base import Channel
    from wsdeco.channels.data import Data

__all__ = ["Observer", "Observers"]


class Observer:
    """The events of connections, each a method that does nothing here: override those to watch.

    They are called in the event loop of the connection, in the middle of its work. So they return at once, raise
    nothing, and change nothing. A connection without an observer pays one test of an attribute for each. Events of
    every message are told only to those who override them.

    Attributes:
        sees_messages: It overrides `messages_received` or `message_sent`.
        sees_hooks: It overrides `hook_started`, or wants `hook_ended` of an `on_message` that did not fail.
    """

    sees_messages: bool = False
    sees_hooks: bool = False

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        cls.sees_messages = _overrides(cls, "messages_received", "message_sent")
        cls.sees_hooks = _overrides(cls, "hook_started")

    def begin(self, channel: Channel) -> Observer:
        """Return who watches this one connection, whose handshake has arrived: itself, or one of its own."""
        return self

    def parts(self) -> tuple[Observer, ...]:
        """Return the observers that it is made of: itself, or several."""
        return (self,)

    def refused(self, scope: Scope, status: int, cause: str) -> None:
        """A handshake was answered with this HTTP status.

        Args:
            scope: The ASGI scope of the handshake.
            status: The HTTP status; 0 if the peer left before it was answered.
            cause: One word: `"full"`, `"client"` (it has too many), `"shutdown"`, `"origin"`, `"host"`, `"handler"` (an
                `HTTPException`), `"failure"`, `"connect_timeout"` or `"gone"`.
        """

    def accepted(self, channel: Channel) -> None:
        """The upgrade was accepted."""

    def messages_received(self, channel: Channel, messages: list[Data]) -> None:
        """Messages arrived, which hooks have yet to take."""

    def message_sent(self, channel: Channel, size: int) -> None:
        """A message of about this payload in bytes was handed to the server or the outbox."""

    def message_dropped(self, channel: Channel) -> None:
        """An outgoing message was dropped, or its peer closed, because the peer reads too slowly."""

    def message_over_rate(self, channel: Channel) -> None:
        """A message is over `message_rate` or `byte_rate`, and waits, is dropped, or ends the connection."""

    def message_invalid(self, channel: Channel) -> None:
        """A message is not of the type that `on_message` is annotated with, or answers no request."""

    def hook_started(self, channel: Channel, hook: str) -> None:
        """A hook is about to be called, in the task that calls it."""

    def hook_ended(self, channel: Channel, hook: str, exception: BaseException | None) -> None:
        """A hook has ended, in the task that called it; `exception` is what it raised."""

    def ended(self, channel: Channel) -> None:
        """Everything about an accepted connection is over; `channel.reason` says why."""


def _overrides(cls: type[Observer], *names: str) -> bool:
    return any(getattr(cls, name) is not getattr(Observer, name) for name in names)


class Observers(Observer):
    """Several observers as one: each event is told to all of them.

    Attributes:
        observers: Those that are told, in this order.
    """

    def __init__(self, *observers: Observer) -> None:
        self.observers: tuple[Observer, ...] = observers
        self.sees_messages: bool = any(each.sees_messages for each in observers)
        self.sees_hooks: bool = any(each.sees_hooks for each in observers)

    def begin(self, channel: Channel) -> Observer:
        """Return those who watch this one connection."""
        return Observers(*(each.begin(channel) for each in self.observers))

    def parts(self) -> tuple[Observer, ...]:
        """Return those of all."""
        return tuple(part for each in self.observers for part in each.parts())


def _telling_all(event: str) -> Callable[..., None]:
    def tell(self: Observers, *details: object) -> None:
        for each in self.observers:
            getattr(each, event)(*details)

    return tell


# Every event there is, so that none can be forgotten here.
for _name in vars(Observer):
    if not _name.startswith("_") and _name not in vars(Observers) and callable(getattr(Observer, _name)):
        setattr(Observers, _name, _telling_all(_name))
