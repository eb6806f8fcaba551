"""What carries broadcasts to the same rooms in other processes, as the rooms see it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "CONTROL",
    "MAX_CONTEXT",
    "ROUTE",
    "Backplane",
    "BackplaneCounters",
    "BackplaneState",
    "Propagating",
    "Propagator",
    "PublishErrors",
]

CONTROL: Final = "control:"
"""The key of the room in which processes tell each other what is to be done to the members of others."""

ROUTE: Final = "route:"
"""What the keys of those rooms begin with that are routes, whose members join them unasked."""

MAX_CONTEXT: Final = 255
"""Bytes of the context of a trace that a broadcast takes along: their number is one byte of its envelope."""

BackplaneState: TypeAlias = Literal["connecting", "connected", "reconnecting", "closed"]
"""Whether there is a connection: the first attempt goes on; yes; not any more, or not yet; none is wanted."""

PublishErrors: TypeAlias = Literal["count", "raise"]
"""What becomes of a broadcast that cannot be published."""


@dataclass(slots=True)
class BackplaneCounters:
    """What has become of the messages since the backplane was made.

    The numbers are as honest as those who may publish at the broker: they can forge messages, and numbers of messages.

    Attributes:
        published: Handed to the broker, which has confirmed that. It does not keep them: who has no connection at that
            moment, when the broker is started again for instance, does not get them, and counts them as missed.
        lost: Not handed to the broker, because there was no connection or the queue was full, or refused by it.
        unconfirmed: On their way to the broker when the connection ended; some of them may have arrived.
        received: Came from other processes, for rooms with members here.
        missed: Published by other processes to rooms with members here, and never arrived: gaps in the numbers, each of
            which counts for a million at most.
        malformed: Came from somebody who does not speak wsdeco, and were dropped.
        connections: Times that a connection to the broker was made; 0 if there is none to make.
    """

    published: int = 0
    lost: int = 0
    unconfirmed: int = 0
    received: int = 0
    missed: int = 0
    malformed: int = 0
    connections: int = field(default=0, compare=False)


class Backplane(Protocol):
    """What carries broadcasts to the same rooms in other processes: `App(backplane=...)` takes any such object.

    Each app needs one of its own, as a message goes to all others and not back. Everything but `publish_nowait` is
    called in the event loop that `start` was called in.

    Attributes:
        counters: What has become of the messages.
    """

    counters: BackplaneCounters

    @property
    def state(self) -> BackplaneState:
        """Whether there is a connection."""
        ...

    def start(self, deliver: Callable[[str, str | bytes], None], /) -> None:
        """Serve the running event loop, and no other one any more; may be called again, also after `close`.

        `deliver` is called there with key and message of every broadcast of other processes to a room that is
        subscribed, in the order in which each of them has published.
        """

    def subscribe(self, key: str, /) -> None:
        """Have the broadcasts to the room `key` delivered."""

    def unsubscribe(self, key: str, /) -> None:
        """Have them delivered no longer."""

    def publish_nowait(self, key: str, data: str | bytes, /) -> bool:
        """Broadcast to the other processes; return whether that is on its way.

        Called in other threads as well if nothing has been started, or nothing runs any more.

        Raises:
            ValueError: `data` is more than the broker takes.
        """
        ...

    async def drained(self) -> None:
        """Wait while too much is on its way."""

    async def close(self) -> None:
        """End what `start` has begun, in any event loop; does nothing if nothing has been started."""


class Propagator(Protocol):
    """What lets a broadcast carry the context of the trace that it belongs to, while traces are on."""

    def inject(self, key: str, /) -> bytes:
        """Return the context of the caller, who broadcasts to the room `key`: `MAX_CONTEXT` bytes at most, or none."""
        ...

    def delivering(self, key: str, context: bytes, /) -> AbstractContextManager[object]:
        """Return what is entered for the time in which a broadcast to the room `key` is delivered.

        Args:
            key: The room.
            context: What the broadcast has carried, if anything. It comes from a broker, and may be anything.
        """
        ...


@runtime_checkable
class Propagating(Protocol):
    """A backplane whose broadcasts carry the context of their trace, which is nothing that a backplane must do.

    Attributes:
        propagator: What writes and reads it; set before `start` if traces are on, and `None` otherwise.
    """

    propagator: Propagator | None
