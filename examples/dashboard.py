"""A dashboard: whoever connects sees the last value at once, and then each new one.

Start it with `python examples/dashboard.py` and look at it with `wsdeco connect /cpu`.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette

from wsdeco import Address, Sink, ws

viewers = ws.room("viewers")
last = "no value yet"


async def measure() -> None:
    global last  # noqa: PLW0603 - the last value, which is the point
    while True:
        last = f"{time.process_time():.2f} s of CPU"
        await viewers.broadcast(last)
        await asyncio.sleep(1)


@ws.lifespan
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    measuring = asyncio.create_task(measure())
    yield
    measuring.cancel()


@ws.handler("/cpu", slow_consumer="drop")
class Viewer:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        # No await between the two, so that no value comes twice, or is missed.
        sink.send_nowait(last)
        viewers.join(sink)


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
