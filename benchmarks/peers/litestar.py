"""A Litestar route handler, on uvicorn."""

from typing import Any

from benchmarks.peers.common import load, parse_options, run_uvicorn


async def echo(socket: Any) -> None:
    await socket.accept()
    async for text in socket.iter_data(mode="text"):
        await socket.send_text(text)


if __name__ == "__main__":
    litestar = load("litestar")
    # Litestar reads the annotation when the app starts.
    echo.__annotations__["socket"] = litestar.WebSocket
    run_uvicorn(litestar.Litestar([litestar.websocket("/ws")(echo)]), parse_options())
