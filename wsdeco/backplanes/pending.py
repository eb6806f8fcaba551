"""What a publisher has yet to hear of: messages that wait in a queue, and those that the broker has not confirmed.

Both are bounded, so all that a lost connection leaves in doubt is a window of bounded size.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from wsdeco.backplanes.interface import BackplaneCounters
from wsdeco.backplanes.link import Message
from wsdeco.backplanes.supervision import Supervision

__all__ = ["Pending"]

_PER_MESSAGE: Final = 128
"""Bytes that a message in the queue takes besides its own."""


class Pending:
    """The messages of one session; its length is that of the queue.

    Args:
        supervision: The bounds.
        counters: Where the fate of each message is counted.

    Attributes:
        has_room: Set while the queue is not above its high water mark.
        idle: Set while there is neither a message in the queue nor one in doubt.
        settled_at: When the broker confirmed a message last, or had none in doubt.
    """

    def __init__(self, supervision: Supervision, counters: BackplaneCounters) -> None:
        self._supervision = supervision
        self._counters = counters
        self._queue: deque[Message] = deque()
        self._queued = 0
        self._unsettled: deque[int] = deque()
        self._unsettled_bytes = 0
        self.settled_at: float = 0.0
        self.has_room: asyncio.Event = asyncio.Event()
        self.has_room.set()
        self.idle: asyncio.Event = asyncio.Event()
        self.idle.set()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def in_doubt(self) -> bool:
        """Whether there are messages that were written and not confirmed."""
        return bool(self._unsettled)

    def put(self, message: Message) -> bool:
        """Put a message into the queue; return whether there was room."""
        size = _size(message)
        if self._queue and self._queued + size > self._supervision.max_queue:
            return False
        self._queue.append(message)
        self._queued += size
        if self._queued > self._supervision.high_water:
            self.has_room.clear()
        self.idle.clear()
        return True

    def next_batch(self, now: float) -> list[Message]:
        """Take what may be written now out of the queue; it is in doubt from then on."""
        batch: list[Message] = []
        bounds = self._supervision
        if not self._unsettled:
            self.settled_at = now
        while (
            self._queue and self._unsettled_bytes < bounds.batch_bytes and len(self._unsettled) < bounds.batch_messages
        ):
            message = self._queue.popleft()
            size = _size(message)
            batch.append(message)
            self._queued -= size
            self._unsettled_bytes += size
            self._unsettled.append(size)
        self._note_room()
        return batch

    def settle(self, messages: int, now: float, *, taken: bool) -> None:
        """Note that the broker has confirmed the first of the messages in doubt, or refused them."""
        # None if the confirmation comes from a connection that was given up.
        messages = min(messages, len(self._unsettled))
        if not messages:
            return
        self.settled_at = now
        for _ in range(messages):
            self._unsettled_bytes -= self._unsettled.popleft()
        if taken:
            self._counters.published += messages
        else:
            self._counters.lost += messages
        self._note_room()

    def lose_too_large(self, max_payload: int) -> None:
        """Give up what is larger than the broker takes: it was published before that was known."""
        kept = deque(message for message in self._queue if len(message[1]) <= max_payload)
        self._counters.lost += len(self._queue) - len(kept)
        self._queue = kept
        self._queued = sum(map(_size, kept))
        self._note_room()

    def lose(self) -> None:
        """Give up everything, and let go on who waits for room."""
        self.count_as_lost()
        self._note_room()

    def count_as_lost(self) -> None:
        """Give up everything, in an event loop that is over, where nobody can be told."""
        self._counters.unconfirmed += len(self._unsettled)
        self._counters.lost += len(self._queue)
        self._unsettled.clear()
        self._queue.clear()
        self._unsettled_bytes = self._queued = 0

    def _note_room(self) -> None:
        if self._queued <= self._supervision.high_water and not self.has_room.is_set():
            self.has_room.set()
        if not self._queue and not self._unsettled:
            self.idle.set()


def _size(message: Message) -> int:
    return len(message[1]) + _PER_MESSAGE
