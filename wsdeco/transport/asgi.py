"""The ASGI side of a connection: one cycle of `receive` and `send` with any application (ASGI 2.4).

Where uvicorn's own classes leave a choice, the peer and the application get the clearer answer:

- An exception after the handshake closes with 1011, a return without `websocket.close` with 1000.
- `websocket.disconnect` comes exactly once; asking again raises, instead of waiting for ever.
- A lost transport is 1006; 1005 means a close frame without a code.
- Sending after the end raises `ClientDisconnected`, an `OSError`; a `websocket.close` that comes after the
  peer's is no fault, and is ignored.
- What the application must not put on the wire (a close code, a header, a subprotocol nobody offered) raises where
  it is sent, and the connection lives.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import enum
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeAlias, cast

from starlette.types import Receive, Send
from starlette.websockets import WebSocketDisconnect
from typing_extensions import Unpack
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.utils import ClientDisconnected, is_ssl

from wsdeco.messages import Data
from wsdeco.reasons import Close, CloseCode, Unknown, printable
from wsdeco.tracebacks import PRINTABLE_TRACEBACKS
from wsdeco.wire.contract import Connection, Options
from wsdeco.wire.handshake import Request, check_refusal
from wsdeco.wire.scope import build_scope

__all__ = ["AsgiCycle", "Event", "PeerName", "Scope", "TaskFreeStart", "scope_of", "task_free_start"]

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[[Scope, Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Awaitable[Any]]

_FORWARDED: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})
"""What uvicorn's middleware for proxies looks at."""
PeerName: TypeAlias = tuple[Any, ...] | str | None
"""What asyncio calls one side of a connection: host and port, the path of a Unix socket, or nothing."""

_STARLETTE_WRAPPER: Final = "starlette._exception_handler"

_MAX_INBOX_BYTES: Final = 64 * 1024
"""Size of the messages that wait for `receive`; past it the peer is not read."""
_MESSAGE_OVERHEAD: Final = 64
"""What an empty message counts for, in bytes."""
_MESSAGES_AT_ONCE: Final = 32
"""Messages that wait already after which `receive` gives others a turn of the loop."""

_logger = logging.getLogger("uvicorn.error")
_logger.addFilter(PRINTABLE_TRACEBACKS)


def scope_of(
    request: Request, transport: asyncio.Transport, peer_name: PeerName, config: Config, app_state: dict[str, Any]
) -> dict[str, Any]:
    """Return the scope of a connection, whose transport calls the peer `peer_name`."""
    return build_scope(
        request,
        scheme="wss" if is_ssl(transport) else "ws",
        # uvicorn asks the socket object, which uvloop would have to make for that.
        server=_server_of(transport.get_extra_info("sockname")),
        client=None if isinstance(peer_name, str) else _address(peer_name),
        root_path=config.root_path,
        asgi={"version": config.asgi_version, "spec_version": "2.4"},
        state=app_state,
    )


@lru_cache(maxsize=64)
def _server_of(name: PeerName) -> tuple[str, int | None] | None:
    # All connections to one address share the tuple.
    return (name, None) if isinstance(name, str) else _address(name)


def _address(name: tuple[Any, ...] | None) -> tuple[str, int] | None:
    # An address of IPv6 has two more parts.
    return None if name is None else (str(name[0]), int(name[1]))


class _State(enum.Enum):
    CONNECTING = enum.auto()
    OPEN = enum.auto()
    DENYING = enum.auto()
    CLOSED = enum.auto()
    YIELDED = enum.auto()


_OPEN: Final = _State.OPEN


@dataclass(slots=True)
class _Denial:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytearray = field(default_factory=bytearray)


