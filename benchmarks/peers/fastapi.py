"""A FastAPI endpoint, on uvicorn."""

from fastapi import FastAPI, WebSocket

from benchmarks.peers.common import parse_options, run_uvicorn

app = FastAPI()


@app.websocket("/ws")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


if __name__ == "__main__":
    run_uvicorn(app, parse_options())
