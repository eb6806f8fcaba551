"""wsdeco with three hooks, on uvicorn; run as a module it is served by uvicorn's own WebSocket implementation."""

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
    app.add("/ws", Echo, config=limits)

    @app.handler("/room", config=limits)
    class Member:
        async def on_message(self, text: str) -> None:
            await app.broadcast("/room", text)

    return app


if __name__ == "__main__":
    asked = parse_options()
    run_uvicorn(echo_app(asked), asked)
