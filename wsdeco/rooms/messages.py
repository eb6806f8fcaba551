"""Broadcasts with types: which handlers of an app say how they are written."""

from __future__ import annotations

from wsdeco.channels.data import Data
from wsdeco.channels.dialogue import Dialogue
from wsdeco.rooms.members import route_key

__all__ = ["Messages"]


class Messages:
    """How broadcasts of an app are written that are neither text nor bytes."""

    def __init__(self) -> None:
        self._dialogues: dict[str, Dialogue] = {}

    def learn(self, path: str, dialogue: Dialogue | None) -> None:
        """Note how the handler on `path` writes its messages; `None` if it has no types."""
        if dialogue is None:
            self._dialogues.pop(route_key(path), None)
        else:
            self._dialogues[route_key(path)] = dialogue

    def encode(self, key: str, message: object) -> Data:
        """Return the frame of a message to the members of a room.

        To the members of a route it is written as the handler of that route writes. Any other room may have members of
        each handler with types: those handlers decide that are annotated to give such messages themselves.

        Raises:
            TypeError: No handler has types, or several write the message in different ways.
        """
        own = self._dialogues.get(key)
        if own is not None:
            return own.encode(message)
        kind = type(message)
        # One of those who write it alike is enough.
        forms = {dialogue.form_of(kind): dialogue for dialogue in self._dialogues.values()}
        if len({wire for wire, _ in forms}) == 1:
            knowing = (dialogue for dialogue in self._dialogues.values() if dialogue.knows(kind))
            forms = {dialogue.form_of(kind): dialogue for dialogue in knowing} or forms
        if len(forms) == 1 and not key.startswith(route_key("")):
            return next(iter(forms.values())).encode(message)
        why = (
            "the handlers of the app write it in different ways"
            if len(forms) > 1
            else "no handler that it goes to has messages with types, or a codec"
        )
        raise TypeError(
            f"a broadcast must be str or bytes, not {kind.__name__}, since {why}: write json.dumps(...) first"
        )
