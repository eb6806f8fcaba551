"""A chat: everybody has a name, sees who comes and goes, and reads what everybody writes.

Start it with `python examples/chat_server.py` and open http://127.0.0.1:8000/ in two browser windows.
"""

import json
import os
from itertools import count
from pathlib import Path

from starlette.responses import FileResponse

from wsdeco import Address, DisconnectReason, Sink, ws

PAGE = Path(__file__).with_name("chat.html")

everybody = ws.room("everybody")
names: list[str] = []


def free_name(wanted: str) -> str:
    name = "".join(filter(str.isprintable, wanted)).strip()[:30] or "Guest"
    numbered = (f"{name} {number}" for number in count(2))
    return name if name not in names else next(free for free in numbered if free not in names)


async def tell_everybody(**event: str) -> None:
    # Waits for nobody: a member that reads too slowly is closed, and nobody else is delayed.
    await everybody.broadcast(json.dumps(event))


@ws.route("/")
async def page() -> FileResponse:
    return FileResponse(PAGE)


@ws.handler("/chat", max_connections=100, max_message_size=4096)
class Member:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.name = free_name(sink.query_params.get("name", ""))
        names.append(self.name)
        await tell_everybody(joined=self.name)
        sink.send_nowait(json.dumps({"you": self.name, "people": names}))
        everybody.join(sink)

    async def on_message(self, text: str) -> str | None:
        if not text:
            # The page asks whether anybody is there: browsers do not show it pings.
            return "{}"
        await tell_everybody(name=self.name, text=text)
        return None

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        # It has left the room by itself.
        names.remove(self.name)
        await tell_everybody(left=self.name)


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
