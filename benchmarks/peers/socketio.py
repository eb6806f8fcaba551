"""python-socketio on uvicorn; each client joins one room, which is joined with other processes over Redis."""

import os
from typing import Any

from benchmarks.peers.bare import app
from benchmarks.peers.common import load, parse_options, run_uvicorn


def room_app(url: str | None) -> Any:
    socketio = load("socketio")
    manager = None if url is None else socketio.AsyncRedisManager(url)
    # Pings are as good as off.
    server = socketio.AsyncServer(
        async_mode="asgi", client_manager=manager, transports=["websocket"], ping_interval=24 * 3600
    )

    async def connect(sid: str, _environ: object) -> None:
        await server.enter_room(sid, "room")

    async def say(_sid: str, text: str) -> None:
        await server.emit("say", text, room="room")

    server.on("connect", connect)
    server.on("say", say)
    return socketio.ASGIApp(server, other_asgi_app=app)


if __name__ == "__main__":
    run_uvicorn(room_app(os.environ.get("WSDECO_BACKPLANE")), parse_options())
