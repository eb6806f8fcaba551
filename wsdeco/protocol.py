"""The public name of the WebSocket implementation: `uvicorn app:ws --ws wsdeco.protocol:WebSocketProtocol`."""

from wsdeco.transport.protocol import WebSocketProtocol

__all__ = ["WebSocketProtocol"]
