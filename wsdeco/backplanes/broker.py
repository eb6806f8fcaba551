"""A backplane over a broker, whichever it is: which rooms are wanted, and one session after the other."""

from __future__ import annotations

from collections.abc import Callable

from wsdeco.backplanes.envelope import ENVELOPE_BYTES, subject_of
from wsdeco.backplanes.interface import BackplaneCounters, BackplaneState, Propagator
from wsdeco.backplanes.link import Broker
from wsdeco.backplanes.session import Session
from wsdeco.backplanes.supervision import Supervision
from wsdeco.messages import Data

__all__ = ["BrokerBackplane"]


class BrokerBackplane:
    """Broadcasts to the same rooms in other processes, through a broker.

    Attributes:
        broker: What to connect to.
        supervision: How.
        counters: What has become of the messages.
        wanted: The rooms to subscribe, by their subjects.
        max_payload: The largest message that the broker takes, in bytes.
        error: Why there is no connection; `None` while there is one, and before the first attempt has ended.
        propagator: What writes and reads the context of traces; `None` while they are off.
    """

    def __init__(self, broker: Broker, prefix: str, supervision: Supervision) -> None:
        self.counters: BackplaneCounters = BackplaneCounters()
        self.error: str | None = None
        self.propagator: Propagator | None = None
        self.broker = broker
        self.supervision = supervision
        self.wanted: dict[str, str] = {}
        self._subjects: dict[str, str] = {}
        self.max_payload: int = broker.max_payload
        self._prefix = prefix
        self._session: Session | None = None

    @property
    def state(self) -> BackplaneState:
        """Whether there is a connection to the broker."""
        return "closed" if self._session is None else self._session.state

    def start(self, deliver: Callable[[str, Data], None], /) -> None:
        """Connect in the running event loop, and stay connected."""
        if self._session is not None:
            self._session.abandon()
        self._session = Session(self, deliver)

    def subscribe(self, key: str, /) -> None:
        """Have the broadcasts to the room `key` delivered."""
        subject = self._subjects[key] = subject_of(self._prefix, key)
        self.wanted[subject] = key
        if self._session is not None:
            self._session.subscribe(subject)

    def unsubscribe(self, key: str, /) -> None:
        """Have them delivered no longer."""
        subject = self._subjects.pop(key, None)
        if subject is None:
            return
        del self.wanted[subject]
        if self._session is not None:
            self._session.unsubscribe(subject)

    def publish_nowait(self, key: str, data: Data, /) -> bool:
        """Broadcast to the other processes; return whether that is on its way.

        Raises:
            ValueError: `data` is more than the broker takes.
        """
        payload = data.encode() if isinstance(data, str) else data
        largest = self.max_payload - ENVELOPE_BYTES
        if len(payload) > largest:
            raise ValueError(
                f"a broadcast of {len(payload)} bytes is more than {self.broker.name} takes, which is {largest} bytes: "
                "send less, or raise the limit of the broker (NATS: max_payload)"
            )
        session = self._session
        if session is not None and session.runs_here():
            context = b"" if self.propagator is None else self.propagator.inject(key)
            if context and len(payload) + 1 + len(context) > largest:
                # The message counts for more.
                context = b""
            return session.publish(self.subject_of(key), payload, context, is_text=isinstance(data, str))
        self.counters.lost += 1
        return False

    async def drained(self) -> None:
        """Wait while the broker has too much to read."""
        session = self._session
        if session is not None and not session.has_room:
            await session.drained()

    async def close(self) -> None:
        """Send what is in the queue, unless that takes too long, and disconnect."""
        session, self._session = self._session, None
        if session is not None:
            await session.end()

    def subject_of(self, key: str) -> str:
        """Return what a room is called at the broker."""
        # Only rooms with members here are kept, as names come from peers.
        return self._subjects.get(key) or subject_of(self._prefix, key)

    def __repr__(self) -> str:
        trouble = "" if self.error is None else f": {self.error}"
        return f"<Backplane {self.broker.name} {self.state}{trouble}>"
