"""A chat whose messages are classes: requests get their reply by `id`, and the server asks as well.

Start it with `python examples/typed_chat.py` (`pip install 'wsdeco[typed]'`), and talk to ws://127.0.0.1:8000/chat:
`{"type": "Join", "name": "Ada", "id": 1}`, then `{"id": "$1", "yes": true}` and `{"type": "Say", "text": "hello"}`.
"""

import os
from dataclasses import dataclass

from starlette.exceptions import WebSocketException

from wsdeco import Sink, ws

lobby = ws.room("lobby")


@dataclass
class Join:
    name: str


@dataclass
class Say:
    text: str


@dataclass
class Said:
    name: str
    text: str


@dataclass
class Question:
    text: str


@dataclass
class Answer:
    yes: bool


@ws.handler("/chat", max_message_size=4096)
class Member:
    sink: Sink
    name = "nobody"

    async def on_message(self, message: Join | Say) -> Said | Question | None:
        if isinstance(message, Say):
            await lobby.broadcast(Said(self.name, message.text))
            return None
        answer = await self.sink.ask(Question("Will you be kind?"), Answer, timeout=60)
        if not answer.yes:
            raise WebSocketException(4003, "then not")
        self.name = message.name
        lobby.join(self.sink)
        return Said("server", f"welcome, {self.name}")


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
