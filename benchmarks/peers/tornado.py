"""Tornado's server, on uvloop."""

from typing import Any

from benchmarks.peers.common import HOST, load, parse_options, run_until_killed

if __name__ == "__main__":
    web: Any = load("tornado.web")
    websocket: Any = load("tornado.websocket")
    options = parse_options()

    class Echo(websocket.WebSocketHandler):  # type: ignore[misc]  # Tornado may not be installed where this is checked
        def get_compression_options(self) -> dict[str, Any] | None:
            return {} if options.compression else None

        def on_message(self, message: str | bytes) -> None:
            self.write_message(message)

    async def start() -> Any:
        return web.Application([("/ws", Echo)]).listen(options.port, HOST, backlog=1024)

    run_until_killed(start)
