"""What a handler sees of its connection: the sending side, and the facts of the handshake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, TypeVar

from starlette.datastructures import Headers, QueryParams
from starlette.requests import HTTPConnection

from wsdeco.channels.base import Channel, Owner
from wsdeco.channels.data import Address, HeaderItems, Outgoing, checked_data, checked_kind, exceeds, wire_size
from wsdeco.clock import Clock, seconds_until
from wsdeco.reasons import CloseCode, ConnectionClosed, DisconnectReason, check_close_code, cut_close_reason

__all__ = ["Sink", "channel_of"]

T = TypeVar("T")


class Sink:
    """The sending side of one connection, handed to `on_connect`.

    It may be used from any task of the connection's event loop, and kept in sets and dictionaries.
    """

    __slots__ = ("__weakref__", "_channel")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def addr(self) -> Address:
        """The peer's address (behind a trusted proxy, the client's)."""
        return self._channel.addr

    @property
    def request(self) -> HTTPConnection:
        """The handshake request: URL, headers, cookies, path and query parameters, state."""
        return self._channel.request

    @property
    def headers(self) -> Headers:
        """The headers of the handshake request."""
        return self._channel.request.headers

    @property
    def query_params(self) -> QueryParams:
        """The query parameters of the handshake request."""
        return self._channel.request.query_params

    @property
    def path_params(self) -> Mapping[str, Any]:
        """The path parameters of the route, converted."""
        return self._channel.request.path_params

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on; `None` before the upgrade, and if there is none."""
        return self._channel.subprotocol

    @property
    def clock(self) -> Clock:
        """What the limits of the connection read: the event loop, or the clock of a test, for timers of the handler.

        `sink.clock.call_at(sink.clock.time() + 5, callback)` follows a `ManualClock` as the limits do.
        """
        return self._channel.clock

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, so that `send` would raise `ConnectionClosed`."""
        return self._channel.closed

    @property
    def reason(self) -> DisconnectReason | None:
        """Why the connection ended; `None` while it lives."""
        return self._channel.reason

    @property
    def dropped(self) -> int:
        """Outgoing messages dropped because the peer reads too slowly (`slow_consumer="drop"`)."""
        return self._channel.dropped

    async def accept(self, subprotocol: str | None = None, headers: HeaderItems = ()) -> None:
        """Accept the upgrade now. Without this call it is accepted by the first `send`, or when `on_connect` returns.

        Args:
            subprotocol: One of those the client offers; by default the first of `ConnectionConfig.subprotocols`
                that it offers.
            headers: Further fields of the 101 response.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: The upgrade was accepted before, or the call comes from another event loop.
            TypeError: A header is not a pair of `str`.
            ValueError: The subprotocol was not offered, or a header cannot be sent.
        """
        self._check_loop()
        if self._channel.accepted:
            raise RuntimeError("the upgrade has been accepted already: call accept() in on_connect, before any send()")
        await self._channel.accept(subprotocol, headers)

    async def first_message(self, timeout: float = 10.0) -> str | bytes:  # noqa: ASYNC109 - the clock of the connection
        """Return the first message as it came, in `on_connect`: a token, say, since a browser can send no header.

        Accepts the upgrade, if that has not been done. What comes next goes to `on_message`, or is returned if this is
        called again.

        Args:
            timeout: Seconds to wait for it. Then the connection is closed with 1008, as by `first_message_timeout`,
                and `ConnectionClosed` need not be caught.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: `on_connect` is over, or the call comes from another event loop.
        """
        return await self._open_owner().first_message(timeout)

    def expire_at(self, when: float | datetime | None) -> None:
        """Close with 4401, "token expired", at a time. The next call moves that, when the peer has renewed its token.

        Args:
            when: Seconds since 1970, as in the member `exp` of a JSON Web Token, or a `datetime` with a time zone. A
                time in the past closes at once; `None` lets the connection live.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: The call comes from another event loop.
            TypeError: `when` is no time.
            ValueError: `when` has no time zone, or is not finite.
        """
        self._open_owner().expire_in(None if when is None else seconds_until(when))

    async def send(self, data: Outgoing) -> None:
        """Send one message; wait while the peer's buffer is full.

        Args:
            data: `str` travels as text, `bytes` as binary, and anything else by the codec of the handler, if
                `on_message` is annotated with types or a `codec` is given.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: The call comes from another event loop.
            TypeError: `data` has no form on the wire.
            ValueError: `data` is text with a lone surrogate.
        """
        self._check_loop()
        channel = self._channel
        await channel.send(checked_kind(data, channel))

    async def send_json(self, data: Any) -> None:
        """Send `data` as JSON in a text message, whatever the codec of the handler is.

        Of a handler with types it takes these as well.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: The call comes from another event loop.
            TypeError: JSON has no form for `data`.
            ValueError: `data` refers to itself, or holds NaN or an infinity.
        """
        owner = self._channel.owner
        if owner is not None and owner.conversation is not None:
            await self.send(owner.conversation.encode_json(data))
        else:
            await self.send(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")))

    async def ask(self, message: Outgoing, answer: type[T], *, timeout: float = 30.0) -> T:  # noqa: ASYNC109 - by its clock
        """Send a message with a number, and return the peer's answer, which is a message with the same number.

        The message gets a member `id`, such as `"$1"`; a message of the peer with this `id` is the answer. A hook may
        await it, though messages that come before the answer wait for the hook; up to twice `max_inbox` and
        `max_message_size` of them are kept.

        Args:
            message: What the codec of the handler writes as an object.
            answer: The type of the answer. One of another type is invalid, and the request waits on.
            timeout: Seconds to wait for it.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: The call comes from another event loop.
            TimeoutError: The answer has not come in time.
            TypeError: The handler has no types, or `message` is not written as an object.
        """
        conversation = self._open_owner().conversation
        if conversation is None:
            raise TypeError("ask() needs an on_message that is annotated with types, since answers come there")
        found: T = await conversation.ask(message, answer, timeout)
        return found

    def send_nowait(self, data: Outgoing) -> bool:
        """Put one message into the outbox without waiting for the peer, as a broadcast must.

        Messages wait there until the upgrade is accepted and the peer reads. If `max_outbox` would be
        exceeded, `slow_consumer` decides: the peer is closed with 1013, or the message dropped and counted.

        Any thread may call it. From outside of the event loop of the connection the message is handed over, and goes in
        soon.

        Returns:
            Whether the message went in or was handed over; `False` also when the connection or its event loop has
            ended.

        Raises:
            TypeError: `data` is neither text nor bytes.
            ValueError: `data` is larger than `max_outbox`, or text with a lone surrogate.
        """
        channel = self._channel
        data = checked_kind(data, channel)
        if exceeds(data, channel.config.max_outbox):
            raise ValueError(
                f"a message of {wire_size(data)} bytes never fits max_outbox={channel.config.max_outbox}: "
                "set a larger max_outbox, or use `await sink.send(...)`"
            )
        if self._is_at_home():
            return channel.send_nowait(data)
        return not channel.closed and self._hand_over(channel.send_nowait, checked_data(data))

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close the connection behind everything sent before; calling it again does nothing.

        Called before the upgrade, it accepts first, so that the peer receives the code; to refuse the handshake
        raise Starlette's `HTTPException` instead.

        Args:
            code: 1000 for a normal end, or a code of your own from 3000 to 4999 (RFC 6455, section 7.4).
            reason: Text for the peer, cut to 123 bytes of UTF-8.

        Raises:
            RuntimeError: The call comes from another event loop.
            TypeError: `code` is not an `int`, or `reason` not a `str`.
            ValueError: `code` is one that no endpoint may send.
        """
        code, reason = check_close_code(code), cut_close_reason(reason)
        self._check_loop()
        channel = self._channel
        if not channel.accepted and not channel.closed:
            try:
                await channel.accept()
            except ConnectionClosed:
                return
        if not channel.closed:
            channel.close_by_server(code, reason)
        await channel.flushed()

    def close_nowait(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Do what `close` does, without waiting for the peer, from synchronous code of any thread.

        From outside of the event loop of the connection it is handed over, and done soon.

        Args:
            code: As for `close`.
            reason: As for `close`.

        Raises:
            TypeError: As `close`.
            ValueError: As `close`.
        """
        code, reason = check_close_code(code), cut_close_reason(reason)
        if self._is_at_home():
            self._close_nowait(code, reason)
        else:
            self._hand_over(self._close_nowait, code, reason)

    def _close_nowait(self, code: int, reason: str) -> None:
        channel = self._channel
        if channel.closed:
            return
        if channel.accepted:
            channel.close_by_server(code, reason)
        else:
            # The upgrade has to come first, and an ASGI server takes it in an `await`.
            _ = self.create_task(self.close(code, reason))

    def create_task(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine in a task that belongs to the connection, beside its hooks.

        It is cancelled when the last `on_message` has ended, and `on_disconnect` waits for its end, within
        `disconnect_grace`, or `close_timeout` at shutdown. An exception that leaves it counts as one of a hook: it is
        logged, and closes the connection with 1011; unless somebody awaits the task, who gets it then.
        `WebSocketException` closes with its code. `idle_timeout` goes on meanwhile.

        Args:
            work: The coroutine.
            name: The name of the task, for the log; by default asyncio's.

        Returns:
            The task, to be awaited or cancelled.

        Raises:
            ConnectionClosed: The connection has ended.
            RuntimeError: The call comes from another event loop.
            TypeError: `work` is no coroutine.
        """
        if not asyncio.iscoroutine(work):
            raise TypeError(
                f"create_task() takes a coroutine, not {type(work).__name__}: call the async function, "
                "as in sink.create_task(self.work())"
            )
        try:
            owner = self._open_owner()
        except BaseException:
            # Otherwise Python warns that the coroutine was never awaited.
            work.close()
            raise
        return owner.create_task(work, name)

    def _open_owner(self) -> Owner:
        self._check_loop()
        channel = self._channel
        if channel.owner is None or channel.closed:
            raise channel.closed_error()
        return channel.owner

    def _is_at_home(self) -> bool:
        # Not `running_loop`: each message that is sent comes here, and a call costs.
        try:
            return asyncio.get_running_loop() is self._channel.loop
        except RuntimeError:
            return False

    def _hand_over(self, call: Callable[..., object], *arguments: object) -> bool:
        try:
            self._channel.loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # The event loop is closed.
            return False
        return True

    def _check_loop(self) -> None:
        if not self._is_at_home():
            raise RuntimeError(
                "this connection belongs to another event loop: use sink.send_nowait(...) or sink.close_nowait(...), "
                "or asyncio.run_coroutine_threadsafe(sink.send(...), loop) with the loop of its hooks"
            )

    def __repr__(self) -> str:
        return f"<Sink {self.addr} {'closed' if self.closed else 'open'}>"


channel_of: Final[Callable[[Sink], Channel]] = attrgetter("_channel")
"""Returns the channel of a sink, which is no part of its public interface."""
