"""What tests of backplanes are made with: the checker finds what it is for, and the broker in memory."""

import asyncio
from typing import Any, ClassVar

import pytest

from wsdeco.testing import MemoryBroker, check_backplane


class Faulty:
    """A backplane in memory with one fault.

    Attributes:
        says: How the checker's complaint begins.
    """

    says: ClassVar[str]
    too_large: ClassVar[int | None] = None

    def __init__(self, backplane: Any) -> None:
        self.backplane = backplane

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backplane, name)


class Deaf(Faulty):
    says = "a message, or a state, has not come; the last ones are [[], []]"

    def subscribe(self, key: str) -> None: ...


class NeverConnected(Faulty):
    says = "a message, or a state, has not come"
    state = "connecting"


class Stammers(Faulty):
    says = "every message arrives once, unchanged and in order"

    def publish_nowait(self, key: str, data: str | bytes) -> bool:
        self.backplane.publish_nowait(key, data)
        return bool(self.backplane.publish_nowait(key, data))


class Echoes(Faulty):
    says = "a message does not come back to the one who has published it"

    def publish_nowait(self, key: str, data: str | bytes) -> bool:
        if data == "text":
            self.deliver(key, data)
        return bool(self.backplane.publish_nowait(key, data))

    def start(self, deliver: Any) -> None:
        self.deliver = deliver
        self.backplane.start(deliver)


class Refuses(Faulty):
    says = "what is published while there is a connection is on its way"

    def publish_nowait(self, key: str, data: str | bytes) -> bool:
        return bool(self.backplane.publish_nowait(key, data)) and data in ("probe", "met")


class Shuffles(Faulty):
    says = "the messages of a room arrive in the order in which they were published"
    held: Any = None

    def publish_nowait(self, key: str, data: str | bytes) -> bool:
        if data == "500":
            self.held = key
            return True
        taken = bool(self.backplane.publish_nowait(key, data))
        if data == "600":
            self.backplane.publish_nowait(self.held, "500")
        return taken


class Overtakes(Faulty):
    says = "the messages of one publisher arrive in the order in which they were published, also those of several rooms"

    def publish_nowait(self, key: str, data: str | bytes) -> bool:
        if data == "300":
            return True
        taken = bool(self.backplane.publish_nowait(key, data))
        if data == "301":
            self.backplane.publish_nowait("room:b", "300")
        return taken


class Clings(Faulty):
    says = "nothing comes for a room that is not subscribed any more"

    def unsubscribe(self, key: str) -> None: ...


class TakesAll(Faulty):
    says = "a message that is too large is refused with ValueError"
    too_large = 300_000


@pytest.mark.parametrize(
    "kind", [Deaf, NeverConnected, Stammers, Echoes, Refuses, Shuffles, Overtakes, Clings, TakesAll]
)
async def test_check_backplane_finds(kind: type[Faulty]) -> None:
    broker = MemoryBroker()

    def make() -> Any:
        return kind(broker.backplane())

    with pytest.raises(AssertionError) as caught:
        await check_backplane(make, too_large=kind.too_large, timeout=0.3 if kind in (Deaf, NeverConnected) else 10)
    assert str(caught.value).startswith(f"check_backplane: {kind.says}")


def test_what_is_published_to_a_loop_that_is_gone_is_for_nobody() -> None:
    broker = MemoryBroker()
    here, gone = broker.backplane(), broker.backplane()
    gone.subscribe("room:a")

    async def serve() -> None:
        gone.start(lambda key, data: None)

    asyncio.run(serve())

    async def publish() -> None:
        here.start(lambda key, data: None)
        assert here.publish_nowait("room:a", "x")
        await here.close()

    asyncio.run(publish())
    assert gone.counters.received == 0


async def test_what_is_underway_when_a_backplane_is_closed_is_not_delivered() -> None:
    broker = MemoryBroker()
    here, there = broker.backplane(), broker.backplane()
    got: list[str | bytes] = []
    here.start(lambda key, data: None)
    there.start(lambda key, data: got.append(data))
    there.subscribe("room:a")
    here.publish_nowait("room:a", "x")
    await there.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert got == []
    await here.close()
