"""Which server of an app may serve: one at a time."""

import pytest

from wsdeco import App, ServerError
from wsdeco.server.options import make_server
from wsdeco.server.serving import server_of


def test_a_server_that_is_refused_leaves_the_other_in_its_place() -> None:
    app = App()

    @app.handler("/ws")
    class Echo:
        async def on_message(self, text: str) -> str:
            return text

    first, second = (make_server(app, "127.0.0.1", 0, {}) for _ in range(2))
    with first.claimed():
        with pytest.raises(ServerError, match="is served at"), second.claimed():
            pass
        assert server_of(app) is first
    assert server_of(app) is None
