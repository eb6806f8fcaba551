"""An ASGI app without a framework, on uvicorn."""

from starlette.types import Receive, Scope, Send

from benchmarks.peers.common import parse_options, run_uvicorn


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})


if __name__ == "__main__":
    run_uvicorn(app, parse_options())
