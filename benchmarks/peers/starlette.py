"""A Starlette endpoint, on uvicorn."""

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from benchmarks.peers.common import parse_options, run_uvicorn


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


members: set[WebSocket] = set()


async def room(websocket: WebSocket) -> None:
    await websocket.accept()
    members.add(websocket)
    try:
        async for text in websocket.iter_text():
            for member in tuple(members):
                await member.send_text(text)
    finally:
        members.discard(websocket)


if __name__ == "__main__":
    run_uvicorn(Starlette(routes=[WebSocketRoute("/ws", echo), WebSocketRoute("/room", room)]), parse_options())
