"""wsdeco with three hooks, on uvicorn; run as a module it is served by uvicorn's own WebSocket implementation."""

import importlib.util
from dataclasses import dataclass
from typing import Final

from starlette.responses import PlainTextResponse

from benchmarks.peers.common import MAX_MESSAGE_SIZE, Options, parse_options, run_uvicorn
from wsdeco import Address, App, Compression, ConnectionConfig, DisconnectReason, Sink

MAX_OUTBOX: Final = 64 * 1024 * 1024
"""Bytes that may wait for a member: a broadcast of the largest message fits, whatever is still on its way."""


@dataclass
class Say:
    text: str


@dataclass
class Shout:
    text: str


class Echo:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink

    async def on_message(self, text: str) -> str:
        return text

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        pass


def echo_app(options: Options) -> App:
    app = App()
    limits = ConnectionConfig(
        compression=options.compression, ping_interval=None, max_message_size=MAX_MESSAGE_SIZE, max_outbox=MAX_OUTBOX
    )
    for number in range(options.routes):
        app.add(f"/other-{number}", Echo, config=limits)
    app.add("/ws", Echo, config=limits)
    app.add("/rooms/{name}", Echo, config=limits)
    if options.compression:
        app.add("/fastest", Echo, config=limits, compression=Compression(level=1))

    @app.handler("/binary", config=limits)
    class EchoBinary:
        async def on_message(self, data: bytes) -> bytes:
            return data

    @app.handler("/length", config=limits)
    class Length:
        async def on_message(self, text: str) -> str:
            return str(len(text))

    @app.handler("/room", config=limits)
    class Member:
        async def on_message(self, text: str) -> None:
            await app.broadcast("/room", text)

    if importlib.util.find_spec("msgspec") is not None:
        add_typed(app, limits)

    @app.route("/page")
    async def page() -> PlainTextResponse:
        return PlainTextResponse("page")

    return app


def add_typed(app: App, limits: ConnectionConfig) -> None:
    import msgspec  # noqa: PLC0415 - it comes with an extra

    @app.handler("/by-hand", config=limits)
    class ByHand:
        async def on_message(self, text: str) -> str:
            message = msgspec.json.decode(text, type=Say)
            return msgspec.json.encode(message).decode()

    @app.handler("/typed", config=limits)
    class Typed:
        async def on_message(self, message: Say) -> Say:
            return message

    @app.handler("/union", config=limits)
    class Union:
        async def on_message(self, message: Say | Shout) -> Say | Shout:
            return message


if __name__ == "__main__":
    asked = parse_options()
    run_uvicorn(echo_app(asked), asked)
