"""A Starlette endpoint, on uvicorn."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from benchmarks.peers.common import Options, parse_options, run_uvicorn


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def echo_binary(websocket: WebSocket) -> None:
    await websocket.accept()
    async for data in websocket.iter_bytes():
        await websocket.send_bytes(data)


async def length(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(str(len(text)))


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


async def page(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("page")


def echo_app(options: Options) -> Starlette:
    others = [WebSocketRoute(f"/other-{number}", echo) for number in range(options.routes)]
    named = [WebSocketRoute("/ws", echo), WebSocketRoute("/room", room), WebSocketRoute("/rooms/{name}", echo)]
    named += [WebSocketRoute("/binary", echo_binary), WebSocketRoute("/length", length)]
    return Starlette(routes=[*others, *named, Route("/page", page)])


if __name__ == "__main__":
    asked = parse_options()
    run_uvicorn(echo_app(asked), asked)
