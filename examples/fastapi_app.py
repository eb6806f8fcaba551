"""A handler in a FastAPI application, which gets what `Depends` supplies.

Start it with `python examples/fastapi_app.py` (`pip install fastapi`) and connect with
`wsdeco connect '/greet?token=ann'`.
"""

import os
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, WebSocket, WebSocketException

from wsdeco import handle_socket

app = FastAPI()


def current_user(token: str = "") -> str:
    # Here the token would be looked up.
    if not token:
        raise WebSocketException(1008, "no token")
    return token


class Greeter:
    def __init__(self, user: str) -> None:
        self.user = user

    async def on_message(self, text: str) -> str:
        return f"{text}, {self.user}!"


@app.websocket("/greet")
async def greet(websocket: WebSocket, user: Annotated[str, Depends(current_user)]) -> None:
    await handle_socket(websocket, Greeter(user), max_connections=100, idle_timeout=3600)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), ws="wsdeco.protocol:WebSocketProtocol")
