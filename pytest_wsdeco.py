"""The pytest plugin of wsdeco: `ws_client`, `ws_clock` and `ws_broadcasts`, under anyio and pytest-asyncio alike.

A module of its own, since pytest loads it for every test suite of the environment: it imports nothing of wsdeco until a
test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from wsdeco.testing import Client, ManualClock

__all__ = ["Broadcast", "pytest_addoption", "ws_broadcasts", "ws_client", "ws_clock"]


class Broadcast(NamedTuple):
    """What was sent to many connections.

    Attributes:
        to: The name of the room, or the path of the route.
        data: The message, as the caller has written it.
    """

    to: str
    data: Any


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--ws-live`, which runs the tests of `ws_client` over a real server."""
    group = parser.getgroup("wsdeco")
    group.addoption("--ws-live", action="store_true", help="connect clients of wsdeco over a real server")


@pytest.fixture
def ws_clock() -> ManualClock:
    """Return a clock that stands still until the test advances it; the clients of `ws_client` live on it."""
    from wsdeco.testing import ManualClock  # noqa: PLC0415 - as the module says

    return ManualClock()


@pytest.fixture
def ws_client(request: pytest.FixtureRequest) -> Callable[..., Client]:
    """Return `wsdeco.testing.connect`, on the clock of the test if it has one, and live with `--ws-live`."""
    from wsdeco.testing import connect  # noqa: PLC0415 - as the module says

    defaults: dict[str, Any] = {"live": request.config.getoption("--ws-live")}
    if "ws_clock" in request.fixturenames:
        defaults["clock"] = request.getfixturevalue("ws_clock")

    def connected(app: ASGIApp, path: str, **options: Any) -> Client:
        return connect(app, path, **(defaults | options))

    return connected


@pytest.fixture
def ws_broadcasts(monkeypatch: pytest.MonkeyPatch) -> list[Broadcast]:
    """Return what was broadcast to rooms and routes since the test began, in the order of the calls."""
    from wsdeco.rooms.broadcast import Broadcasts  # noqa: PLC0415 - as the module says

    found: list[Broadcast] = []
    send, send_nowait = Broadcasts.send, Broadcasts.send_nowait

    async def recorded(self: Broadcasts, key: str, data: object, exclude: object) -> int:
        found.append(Broadcast(key.partition(":")[2], data))
        return await send(self, key, data, exclude)

    def recorded_nowait(self: Broadcasts, key: str, data: object, exclude: object) -> None:
        found.append(Broadcast(key.partition(":")[2], data))
        send_nowait(self, key, data, exclude)

    monkeypatch.setattr(Broadcasts, "send", recorded)
    monkeypatch.setattr(Broadcasts, "send_nowait", recorded_nowait)
    return found
