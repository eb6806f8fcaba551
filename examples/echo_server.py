"""An echo server, and the same handler once more on a route with strict limits.

Start it with `python examples/echo_server.py` and talk to it with `python -m websockets ws://127.0.0.1:8000/ws`.
"""

import os

from wsdeco import Address, DisconnectReason, Sink, ws


@ws.handler("/strict", max_connections=2, max_connection_duration=300, idle_timeout=60)
@ws.handler("/ws")
class Echo:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink
        await sink.send("Welcome!")

    async def on_message(self, text: str) -> str:
        return f"Echo: {text}"

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        print(f"{self.sink.addr} left: {reason}", flush=True)


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
