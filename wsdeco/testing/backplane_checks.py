"""The checker for backplanes of one's own, which those of wsdeco pass as well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

from wsdeco.backplanes.interface import Backplane

__all__ = ["MakeBackplane", "check_backplane"]

_TIMEOUT: Final = 30.0

_NAMES: Final = (
    *(
        "room:a b",
        "room:a.b",
        "room:a.b.c",
        "room:a%20b",
        "room:*",
        "room:>",
        "room:a.>",
        "room:~",
        "room: ",
        "room:\t",
    ),
    *(
        "control:",
        "room:control:",
        "room:\r\nPUB x 1",
        "room:\0",
        "room:\u00e9\u20ac\U0001f600",
        "room:A",
        "room:a",
        "route:/ws/{id:int}",
    ),
    *("room:" + "x" * 1000, "room:" + "x" * 1001, "room:[a]?", "room:\udc80"),
)
"""Rooms that a broker could confuse, or choke on."""

_LARGE: Final = 200_000
"""Bytes of a message that a backplane takes, unless it has a low limit."""


MakeBackplane: TypeAlias = Callable[[], Backplane]
"""Makes a backplane; what one of them publishes reaches all others."""


async def check_backplane(make: MakeBackplane, too_large: int | None = None, timeout: float = _TIMEOUT) -> None:
    """Check that a backplane behaves as rooms rely on.

    Args:
        make: Makes a backplane; what one of them publishes reaches all others.
        too_large: Bytes of a message that it must refuse; by default, it takes messages of any size.
        timeout: Seconds of real time that each check may take.

    Raises:
        AssertionError: It does not; the text says where.
    """
    large = _LARGE if too_large is None else min(_LARGE, too_large // 2)
    await _run(lambda here, there: _check_delivery(here, there, large), make, timeout)
    for check in (_check_order, _check_unsubscribe, _check_names, _check_restart):
        await _run(check, make, timeout)
    if too_large is not None:
        await _run(lambda here, there: _check_too_large(here, there, too_large), make, timeout)


async def _run(check: Callable[[_Party, _Party], Awaitable[None]], make: MakeBackplane, timeout: float) -> None:
    parties = (_Party(make()), _Party(make()))
    try:
        async with asyncio.timeout(timeout):
            for party in parties:
                party.start()
            await check(*parties)
    except TimeoutError:
        got = [party.got[-3:] for party in parties]
        raise AssertionError(f"check_backplane: a message, or a state, has not come; the last ones are {got}") from None
    finally:
        for party in parties:
            await party.backplane.close()


class _Party:
    """One process, so to speak."""

    def __init__(self, backplane: Backplane) -> None:
        self.backplane = backplane
        self.got: list[tuple[str, str | bytes]] = []

    def start(self) -> None:
        self.backplane.start(lambda key, data: self.got.append((key, data)))

    async def publish(self, key: str, data: str | bytes) -> None:
        _require(
            self.backplane.publish_nowait(key, data), "what is published while there is a connection is on its way"
        )
        await self.backplane.drained()

    async def meet(self, other: _Party, *keys: str) -> None:
        """Wait until what this one publishes to rooms reaches the other, which has subscribed them."""
        for key in keys:
            while (key, "probe") not in other.got:
                self.backplane.publish_nowait(key, "probe")
                await asyncio.sleep(0.005)
            self.backplane.publish_nowait(key, "met")
            await _until(partial(other.has_got, key, "met"))
        self.got.clear()
        other.got.clear()

    def has_got(self, key: str, data: str) -> bool:
        """Return whether that message has come."""
        return (key, data) in self.got

    def is_connected(self) -> bool:
        """Return whether the backplane says so."""
        return self.backplane.state == "connected"


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(f"check_backplane: {what}")


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing announces what is waited for
        await asyncio.sleep(0.001)


async def _check_delivery(here: _Party, there: _Party, large: int) -> None:
    for party in (here, there):
        await _until(party.is_connected)
        party.backplane.subscribe("room:a")
    await here.meet(there, "room:a")
    await there.meet(here, "room:a")
    sent: list[str | bytes] = [
        "text",
        b"binary",
        "",
        b"",
        "\u20ac",
        b"\x00\xff",
        "x" * large,
        b"\xfe" * large,
        "last",
    ]
    for data in sent:
        await here.publish("room:a", data)
    await _until(lambda: len(there.got) >= len(sent))
    await there.publish("room:a", "back")
    await _until(lambda: bool(here.got))
    _require(there.got == [("room:a", data) for data in sent], "every message arrives once, unchanged and in order")
    _require(here.got == [("room:a", "back")], "a message does not come back to the one who has published it")
    _require(there.backplane.counters.received >= len(sent), "what has come is counted")
    # A broker may confirm it later.
    await _until(lambda: here.backplane.counters.published >= len(sent))


async def _check_order(here: _Party, there: _Party) -> None:
    there.backplane.subscribe("room:a")
    there.backplane.subscribe("room:b")
    await here.meet(there, "room:a", "room:b")
    for number in range(1000):
        await here.publish("room:a" if number % 3 else "room:b", str(number))
    await _until(lambda: len(there.got) >= 1000)
    for key in ("room:a", "room:b"):
        numbers = [int(data) for room, data in there.got if room == key]
        expected = [number for number in range(1000) if (key == "room:b") is (number % 3 == 0)]
        _require(numbers == expected, "the messages of a room arrive in the order in which they were published")
    # A room is closed behind what was said there, and that goes through another one.
    _require(
        [int(data) for _, data in there.got] == list(range(1000)),
        "the messages of one publisher arrive in the order in which they were published, also those of several rooms",
    )


async def _check_unsubscribe(here: _Party, there: _Party) -> None:
    there.backplane.subscribe("room:a")
    there.backplane.subscribe("room:b")
    await here.meet(there, "room:a", "room:b")
    there.backplane.unsubscribe("room:a")
    await here.publish("room:a", "1")
    await here.publish("room:b", "2")
    await _until(lambda: bool(there.got))
    _require(there.got == [("room:b", "2")], "nothing comes for a room that is not subscribed any more")
    for _ in range(100):
        there.backplane.subscribe("room:a")
        there.backplane.unsubscribe("room:a")
    there.backplane.subscribe("room:a")
    await here.meet(there, "room:a")
    await here.publish("room:a", "3")
    await _until(lambda: bool(there.got))
    _require(there.got == [("room:a", "3")], "a room that is subscribed again gets every message once")


async def _check_names(here: _Party, there: _Party) -> None:
    for name in _NAMES:
        there.backplane.subscribe(name)
    await here.meet(there, *_NAMES)
    for name in _NAMES:
        await here.publish(name, ascii(name))
    await _until(lambda: len(there.got) >= len(_NAMES))
    wrong = [key for key, data in there.got if data != ascii(key)]
    _require(
        len(there.got) == len(_NAMES) and not wrong, f"each room gets its own messages, whatever its name: {wrong}"
    )


async def _check_restart(here: _Party, there: _Party) -> None:
    there.backplane.subscribe("room:a")
    await here.meet(there, "room:a")
    await there.backplane.close()
    await there.backplane.close()
    _require(there.backplane.state == "closed", "it says that it is closed")
    _require(not there.backplane.publish_nowait("room:a", "x"), "nothing is on its way that is published after close")
    _require(there.backplane.counters.lost >= 1, "what is lost is counted")
    there.start()
    await here.meet(there, "room:a")
    await here.publish("room:a", "again")
    await _until(lambda: bool(there.got))
    _require(there.got == [("room:a", "again")], "it can be started again, and has the same rooms")


async def _check_too_large(here: _Party, there: _Party, size: int) -> None:
    there.backplane.subscribe("room:a")
    await here.meet(there, "room:a")
    for data in ("x" * size, b"x" * size):
        try:
            here.backplane.publish_nowait("room:a", data)
        except ValueError:
            continue
        raise AssertionError("check_backplane: a message that is too large is refused with ValueError")
    await here.publish("room:a", "next")
    await _until(lambda: bool(there.got))
    _require(there.got == [("room:a", "next")], "a message that was refused arrives nowhere")
