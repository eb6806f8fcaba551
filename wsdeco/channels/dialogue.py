"""Messages with types, as those see them who need not know how they are read and written: `wsdeco.typed` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from wsdeco.messages import Data

if TYPE_CHECKING:
    from wsdeco.channels.base import Channel

__all__ = ["Conversation", "Dialogue"]


class Conversation(Protocol):
    """The messages with types of one connection."""

    def encode(self, message: object) -> Data:
        """Return the frame of a message."""
        ...

    def encode_json(self, message: object) -> str:
        """Return the text of a message as JSON."""
        ...

    def bind(self, on_message: Callable[[Any], Any], *, streams: bool) -> Callable[[Data], Any]:
        """Return what takes frames in the place of `on_message`, and gives some."""
        ...

    async def ask(self, message: object, answer: Any, timeout: float) -> Any:  # noqa: ASYNC109 - the channel's clock
        """Send a request, and return its answer."""


class Dialogue(Protocol):
    """The messages with types of a handler class."""

    def begin(self, channel: Channel) -> Conversation:
        """Return what reads and writes the messages of one connection."""
        ...

    def take_over(self, conversation: Any) -> None:
        """Read and write the messages of a connection from now on that another dialogue has begun."""

    def encode(self, message: object) -> Data:
        """Return the frame of a message to several connections."""
        ...

    def form_of(self, kind: type) -> tuple[object, object]:
        """Return what decides how messages of a class are written, the wire form first: if equal, so is their frame."""
        ...

    def knows(self, kind: type) -> bool:
        """Return whether a class is one of those that the hook is annotated to give."""
        ...
