"""One app in two processes on one port: a limit that counts over both, and a room that reaches both.

Start it with `python examples/workers.py` (`pip install 'wsdeco[cluster]'`), or from a shell with
`wsdeco run examples/workers.py --workers 2`.
"""

import os

from wsdeco import Address, Sink, ws

everybody = ws.room("everybody")


@ws.handler("/ws", max_connections_total=1000)
class Member:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        everybody.join(sink)

    async def on_message(self, text: str) -> None:
        await everybody.broadcast(f"process {os.getpid()}: {text}")


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")), workers=2)
