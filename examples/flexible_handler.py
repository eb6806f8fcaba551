"""One path for both: a browser gets a page, and the page gets its WebSocket from the same address.

Start it with `python examples/flexible_handler.py` and open http://127.0.0.1:8000/ in a browser.
"""

import os
from pathlib import Path

from starlette.responses import FileResponse

from wsdeco import WebSocketUpgrade, handle_upgrade, ws

PAGE = Path(__file__).with_suffix(".html")


class Counter:
    def __init__(self) -> None:
        self.count = 0

    async def on_message(self, text: str) -> str:
        self.count += 1
        return f"Message {self.count}: {text}"


@ws.route("/")
async def page_or_socket(upgrade: WebSocketUpgrade | None) -> FileResponse | None:
    if upgrade is None:
        return FileResponse(PAGE)
    await handle_upgrade(upgrade, Counter, max_connections=100)
    return None


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
