"""A broker in memory, for tests of apps that reach each other's rooms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext, suppress

from wsdeco.backplanes.interface import Backplane, BackplaneCounters, BackplaneState, Propagator

__all__ = ["MemoryBroker"]


class MemoryBroker:
    """A broker in memory: several apps of one process reach each other's rooms through it, in any event loops.

    Attributes:
        max_payload: The largest message it takes, in bytes; `None` for any.
    """

    def __init__(self, max_payload: int | None = None) -> None:
        self.max_payload = max_payload
        self._backplanes: list[_MemoryBackplane] = []

    def backplane(self) -> Backplane:
        """Return a new backplane, for one app: `App(backplane=broker.backplane())`."""
        backplane = _MemoryBackplane(self.max_payload, self._backplanes)
        self._backplanes.append(backplane)
        return backplane


class _MemoryBackplane:
    def __init__(self, max_payload: int | None, everybody: list[_MemoryBackplane]) -> None:
        self.counters = BackplaneCounters()
        self.propagator: Propagator | None = None
        self._max_payload = max_payload
        self._everybody = everybody
        self._keys: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deliver: Callable[[str, str | bytes], None] = lambda key, data: None

    @property
    def state(self) -> BackplaneState:
        return "closed" if self._loop is None else "connected"

    def start(self, deliver: Callable[[str, str | bytes], None], /) -> None:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver

    def subscribe(self, key: str, /) -> None:
        self._keys.add(key)

    def unsubscribe(self, key: str, /) -> None:
        self._keys.discard(key)

    def publish_nowait(self, key: str, data: str | bytes, /) -> bool:
        size = len(data.encode() if isinstance(data, str) else data)
        if self._max_payload is not None and size > self._max_payload:
            raise ValueError(f"a broadcast of {size} bytes is more than the {self._max_payload} that the broker takes")
        if self._loop is None:
            self.counters.lost += 1
            return False
        context = b"" if self.propagator is None else self.propagator.inject(key)
        for other in self._everybody:
            if other is not self:
                other.hand_over(key, data, context)
        self.counters.published += 1
        return True

    def hand_over(self, key: str, data: str | bytes, context: bytes) -> None:
        if self._loop is not None:
            # A closed loop stands for a process that is gone.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._receive, key, data, context)

    def _receive(self, key: str, data: str | bytes, context: bytes) -> None:
        if self._loop is not None and key in self._keys:
            self.counters.received += 1
            with nullcontext() if self.propagator is None else self.propagator.delivering(key, context):
                self._deliver(key, data)

    async def drained(self) -> None:
        # Nothing waits anywhere.
        return

    async def close(self) -> None:
        self._loop = None
