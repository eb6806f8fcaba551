"""What the message plan of a handler class with types is made of, built once at its definition."""

from __future__ import annotations

from typing import Any

from wsdeco.channels.base import Channel
from wsdeco.channels.data import Data
from wsdeco.config import Codec
from wsdeco.typed.codecs import format_of
from wsdeco.typed.conversation import Conversation
from wsdeco.typed.kinds import faults
from wsdeco.typed.reader import Reader
from wsdeco.typed.writer import Writer

__all__ = ["Dialogue", "faults"]


class Dialogue:
    """The messages of a handler class, both ways.

    Attributes:
        reader: Reads what comes; `None` if `on_message` takes frames as they are.
        writer: Writes what goes.
    """

    def __init__(self, message: object, reply: object, codec: str | Codec) -> None:
        """Build decoders and encoders.

        Args:
            message: The annotation of what `on_message` takes, or `None` if that is text or bytes.
            reply: The annotation of what it gives, likewise.
            codec: The wire form.
        """
        self._wire = format_of(codec)
        self.reader: Reader | None = None if message is None else Reader(message, self._wire)
        self.writer: Writer = Writer(reply, self._wire, warns=True)
        self._answers: dict[Any, Reader] = {}
        self._json = Writer(reply, format_of("json"))

    def begin(self, channel: Channel) -> Conversation:
        """Return what reads and writes the messages of one connection."""
        return Conversation(self, channel)

    def take_over(self, conversation: Any) -> None:
        """Read and write the messages of a connection from now on that another dialogue has begun."""
        conversation.speak(self)

    def encode(self, message: object) -> Data:
        """Return the frame of a message to several connections."""
        return self.writer.write(message)

    def form_of(self, kind: type) -> tuple[object, object]:
        """Return what decides how messages of a class are written, the wire form first: if equal, so is their frame."""
        return self.writer.form_of(kind)

    def knows(self, kind: type) -> bool:
        """Return whether a class is one of those that the hook is annotated to give."""
        return self.writer.knows(kind)

    def encode_json(self, message: object) -> str:
        """Return the text of a message as JSON."""
        return self._json.text(message)

    def answers(self, form: Any) -> Reader:
        """Return what reads answers of the type `form`.

        Raises:
            TypeError: It cannot be decoded.
        """
        reader = self._answers.get(form)
        if reader is None:
            wrong = list(faults(form))
            if wrong:
                raise TypeError(f"ask() cannot take this answer: {wrong[0]}")
            reader = self._answers[form] = Reader(form, self._wire)
        return reader