class AsgiCycle:
    """One application's `receive` and `send`.

    Attributes:
        connection: The connection underneath.
    """

    __slots__ = (
        "_denial",
        "_inbox",
        "_inbox_size",
        "_on_departure",
        "_options",
        "_receivers",
        "_state",
        "_told_connect",
        "_told_disconnect",
        "connection",
    )

    def __init__(self, connection: Connection) -> None:
        self.connection: Connection = connection
        self._state = _State.CONNECTING
        self._denial: _Denial | None = None
        self._inbox: deque[Data] | None = None
        self._inbox_size = 0
        self._receivers: list[asyncio.Future[None]] = []
        self._options: Options | None = None
        self._on_departure: Callable[[], None] | None = None
        self._told_connect = False
        self._told_disconnect = False

    @property
    def transport(self) -> asyncio.Transport:
        """The transport, found here through `receive` as with uvicorn's own classes."""
        return self.connection.transport

    @property
    def close_timeout(self) -> float:
        """Seconds for each step of the closing handshake; any application may set it in `extensions["wsdeco"]`."""
        return self.connection.close_timeout

    @close_timeout.setter
    def close_timeout(self, seconds: float) -> None:
        self.connection.close_timeout = seconds

    def start(self, scope: Scope, tasks: set[asyncio.Task[None]], config: Config) -> None:
        """Run the application of `config` in a task of its own, which is in `tasks` while it runs."""
        context = contextvars.Context() if config.reset_contextvars else None
        app: App = cast(Any, config).loaded_app
        task = asyncio.get_running_loop().create_task(self._run(app, scope), context=context)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _run(self, app: App, scope: Scope) -> None:
        connection = self.connection
        failed = True
        try:
            result = await app(scope, self.receive, self.send)
            failed = False
            if connection.handshake_pending and self._state is not _State.YIELDED:
                _logger.error("ASGI callable returned without completing handshake.")
            elif result is not None:
                _logger.error("ASGI callable should return None, but returned '%s'.", printable(str(result)))
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            if not self._is_only_the_end(exc):
                _logger.exception("Exception in ASGI application\n")
        finally:
            if self._state is _State.YIELDED:
                if failed:
                    connection.abort()
            elif connection.handshake_pending:
                connection.refuse(500, (), b"Internal Server Error")
            else:
                connection.close(CloseCode.INTERNAL_ERROR if failed else CloseCode.NORMAL)

    def _is_only_the_end(self, exc: BaseException) -> bool:
        """Tell whether `exc` says nothing but that the connection has ended, which is nobody's fault here."""
        if isinstance(exc, BaseExceptionGroup):
            return all(map(self._is_only_the_end, cast("BaseExceptionGroup[BaseException]", exc).exceptions))
        return self.connection.end is not None and isinstance(exc, (ClientDisconnected, WebSocketDisconnect))

    # What the connection calls.

    def messages_received(self, messages: list[Data]) -> None:
        """Put messages into the inbox; past its bound the peer is not read."""
        inbox = self._inbox
        if inbox is None:
            self._inbox = deque(messages)
        else:
            inbox.extend(messages)
        self._inbox_size += sum(map(len, messages)) + _MESSAGE_OVERHEAD * len(messages)
        if self._inbox_size > _MAX_INBOX_BYTES:
            self.connection.pause_reading()
        self._wake_receivers()

    def input_ended(self, reason: Close | Unknown) -> None:
        """Nothing more comes, as `end` of the connection says."""
        self._wake_receivers()
        self.peer_left()

    def peer_left(self) -> None:
        """Tell who has asked: ASGI has no event for it that could come in front of the messages."""
        if self._on_departure is not None:
            self._on_departure()

    def connection_lost(self) -> None:
        """Do nothing: `input_ended` has told all that ASGI has an event for."""

    def yield_connection(self, receive: Receive, send: Send) -> Connection | None:
        """Return the connection, for a receiver that takes the place of this cycle.

        `receive` and `send` are what the endpoint was called with. If a middleware has wrapped one of them in order
        to see the messages, the cycle goes on, and the answer is `None`.
        """
        if receive != self.receive or _unwrapped(send) != self.send:
            return None
        self._told_connect = True
        self._state = _State.YIELDED
        return self.connection

    def tell_departure(self, told: Callable[[], None] | None) -> None:
        """Call `told` once the peer has ended its side, in front of the messages that nobody has received so far.

        Who receives nothing, since a hook is busy, would not learn of it.
        """
        self._on_departure = told
        if told is not None and self.connection.end is not None:
            told()

    def set_options(self, *, close_timeout: float, **options: Unpack[Options]) -> None:
        """Set what the connection is accepted with, in place of uvicorn's options.

        Args:
            close_timeout: Seconds for each step of the closing handshake, in any state.
            options: As `accept` of the connection takes them. A `keepalive` takes effect in any state as well.
        """
        self.connection.close_timeout = close_timeout
        self._options = options
        if self._state is _OPEN and "keepalive" in options:
            self.connection.set_keepalive(*options["keepalive"])

    def _wake_receivers(self) -> None:
        receivers, self._receivers = self._receivers, []
        for receiver in receivers:
            if not receiver.done():
                receiver.set_result(None)

    # What the application calls.

    async def receive(self) -> Event:
        """Return the next event (ASGI)."""
        if not self._told_connect:
            self._told_connect = True
            return {"type": "websocket.connect"}
        while True:
            inbox = self._inbox
            if inbox is not None and not len(inbox) % _MESSAGES_AT_ONCE:
                await asyncio.sleep(0)
                inbox = self._inbox
            if inbox is not None:
                message = inbox.popleft()
                if not inbox:
                    self._inbox = None
                    self._inbox_size = 0
                    if self.connection.reading_paused:
                        self.connection.resume_reading()
                if isinstance(message, str):
                    return {"type": "websocket.receive", "text": message}
                return {"type": "websocket.receive", "bytes": message}
            if self.connection.end is not None:
                return self._disconnect(self.connection.end)
            receiver: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._receivers.append(receiver)
            await receiver

    def _disconnect(self, end: Close | Unknown) -> Event:
        if self._told_disconnect:
            raise RuntimeError("'websocket.disconnect' has been received: nothing comes after it")
        self._told_disconnect = True
        if self._options is None or not isinstance(end, Close) or (end.code, end.by) != (CloseCode.TOO_BIG, "server"):
            self.connection.finish()
        # If a message was too big, the channel closes when those before it are answered; a deadline bounds that.
        code, reason = (end.code, end.reason) if isinstance(end, Close) else (CloseCode.ABNORMAL, "")
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Event) -> None:  # noqa: C901, PLR0912 - a table: state by state, event by event
        """Take an event (ASGI).

        Raises:
            ClientDisconnected: The connection has ended.
            RuntimeError: The event does not belong here.
            ValueError: The event holds what must not be sent.
        """
        connection = self.connection
        kind = message["type"]
        if self._state is _OPEN and kind == "websocket.send":
            if connection.closed:
                raise ClientDisconnected
            payload = message.get("bytes")
            if payload is None:
                payload = message.get("text")
            if not isinstance(payload, (str, bytes)):
                payload = _as_bytes(payload)
            is_sent = not connection.senders_wait and connection.send_message(payload)
            if not is_sent and not await connection.send_in_turn(payload):
                raise ClientDisconnected
            return
        match self._state, kind:
            case _State.OPEN, "websocket.close":
                self._close(message)
            case _State.CLOSED, _:
                raise RuntimeError(f"Unexpected ASGI message '{kind}', after sending 'websocket.close'.")
            case _ if connection.closed:
                raise ClientDisconnected
            case _State.OPEN, _:
                raise RuntimeError(f"Expected ASGI message 'websocket.send' or 'websocket.close', but got '{kind}'.")
            case _State.CONNECTING, "websocket.accept":
                self._accept(message)
            case _State.CONNECTING, "websocket.close":
                connection.refuse(403)
                self._state = _State.CLOSED
            case _State.CONNECTING, "websocket.http.response.start":
                self._start_denial(message)
            case _State.CONNECTING, _:
                raise RuntimeError(
                    "Expected ASGI message 'websocket.accept', 'websocket.close' "
                    f"or 'websocket.http.response.start' but got '{kind}'."
                )
            case _State.DENYING, "websocket.http.response.body" if self._denial is not None:
                self._continue_denial(self._denial, message)
            case _:
                raise RuntimeError(f"Expected ASGI message 'websocket.http.response.body' but got '{kind}'.")

    def _close(self, message: Event) -> None:
        code = message.get("code")
        self.connection.close(CloseCode.NORMAL if code is None else code, message.get("reason") or "")
        self._state = _State.CLOSED

    def _accept(self, message: Event) -> None:
        subprotocol = message.get("subprotocol") or None
        headers: list[tuple[bytes, bytes]] = []
        for name, value in message.get("headers") or ():
            if bytes(name).lower() == b"sec-websocket-protocol":
                subprotocol = subprotocol or bytes(value).decode("latin-1")
            else:
                headers.append((name, value))
        options: Options = self._options or {}
        self.connection.accept(subprotocol, headers, **options)
        self._state = _State.OPEN

    def _start_denial(self, message: Event) -> None:
        headers = check_refusal(message["status"], message.get("headers") or ())
        self._denial = _Denial(message["status"], headers)
        self._state = _State.DENYING

    def _continue_denial(self, denial: _Denial, message: Event) -> None:
        denial.body += message.get("body", b"")
        if not message.get("more_body", False):
            self.connection.refuse(denial.status, denial.headers, bytes(denial.body))
            self._state = _State.CLOSED


