"""The client of `connect(..., live=True)`: the same as in memory, over a socket of a server that serves it alone."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from wsdeco.clock import Clock
from wsdeco.reasons import Close, CloseCode
from wsdeco.testing.client import Client

__all__ = ["LiveClient"]

_READ: Final = 16 * 1024
"""Bytes that are read at a time."""

_MAX_MESSAGE: Final = 1 << 30
"""Largest message of the server: that of the route decides."""

_OF_THE_UPGRADE: Final = frozenset({"upgrade", "connection", "date", "server"})
"""Header fields of a 101 response that are none of the app's, besides those of the WebSocket."""

_OWN: Final = ("client", "scheme", "server", "extensions", "wsdeco.clock")
"""What the app is told of the connection as in memory."""


class LiveClient(Client):
    """The peer of one connection, over a real socket."""

    _writer: asyncio.StreamWriter
    subprotocol: str | None
    headers: list[tuple[str, str]]

    def __init__(self, app: ASGIApp, scope: Scope, timeout: float, clock: Clock | None) -> None:
        super().__init__(app, scope, timeout, clock)
        self._cleanup = AsyncExitStack()
        self._protocol = ClientProtocol(parse_uri("ws://testserver/"), max_size=None)
        self._served = asyncio.Event()
        self._failure: Exception | None = None

    async def _open(self) -> None:
        listener = self._cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = await _server_of(self._serve, listener)
        self._cleanup.push_async_callback(server.shutdown, [listener])
        reader, self._writer = await asyncio.open_connection(*listener.getsockname(), limit=_READ)
        self._cleanup.callback(self._writer.transport.abort)
        request = self._protocol.connect()
        request.path = self._scope["raw_path"].decode()
        if self._scope["query_string"]:
            request.path += "?" + self._scope["query_string"].decode()
        # The fields of the scope are those of a whole handshake, but for the key, which the answer is checked against.
        fields = [(name.decode(), value.decode("latin-1")) for name, value in self._scope["headers"]]
        given = [(name, value) for name, value in fields if name != "sec-websocket-key"]
        for name in {name for name, _ in given}:
            request.headers.pop(name, None)
        for name, value in given:
            request.headers[name] = value
        self._protocol.available_subprotocols = self._scope["subprotocols"] or None
        self._protocol.send_request(request)
        self._flush()
        self._task = asyncio.create_task(self._read(reader))
        self._task.add_done_callback(lambda task: self._client_waiter.set())
        self._cleanup.push_async_callback(self._end_reading, self._task)
        async with asyncio.timeout(self._timeout):
            while not self._accepted and self._refused is None and not self._task.done():
                await self._client_waiter.wait()
        if self._refused is not None:
            self._raise_failure()
            raise self._refused

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Only the scope differs, so the connection takes the same way as with `run`.
        try:
            own = {name: self._scope[name] for name in _OWN if name in self._scope}
            await self._app({**scope, **own}, receive, send)
        except Exception as exc:
            self._failure = exc
            raise
        finally:
            self._served.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def wait_done(self) -> None:
        """Wait until the app has ended.

        Raises:
            TimeoutError: It has not, in time.
        """
        _ = self._running_task()
        async with asyncio.timeout(self._timeout):
            await self._served.wait()
        self._raise_failure()

    async def half_close(self) -> None:
        """Send nothing more, not even a close frame, but go on reading."""
        if not self._gone and self._closed is None:
            self._writer.write_eof()
            await asyncio.sleep(0)

    async def _send(self, data: str | bytes, pieces: int) -> None:
        content = data.encode() if isinstance(data, str) else data
        size = -(-len(content) // max(1, pieces))
        parts = [content[start : start + size] for start in range(0, len(content), size)] if size else [content]
        for number, part in enumerate(parts):
            fin = number == len(parts) - 1
            if number:
                self._protocol.send_continuation(part, fin)
            elif isinstance(data, str):
                self._protocol.send_text(part, fin)
            else:
                self._protocol.send_binary(part, fin)
            self._flush()
            await asyncio.sleep(0)
        with suppress(ConnectionError):
            await self._writer.drain()

    def _tell(self, message: Message) -> None:
        """End the connection as `message` says, which is how the client in memory puts it."""
        writer = self._writer
        if writer.transport.is_closing() or self._protocol.state is State.CLOSED:
            return
        if message["code"] == CloseCode.ABNORMAL:
            # The kernel resets the connection, as for a client that was killed.
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            self._protocol.send_close(message["code"], message["reason"])
            self._flush()

    def _flush(self) -> None:
        writer = self._writer
        for data in self._protocol.data_to_send():
            if writer.transport.is_closing():
                continue
            if data:
                writer.write(data)
            else:
                writer.write_eof()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            await self._reads.wait()
            try:
                data = await reader.read(_READ if self._pace is None else max(1, min(_READ, int(self._pace / 20))))
            except ConnectionError:
                data = b""
            # It may have been set since.
            pace = self._pace
            if pace is not None and data:
                await self._wait(len(data) / pace)
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            for event in self._protocol.events_received():
                if isinstance(event, Response):
                    self._take_response(event)
                else:
                    self._take_frame(cast(Frame, event))
            self._flush()
            self._client_waiter.set()
            if not data:
                return

    def _take_response(self, response: Response) -> None:
        fields = [(name.lower(), value) for name, value in response.headers.raw_items()]
        if response.status_code == 101:
            self._accepted = True
            self.subprotocol = self._protocol.subprotocol
            self.headers = [
                (name, value)
                for name, value in fields
                if name not in _OF_THE_UPGRADE and not name.startswith("sec-websocket-")
            ]
        else:
            self._refuse(response.status_code, dict(fields), bytes(response.body or b""))

    def _take_frame(self, frame: Frame) -> None:
        # The server sends each message in one frame.
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            content = bytes(frame.data)
            self._inbox.append(content.decode() if frame.opcode == Opcode.TEXT else content)
            return
        closed = self._protocol.close_rcvd
        if closed is not None and self._closed is None and not self._gone:
            self._closed = Close(closed.code, closed.reason, by="server")

    async def _shut(self) -> None:
        await self._cleanup.aclose()

    async def _end_reading(self, task: asyncio.Task[None]) -> None:
        self._reads.set()
        self._end({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL})
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                if self._accepted:
                    await self._served.wait()
                await asyncio.wait((task,))
        task.cancel()
        await asyncio.wait((task,))


async def _server_of(app: Any, listener: socket.socket) -> uvicorn.Server:
    from wsdeco.http import HttpProtocol  # noqa: PLC0415 - by name, as a server of the user's loads them
    from wsdeco.protocol import WebSocketProtocol  # noqa: PLC0415 - as above

    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=_MAX_MESSAGE,
        ws_per_message_deflate=False,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    return server
