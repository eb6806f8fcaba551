"""Who are you? A token in a header, as a subprotocol, in a cookie, or as the first message.

Start it with `python examples/sign_in.py`. A program sends a header, as `wsdeco connect /ws -H 'Authorization: Bearer
ann-1'` does. A page cannot: it writes `new WebSocket("ws://127.0.0.1:8000/ws", ["chat", "bearer.ann-1"])`, has the
cookie of its site, or sends the token first, as you do after `wsdeco connect /ws`. After a minute the connection is
closed with 4401, unless `renew ann-2` comes before.
"""

import os
import time

from starlette.exceptions import WebSocketException

from wsdeco import Address, Sink, ws

USERS = {"ann-1": "ann", "ann-2": "ann", "bob-1": "bob"}


def token_of(sink: Sink) -> str | None:
    scheme, _, token = sink.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token
    for offered in sink.request.scope["subprotocols"]:
        if offered.startswith("bearer."):
            return str(offered).removeprefix("bearer.")
    # Of pages of the same origin only: others, which send it as well, are refused before.
    return sink.request.cookies.get("session")


# With `subprotocols` the server agrees on "chat", and the token goes back to nobody. With `refuse_after_upgrade` a page
# sees the 4401 below also where the handshake is refused.
@ws.handler("/ws", subprotocols=["chat"], refuse_after_upgrade=True, max_connections_per_client=100)
class Member:
    user: str
    sink: Sink

    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sign_in(sink, token_of(sink) or await sink.first_message(timeout=5))

    async def on_message(self, text: str) -> str:
        if text.startswith("renew "):
            self.sign_in(self.sink, text.removeprefix("renew "))
        return f"{self.user}: {text}"

    def sign_in(self, sink: Sink, token: str | bytes) -> None:
        if token not in USERS:
            raise WebSocketException(4401, "unknown token")
        self.user = USERS[str(token)]
        sink.expire_at(time.time() + 60)


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
