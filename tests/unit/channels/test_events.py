"""What stands for the server once a connection is over."""

import pytest

from wsdeco.channels.events import GONE, nothing_more


async def test_a_connection_that_is_over_is_gone() -> None:
    with pytest.raises(GONE, match="the connection is over"):
        await nothing_more({"type": "websocket.send", "text": "late"})
