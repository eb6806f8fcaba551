"""The limits of a connection: one frozen, validated `ConnectionConfig`, and its mirror for keywords."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Final, Literal, Protocol, TypeAlias, TypedDict, cast, runtime_checkable

from starlette.requests import HTTPConnection

from wsdeco.origins import parse_origin
from wsdeco.rates import byte_rate as checked_byte_rate
from wsdeco.rates import message_rate as checked_message_rate
from wsdeco.tokens import is_token

__all__ = [
    "DEFAULT_CONFIG",
    "Codec",
    "Compression",
    "ConnectionConfig",
    "Invalid",
    "Limits",
    "OnMessageTimeout",
    "OverRate",
    "Seconds",
    "SlowConsumer",
    "make_config",
]

Seconds: TypeAlias = float | timedelta
"""A duration: seconds as a number, or a `timedelta`."""

SlowConsumer: TypeAlias = Literal["close", "drop"]
"""What happens to a peer whose outbox is full: closed with 1013, or the message dropped and counted."""

OverRate: TypeAlias = Literal["slow", "close", "drop"]
"""What happens to a client over its rate: read more slowly, closed with 1008, or its message dropped and counted."""

OnMessageTimeout: TypeAlias = Literal["close", "continue"]
"""What follows a run of `on_message` that took too long: a close with 1011, or the next message."""

Invalid: TypeAlias = Literal["reply", "close"]
"""What follows an incoming message that is not of the annotated type: an error reply, or a close with 1007."""


@runtime_checkable
class Codec(Protocol):
    """The wire form of messages with types, if JSON and MessagePack are not it."""

    def encode(self, message: Any, /) -> str | bytes:
        """Return the frame of a message made of dicts, lists, str, numbers, bool and None."""
        ...

    def decode(self, frame: str | bytes, /) -> Any:
        """Return the message of a frame, made of the same; `ValueError` if it is none."""
        ...


@dataclass(frozen=True, slots=True)
class Compression:
    """How outgoing messages are compressed by permessage-deflate (RFC 7692).

    Attributes:
        level: That of zlib, from 1 (fastest) to 9 (smallest). zlib's own default, 6, takes 3 to 40 % longer than 5 for
            messages that are 0 to 3 % smaller.
        threshold: A message of fewer bytes is sent as it is.

    Raises:
        TypeError: A value is no `int`.
        ValueError: A value is out of its range.
    """

    level: int = 5
    threshold: int = 0

    def __post_init__(self) -> None:
        _within("level", self.level, 1, 9)
        _within("threshold", self.threshold, 0, sys.maxsize)


class Limits(TypedDict, total=False):
    """The keywords of `App.handler`: the fields of `ConnectionConfig`, each optional."""

    max_connections: int | None
    max_connections_total: int | None
    max_connections_per_client: int | None
    client: Callable[[HTTPConnection], object] | None
    max_connection_duration: Seconds | None
    idle_timeout: Seconds | None
    refuse_after_upgrade: bool
    connect_timeout: Seconds
    first_message_timeout: Seconds | None
    message_timeout: Seconds | None
    on_message_timeout: OnMessageTimeout
    close_timeout: Seconds
    send_timeout: Seconds | None
    disconnect_grace: Seconds | None
    max_message_size: int
    max_inbox: int
    message_rate: str | None
    burst: int | None
    byte_rate: str | None
    over_rate: OverRate
    max_outbox: int
    slow_consumer: SlowConsumer
    max_rooms: int | None
    allowed_origins: Literal["*"] | Iterable[str] | None
    subprotocols: Sequence[str]
    ping_interval: Seconds | None
    ping_timeout: Seconds | None
    compression: bool | Compression
    codec: Literal["json", "msgpack"] | Codec | None
    invalid: Invalid
    max_invalid: int
    parallel: int


@dataclass(frozen=True, slots=True, init=False)
class ConnectionConfig:
    """The limits of every connection of a route. Durations are seconds or `timedelta`, sizes are bytes.

    Attributes:
        max_connections: Connections at a time on the route, counted per process and from before the upgrade;
            one more is refused with HTTP 503. `None` sets no limit.
        max_connections_total: The same, counted over all processes that `App.run` or `wsdeco run` starts with
            `workers`. Other servers do not start the processes so that they could count together: there it is counted
            per process, and a warning says so.
        max_connections_per_client: Connections of one client at a time, over all those processes as well; one more is
            refused with HTTP 429. A client is an address as the server trusts it, so behind a proxy let it trust the
            proxy's header fields; of IPv6 it is the /64 network. `None` sets no limit.
        client: Says who a client is, in the place of the address: a function of the request (Starlette's
            `HTTPConnection`) that returns a `str` or an `int`, such as the id of a user or an API key. It may refuse
            the handshake with Starlette's `HTTPException`, as `__init__` may.
        max_connection_duration: Life of a connection from its upgrade; then it is closed with 1001 and a hook
            that still runs is cancelled. `None` sets no limit.
        idle_timeout: Time without an incoming frame after which the connection is closed with 1001; it never
            runs out while a hook runs. `None` sets no limit.
        refuse_after_upgrade: Whether who is refused (full, too many of one client, shutting down, an `HTTPException`)
            gets the upgrade and then a close with 4000 + the status, such as 4401, and the detail: scripts in browsers
            do not see the status of a refused handshake. A `WebSocketException` closes with its own code then. Foreign
            origins and hosts are refused before the upgrade all the same.
        connect_timeout: Time `on_connect` may take before the upgrade is accepted; then HTTP 503.
        first_message_timeout: Time from the upgrade to the first message; then the connection is closed with 1008.
            `None` sets no limit.
        message_timeout: Time of one run of `on_message`, with the replies of a stream; then the hook is cancelled, and
            `on_message_timeout` says what follows. Each run is a task of its own then. `None` sets no limit.
        on_message_timeout: `"close"` closes with 1011, `"continue"` goes on with the next message.
        close_timeout: Time for the closing handshake, and at shutdown for a hook that still runs and again
            for `on_disconnect`.
        send_timeout: Time one `send` may wait for a peer that does not read; then the peer is dropped as a
            slow consumer (1013). `None` waits for ever.
        disconnect_grace: Time for a hook that still runs, and for messages not yet handled, when the peer has
            gone. 0 cancels at once, `None` never.
        max_message_size: Largest incoming message; a larger one closes the connection with 1009.
        max_inbox: Size of the messages that wait for `on_message`; past it the peer is not read.
        message_rate: Messages of a connection, such as `"20/s"` or `"600/min"`; `None` sets no limit.
        burst: Messages that may come at once after a silence; by default as many as the number in `message_rate`.
        byte_rate: Payload of the messages of a connection, such as `"64KiB/s"` or `"1MiB/s"`; as much may come at once.
        over_rate: What happens to a client over one of the two: `"slow"` hands its messages to `on_message` at that
            rate, and past `max_inbox` the peer is not read; `"close"` closes with 1008, and gives up what waits for
            the hook; `"drop"` drops the message, and counts it as one that no hook took.
        max_outbox: Size of the messages that wait for the peer to read; past it `slow_consumer` applies.
        slow_consumer: `"close"` closes a peer whose outbox is full with 1013, `"drop"` drops the message and
            counts it in `Sink.dropped`.
        max_rooms: Rooms that the connection may be in at a time, as their names often come from peers. One more closes
            it with 1008. `None` sets no limit.
        allowed_origins: Origins whose pages may connect: `None` for the same origin only, `"*"` for every one,
            or a list such as `["https://example.com"]`; `["*"]` is every one too. `"null"` in the list lets in what has
            no origin of its own, such as files and sandboxed frames, of any site. A webview of VS Code is
            `vscode-webview://` with an identifier that is drawn anew, so it needs `"*"`, and a secret that `on_connect`
            checks. A client that sends no Origin is let in always.
        subprotocols: Subprotocols the route speaks, the preferred one first; the first that the client offers
            is agreed on.
        ping_interval: Time between keepalive pings; `None` sends none. On other servers than wsdeco's own, their
            setting counts, as it does for the next two.
        ping_timeout: Time without any byte after a ping, past which the peer counts as lost; `None` waits for ever.
        compression: Whether permessage-deflate (RFC 7692) is agreed on with clients that offer it; it takes 38
            to 51 KiB of memory per connection. `Compression(level=1, threshold=256)` chooses how hard zlib tries, and
            which messages are too short for it; `True` is its default. Other servers compress as they are set up.
        codec: How messages with types travel (`wsdeco[typed]`): `"json"` in text frames, `"msgpack"` in binary frames,
            or an object with `encode` and `decode`. `None` is JSON if the annotations of `on_message` ask for types.
        invalid: What follows a message that is not of the annotated type: `"reply"` tells the peer, `"close"` closes
            with 1007.
        max_invalid: Invalid messages in a row that are answered; one more closes with 1008.
        parallel: Messages of one connection that `on_message` handles at a time; 1 keeps their order.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of its range.
    """

    max_connections: int | None
    max_connections_total: int | None
    max_connections_per_client: int | None
    client: Callable[[HTTPConnection], object] | None
    max_connection_duration: float | None
    idle_timeout: float | None
    refuse_after_upgrade: bool
    connect_timeout: float
    first_message_timeout: float | None
    message_timeout: float | None
    on_message_timeout: OnMessageTimeout
    close_timeout: float
    send_timeout: float | None
    disconnect_grace: float | None
    max_message_size: int
    max_inbox: int
    message_rate: str | None
    burst: int | None
    byte_rate: str | None
    over_rate: OverRate
    max_outbox: int
    slow_consumer: SlowConsumer
    max_rooms: int | None
    allowed_origins: Literal["*"] | tuple[str, ...] | None
    subprotocols: tuple[str, ...]
    ping_interval: float | None
    ping_timeout: float | None
    compression: bool | Compression
    codec: Literal["json", "msgpack"] | Codec | None
    invalid: Invalid
    max_invalid: int
    parallel: int

    def __init__(
        self,
        *,
        max_connections: int | None = None,
        max_connections_total: int | None = None,
        max_connections_per_client: int | None = None,
        client: Callable[[HTTPConnection], object] | None = None,
        max_connection_duration: Seconds | None = None,
        idle_timeout: Seconds | None = None,
        refuse_after_upgrade: bool = False,
        connect_timeout: Seconds = 10.0,
        first_message_timeout: Seconds | None = None,
        message_timeout: Seconds | None = None,
        on_message_timeout: OnMessageTimeout = "close",
        close_timeout: Seconds = 10.0,
        send_timeout: Seconds | None = 60.0,
        disconnect_grace: Seconds | None = 30.0,
        max_message_size: int = 1024 * 1024,
        max_inbox: int = 64 * 1024,
        message_rate: str | None = None,
        burst: int | None = None,
        byte_rate: str | None = None,
        over_rate: OverRate = "slow",
        max_outbox: int = 1024 * 1024,
        slow_consumer: SlowConsumer = "close",
        max_rooms: int | None = 1000,
        allowed_origins: Literal["*"] | Iterable[str] | None = None,
        subprotocols: Sequence[str] = (),
        ping_interval: Seconds | None = 20.0,
        ping_timeout: Seconds | None = 20.0,
        compression: bool | Compression = False,
        codec: Literal["json", "msgpack"] | Codec | None = None,
        invalid: Invalid = "reply",
        max_invalid: int = 10,
        parallel: int = 1,
    ) -> None:
        checked: dict[str, object] = {
            "max_connections": _optional(_count, "max_connections", max_connections),
            "max_connections_total": _optional(_count, "max_connections_total", max_connections_total),
            "max_connections_per_client": _optional(_count, "max_connections_per_client", max_connections_per_client),
            "client": _optional(_client, "client", client),
            "max_connection_duration": _optional(_positive, "max_connection_duration", max_connection_duration),
            "idle_timeout": _optional(_positive, "idle_timeout", idle_timeout),
            "refuse_after_upgrade": _flag("refuse_after_upgrade", refuse_after_upgrade),
            "connect_timeout": _positive("connect_timeout", connect_timeout),
            "first_message_timeout": _optional(_positive, "first_message_timeout", first_message_timeout),
            "message_timeout": _optional(_positive, "message_timeout", message_timeout),
            "on_message_timeout": _choice("on_message_timeout", on_message_timeout, "close", "continue"),
            "close_timeout": _positive("close_timeout", close_timeout),
            "send_timeout": _optional(_positive, "send_timeout", send_timeout),
            "disconnect_grace": _optional(_seconds, "disconnect_grace", disconnect_grace),
            "max_message_size": _count("max_message_size", max_message_size),
            "max_inbox": _count("max_inbox", max_inbox),
            "message_rate": _optional(checked_message_rate, "message_rate", message_rate),
            "burst": _optional(_count, "burst", burst),
            "byte_rate": _optional(checked_byte_rate, "byte_rate", byte_rate),
            "over_rate": _choice("over_rate", over_rate, "slow", "close", "drop"),
            "max_outbox": _count("max_outbox", max_outbox),
            "slow_consumer": _choice("slow_consumer", slow_consumer, "close", "drop"),
            "max_rooms": _optional(_count, "max_rooms", max_rooms),
            "allowed_origins": _origins(allowed_origins),
            "subprotocols": _subprotocols(subprotocols),
            "ping_interval": _optional(_positive, "ping_interval", ping_interval),
            "ping_timeout": _optional(_positive, "ping_timeout", ping_timeout),
            "compression": _compression(compression),
            "codec": _optional(_codec, "codec", codec),
            "invalid": _choice("invalid", invalid, "reply", "close"),
            "max_invalid": _count("max_invalid", max_invalid),
            "parallel": _count("parallel", parallel),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def replace(self, **limits: Any) -> ConnectionConfig:
        """Return a copy with `limits` (fields by keyword) in place of the present values.

        Raises:
            TypeError: A keyword names no field, or a value has the wrong type.
            ValueError: A value is out of its range.
        """
        names = [field.name for field in fields(self)]
        for name in limits:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "the limits are " + ", ".join(names)
                raise TypeError(f"unknown limit {name!r}: {hint}")
        return ConnectionConfig(**{name: getattr(self, name) for name in names} | limits)

    def __str__(self) -> str:
        """Name the limits that differ from the defaults, as keywords."""
        changed = [
            f"{field.name}={_shown(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(DEFAULT_CONFIG, field.name)
        ]
        return " ".join(changed)


def make_config(config: ConnectionConfig | None, limits: Limits) -> ConnectionConfig:
    """Return `config` (or the defaults) with `limits` on top.

    Raises:
        TypeError: `config` is not a `ConnectionConfig`, a keyword names no field, or a value has the wrong type.
        ValueError: A value is out of its range.
    """
    if config is not None and not isinstance(config, ConnectionConfig):
        raise TypeError(f"config must be a ConnectionConfig, not {type(config).__name__}: write ConnectionConfig(...)")
    base = DEFAULT_CONFIG if config is None else config
    return base.replace(**limits) if limits else base


def _shown(value: object) -> str:
    return str(getattr(value, "__qualname__", None) or repr(value))


def _optional(check: Callable[[str, Any], Any], name: str, value: object) -> Any:
    return None if value is None else check(name, value)


def _seconds(name: str, value: object, least: str = "0 or more") -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be seconds (a number) or a timedelta, not {type(value).__name__}: {value!r}")
    if not (0 <= value <= sys.float_info.max):
        raise ValueError(f"{name} must be {least} seconds and finite, not {value!r}")
    return float(value)


def _positive(name: str, value: object) -> float:
    seconds = _seconds(name, value, "more than 0")
    if seconds == 0:
        raise ValueError(f"{name} must be more than 0 seconds and finite, not {value!r}")
    return seconds


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}: {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, not {value!r}")
    return value


def _choice(name: str, value: object, *choices: str) -> str:
    if isinstance(value, str) and value in choices:
        # An enumeration of `str` is stored as its text.
        return choices[choices.index(value)]
    fault = ValueError if isinstance(value, str) else TypeError
    raise fault(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}")


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}: {value!r}")
    return value


def _client(name: str, value: object) -> object:
    if not callable(value) or inspect.iscoroutinefunction(value):
        found = "an async function" if callable(value) else f"{type(value).__name__}: {value!r}"
        raise TypeError(
            f"{name} must be a plain function of the request, such as lambda request: request.cookies['user'], not "
            f"{found}"
        )
    return value


def _codec(name: str, value: object) -> object:
    if isinstance(value, str):
        return _choice(name, value, "json", "msgpack")
    if isinstance(value, Codec) and not isinstance(value, type):
        return value
    raise TypeError(f"{name} must be 'json', 'msgpack' or an object with encode and decode, not {value!r}")


def _texts(name: str, value: object, example: str) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of strings such as [{example!r}], not {value!r}")
    texts: list[str] = []
    for item in cast("Iterable[object]", value):
        if not isinstance(item, str):
            raise TypeError(f"{name} must hold strings such as {example!r}, not {type(item).__name__}: {item!r}")
        texts.append(item)
    return tuple(texts)


def _within(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} of compression must be an int, not {type(value).__name__}: {value!r}")
    if not least <= value <= most:
        expected = f"{least} or more" if most == sys.maxsize else f"{least} to {most}"
        raise ValueError(f"{name} of compression must be {expected}, not {value!r}")


def _compression(value: object) -> bool | Compression:
    if not isinstance(value, bool | Compression):
        raise TypeError(
            "compression must be True, False or a Compression such as Compression(level=1, threshold=256), not "
            f"{type(value).__name__}: {value!r}"
        )
    return value


def _origins(value: object) -> Literal["*"] | tuple[str, ...] | None:
    if value is None:
        return None
    if value == "*":
        return "*"
    origins = _texts("allowed_origins", value, "https://example.com")
    for origin in origins:
        if origin not in ("*", "null") and parse_origin(origin) is None:
            raise ValueError(
                f"allowed_origins holds {origin!r}, which is not an origin (RFC 6454): "
                "write scheme, host and port alone, such as 'https://example.com'"
            )
    # Starlette's CORS middleware takes the same.
    return "*" if "*" in origins else origins


def _subprotocols(value: object) -> tuple[str, ...]:
    if isinstance(value, AbstractSet):
        raise TypeError(f"subprotocols must be a list, as the preferred one comes first, not a set: {value!r}")
    names = _texts("subprotocols", value, "chat.v1")
    for name in names:
        if not is_token(name):
            raise ValueError(
                f"subprotocols holds {name!r}, which is not a token (RFC 9110, section 5.6.2): "
                "write a name such as 'chat.v1'"
            )
    if len(set(names)) != len(names):
        raise ValueError(f"subprotocols must name each one once, not {list(names)!r}")
    return names


DEFAULT_CONFIG: Final = ConnectionConfig()
"""The limits of a route that sets none."""
