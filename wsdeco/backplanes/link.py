"""What a client library has to do for a backplane: one connection to a broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from wsdeco.reasons import BackplaneError

__all__ = ["Broker", "BrokerRefusal", "Done", "Link", "Message", "Receive"]

Message: TypeAlias = tuple[str, bytes]
"""A subject and what is published there."""

Done: TypeAlias = Callable[[int, bool], None]
"""Called for messages that were published, in order: for how many, and whether the broker has taken them."""

Receive: TypeAlias = Callable[[str, bytes], None]
"""Called with each message that comes."""


class BrokerRefusal(BackplaneError):
    """The broker refuses the credentials."""


class Link(Protocol):
    """One connection to a broker.

    Attributes:
        max_payload: The largest message it takes, in bytes.
    """

    max_payload: int

    async def subscribe(self, subjects: Sequence[str]) -> None:
        """Have what is published on `subjects` received."""

    async def unsubscribe(self, subjects: Sequence[str]) -> None:
        """Have it received no longer."""

    def publish(self, messages: Sequence[Message], done: Done) -> None:
        """Write messages to the broker; `done`, always the same, is called as soon as it has confirmed some."""

    def confirm(self) -> None:
        """Ask the broker to confirm what was published, if it does so only when asked."""

    async def ping(self) -> None:
        """Return when the broker has answered."""

    async def lost(self) -> None:
        """Wait for the end of the connection, and raise why it has ended."""

    async def close(self) -> None:
        """Close the connection, without waiting for a broker that does not read."""


class Broker(Protocol):
    """A broker that can be connected to.

    Attributes:
        name: What it is called in the log: its address, without credentials.
        max_payload: The largest message it takes as far as is known before it has been connected to, in bytes.
    """

    name: str
    max_payload: int

    async def connect(self, receive: Receive) -> Link:
        """Return a new connection.

        Raises:
            BrokerRefusal: It refuses the credentials.
        """
        ...
