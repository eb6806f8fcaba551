"""A Starlette endpoint, on uvicorn; if wsdeco's backplane is in the environment, NATS joins its room."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from benchmarks.peers.common import Options, load, parse_options, run_uvicorn


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
brokers: list[Any] = []


async def room(websocket: WebSocket) -> None:
    await websocket.accept()
    members.add(websocket)
    try:
        async for text in websocket.iter_text():
            for broker in brokers:
                await broker.publish("room", text.encode())
            await deliver(text)
    finally:
        members.discard(websocket)


async def deliver(text: str) -> None:
    for member in tuple(members):
        await member.send_text(text)


async def take(message: Any) -> None:
    await deliver(message.data.decode())


@asynccontextmanager
async def connected(_app: Starlette) -> AsyncGenerator[None]:
    url = os.environ.get("WSDECO_BACKPLANE")
    if url:
        token, _, address = url.removeprefix("nats://").rpartition("@")
        client = load("nats.aio.client").Client()
        await client.connect(f"nats://{address}", token=token or None, no_echo=True)
        await client.subscribe("room", cb=take)
        brokers.append(client)
    yield


async def page(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("page")


def echo_app(options: Options) -> Starlette:
    others = [WebSocketRoute(f"/other-{number}", echo) for number in range(options.routes)]
    named = [WebSocketRoute("/ws", echo), WebSocketRoute("/room", room), WebSocketRoute("/rooms/{name}", echo)]
    named += [WebSocketRoute("/binary", echo_binary), WebSocketRoute("/length", length)]
    return Starlette(routes=[*others, *named, Route("/page", page)], lifespan=connected)


if __name__ == "__main__":
    asked = parse_options()
    run_uvicorn(echo_app(asked), asked)
