"""A server whose connections are all in one room, to be started several times: `python -m tests.room_process URL`."""

import sys

from wsdeco import Address, App, Sink

ws = App(backplane=sys.argv[1] if len(sys.argv) > 1 else None)
room = ws.room("lobby")


@ws.handler("/member")
class Member:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        room.join(sink)


@ws.handler("/speaker")
class Speaker:
    """Broadcasts as many numbered messages as it is told, and says what the backplane has counted."""

    async def on_message(self, command: str) -> str:
        name, first, last = command.split()
        for number in range(int(first), int(last)):
            await room.broadcast(f"{name}{number:05}")
        assert ws.backplane is not None
        return f"{len(room)} {ws.backplane.counters.missed + ws.backplane.counters.lost}"


if __name__ == "__main__":
    ws.run(port=0)
