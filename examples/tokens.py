"""A streamed answer that the client can stop: `{"type": "Ask", "prompt": "..."}`, and then `{"type": "Stop"}`.

Start it with `python examples/tokens.py` (`pip install 'wsdeco[typed]'`), and talk to ws://127.0.0.1:8000/tokens.
"""

import asyncio
import os
from dataclasses import dataclass

from wsdeco import Sink, ws


@dataclass
class Ask:
    prompt: str


@dataclass
class Stop:
    pass


@dataclass
class Token:
    text: str


@dataclass
class Done:
    stopped: bool


@ws.handler("/tokens")
class Tokens:
    sink: Sink

    def __init__(self) -> None:
        self.answering: asyncio.Task[None] | None = None

    async def on_message(self, message: Ask | Stop) -> Token | Done | None:
        if self.answering is not None:
            self.answering.cancel()
            await asyncio.wait((self.answering,))
        if isinstance(message, Stop):
            return Done(stopped=True)
        # Belongs to the connection: when the client leaves, it is cancelled.
        self.answering = self.sink.create_task(self.answer(message.prompt))
        return None

    async def answer(self, prompt: str) -> None:
        for word in prompt.split():
            # Here a language model would think.
            await asyncio.sleep(0.05)
            await self.sink.send(Token(word[::-1]))
        await self.sink.send(Done(stopped=False))


if __name__ == "__main__":
    ws.run(port=int(os.environ.get("PORT", "8000")))
