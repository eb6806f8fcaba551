"""A room with a task in the background, which runs as long as somebody is in the room.

Start it with `python examples/room_clock.py` and join with `wsdeco connect /clock/tea`, in two terminals.
"""

import asyncio
import os
from itertools import count

from wsdeco import Address, Room, Sink, ws

ticking: dict[str, asyncio.Task[None]] = {}


async def tick(room: Room) -> None:
    for number in count(1):
        await room.broadcast(f"{room.name}: {number}")
        await asyncio.sleep(1)
        if len(room) == 0:
            break
    del ticking[room.name]


@ws.handler("/clock/{name}")
class Member:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        room = ws.room(sink.path_params["name"])
        room.join(sink)
        if room.name not in ticking:
            ticking[room.name] = asyncio.create_task(tick(room))


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
