"""Backplanes: by URL, over real brokers, and what becomes of messages that cannot be published."""

import pytest

from tests.brokers import BrokerProcess
from wsdeco.backplanes import open_backplane
from wsdeco.testing import MemoryBroker, check_backplane


async def test_a_backplane_over_a_broker_is_one(broker: BrokerProcess) -> None:
    await check_backplane(lambda: open_backplane(broker.url), too_large=9_000_000)


@pytest.mark.parametrize("max_payload", [None, 1_000_000])
async def test_a_backplane_in_memory_is_one(max_payload: int | None) -> None:
    await check_backplane(MemoryBroker(max_payload).backplane, too_large=max_payload and max_payload + 1)
