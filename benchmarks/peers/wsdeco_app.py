"""wsdeco with three hooks, on uvicorn; run as a module it is served by uvicorn's own WebSocket implementation."""

from starlette.responses import PlainTextResponse

from benchmarks.peers.common import Options, parse_options, run_uvicorn
from wsdeco import Address, App, ConnectionConfig, DisconnectReason, Sink


class Echo:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink

    async def on_message(self, text: str) -> str:
        return text

    async def on_disconnect(self, reason: DisconnectReason) -> None:
        pass


def echo_app(options: Options) -> App:
    app = App()
    limits = ConnectionConfig(compression=options.compression, ping_interval=None)
    for number in range(options.routes):
        app.add(f"/other-{number}", Echo, config=limits)
    app.add("/ws", Echo, config=limits)
    app.add("/rooms/{name}", Echo, config=limits)

    @app.handler("/room", config=limits)
    class Member:
        async def on_message(self, text: str) -> None:
            await app.broadcast("/room", text)

    @app.route("/page")
    async def page() -> PlainTextResponse:
        return PlainTextResponse("page")

    return app


if __name__ == "__main__":
    asked = parse_options()
    run_uvicorn(echo_app(asked), asked)
