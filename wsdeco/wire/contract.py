"""Who takes what a connection of the protocol receives."""

from __future__ import annotations

from typing import Final, Protocol

from wsdeco.messages import Data
from wsdeco.reasons import Close, Unknown

__all__ = ["NOBODY", "Consumer"]


class Consumer(Protocol):
    """Takes the messages of one connection, and the news of its end."""

    def messages_received(self, messages: list[Data]) -> None:
        """Take messages, in order. Call `pause_reading` on the connection when there are too many."""

    def input_ended(self, reason: Close | Unknown) -> None:
        """Take notice that nothing more comes; called once, behind the last `messages_received`.

        Call `finish` on the connection when the messages before the end have been dealt with.
        """

    def peer_left(self) -> None:
        """Take notice that the peer has ended its side, behind what is not read since there are too many messages."""

    def connection_lost(self) -> None:
        """Take notice that the transport is gone; called once, behind `input_ended`."""


class _Nobody:
    def messages_received(self, messages: list[Data]) -> None:
        """No messages come before a handshake."""

    def input_ended(self, reason: Close | Unknown) -> None:
        """Nobody wants to know."""

    def peer_left(self) -> None:
        """Nobody wants to know."""

    def connection_lost(self) -> None:
        """Nobody wants to know."""


NOBODY: Final[Consumer] = _Nobody()
"""The consumer of a connection whose handshake has not been read, or whose transport is gone."""