TaskFreeStart: TypeAlias = Callable[[Scope, Connection], bool]
"""Takes a connection with its scope at once, and returns whether it did; if not, the app has to be called."""


def task_free_start(config: Config) -> TaskFreeStart:
    """Return what takes connections of the app of `config` without a task in which to call it.

    That is the app's own method `start_connection`, if nothing stands around the app but uvicorn's middleware for
    proxies. The app waits for nobody there, and an idle connection need not hold a task and all its callers.
    """
    app: object = cast(Any, config).loaded_app
    proxies = None
    if isinstance(app, ProxyHeadersMiddleware):
        proxies = copy.copy(app)
        proxies.app = _nothing
        app = app.app
    start: TaskFreeStart | None = getattr(cast(Any, app), "start_connection", None)

    def take(scope: Scope, connection: Connection) -> bool:
        if start is None or config.reset_contextvars:
            return False
        if proxies is not None and not _FORWARDED.isdisjoint(dict(scope["headers"])) and not _forward(proxies, scope):
            return False
        return start(scope, connection)

    return take


def _forward(proxies: ProxyHeadersMiddleware, scope: Scope) -> bool:
    try:
        proxies(cast(Any, scope), cast(Any, None), cast(Any, None)).send(None)
    except StopIteration:
        return True
    except Exception as exc:
        # The app is called next, raises it again, and the peer gets an answer.
        _logger.debug("X-Forwarded-* headers cannot be read", exc_info=exc)
    return False


def _as_bytes(payload: object) -> bytes:
    # Other servers take these as well. The error does not show the payload, so that no log gets it.
    if isinstance(payload, bytearray | memoryview):
        return bytes(cast(bytes, payload))
    kind = type(payload).__name__
    raise RuntimeError(f"'websocket.send' needs 'text' as str or 'bytes' as bytes, but got {kind}.")


async def _nothing(*_: object) -> None:
    pass


def _unwrapped(send: Send) -> Send:
    # Starlette wraps `send` for each route to know whether a response has begun; it looks at no message.
    while getattr(send, "__module__", None) == _STARLETTE_WRAPPER:
        send = inspect.getclosurevars(send).nonlocals["send"]
    return send
