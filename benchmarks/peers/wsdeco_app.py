"""wsdeco with three hooks, on uvicorn; run as a module it is served by uvicorn's own WebSocket implementation."""

from dataclasses import fields

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
    config = ConnectionConfig()
    # Only the direct channel compresses by itself, so the limit exists only where that channel does.
    if options.compression and "compression" in {field.name for field in fields(ConnectionConfig)}:
        config = config.replace(compression=True)
    app = App()
    app.add("/ws", Echo, config=config)
    return app


if __name__ == "__main__":
    asked = parse_options()
    run_uvicorn(echo_app(asked), asked)
