"""A server, to be started several times, whose connections are in one room: `python -m tests.support.room_process URL`.

With a number behind the URL it has as many workers; then the URL may be empty.
"""

import os
import sys

from wsdeco import Address, App, DisconnectReason, Sink

ws = App(backplane=(sys.argv[1] or None) if len(sys.argv) > 1 else None)
room = ws.room("lobby")


@ws.handler("/member")
class Member:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        room.join(sink)

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        # In one piece, as workers write to the same pipe.
        os.write(1, f"left: {reason}\n".encode())


@ws.handler("/speaker")
class Speaker:
    """Broadcasts as many numbered messages as it is told, and says what the backplane has counted."""

    async def on_message(self, command: str) -> str:
        match command.split():
            case ["count"]:
                return repr(await room.count())
            case ["close"]:
                return str(await room.close(4001, "kicked"))
            case [name, first, last]:
                for number in range(int(first), int(last)):
                    await room.broadcast(f"{name}{number:05}")
                assert ws.backplane is not None
                return f"{len(room)} {ws.backplane.counters.missed + ws.backplane.counters.lost}"
            case _:
                raise ValueError(command)


if __name__ == "__main__":
    ws.run(port=0, workers=int(sys.argv[2]) if len(sys.argv) > 2 else 1)
