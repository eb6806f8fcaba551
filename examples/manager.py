"""The connection manager of many tutorials, as it is: a loop over `send`, during which others may leave.

A member that has left ends its own connection, and nobody else's; the log advises a room, which waits for nobody.
Start it with `python examples/manager.py`.
"""

import os

from wsdeco import DisconnectReason, Sink, ws


class Manager:
    def __init__(self) -> None:
        self.members: set[Sink] = set()

    async def broadcast(self, text: str) -> None:
        for member in self.members.copy():
            await member.send(text)


manager = Manager()


@ws.handler("/ws")
class Member:
    sink: Sink

    async def on_connect(self, addr: object, sink: Sink) -> None:
        manager.members.add(sink)

    async def on_message(self, text: str) -> None:
        await manager.broadcast(text)

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        manager.members.discard(self.sink)


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
