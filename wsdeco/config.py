"""The limits of a connection: one frozen, validated `ConnectionConfig`, and its mirror for keywords."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from inspect import Parameter, Signature
from typing import (
    Any,
    ClassVar,
    Final,
    Literal,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    cast,
    get_type_hints,
    runtime_checkable,
)

from starlette.requests import HTTPConnection
from typing_extensions import Unpack

from wsdeco.rates import rate_of_bytes, rate_of_messages
from wsdeco.values import (
    Check,
    count,
    flag,
    function_of_request,
    nearest,
    one_of,
    origins,
    positive,
    seconds,
    subprotocol_names,
    within,
    wrong_type,
)

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

T = TypeVar("T")

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
        within("level of compression", self.level, 1, 9)
        within("threshold of compression", self.threshold, 0)


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


def _limit(default: T, check: Check) -> T:
    """Return a field of `ConnectionConfig`: its default, and what returns a value as it is kept, or raises."""
    return field(default=default, metadata={"check": check})


def _optional(default: T, check: Check) -> T:
    """Return a field that may be `None` as well."""
    return _limit(default, lambda name, value: None if value is None else check(name, value))


def _codec_or_name(name: str, value: object) -> object:
    if isinstance(value, str):
        return one_of(Literal["json", "msgpack"])(name, value)
    if isinstance(value, Codec) and not isinstance(value, type):
        return value
    raise TypeError(f"{name} must be 'json', 'msgpack' or an object with encode and decode, not {value!r}")


def _flag_or_settings(name: str, value: object) -> bool | Compression:
    if not isinstance(value, bool | Compression):
        raise wrong_type(name, "True, False or a Compression such as Compression(level=1, threshold=256)", value)
    return value


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

    max_connections: int | None = _optional(None, count)
    max_connections_total: int | None = _optional(None, count)
    max_connections_per_client: int | None = _optional(None, count)
    client: Callable[[HTTPConnection], object] | None = _optional(None, function_of_request)
    max_connection_duration: float | None = _optional(None, positive)
    idle_timeout: float | None = _optional(None, positive)
    refuse_after_upgrade: bool = _limit(False, flag)
    connect_timeout: float = _limit(10.0, positive)
    first_message_timeout: float | None = _optional(None, positive)
    message_timeout: float | None = _optional(None, positive)
    on_message_timeout: OnMessageTimeout = _limit("close", one_of(OnMessageTimeout))
    close_timeout: float = _limit(10.0, positive)
    send_timeout: float | None = _optional(60.0, positive)
    disconnect_grace: float | None = _optional(30.0, seconds)
    max_message_size: int = _limit(1024 * 1024, count)
    max_inbox: int = _limit(64 * 1024, count)
    message_rate: str | None = _optional(None, rate_of_messages)
    burst: int | None = _optional(None, count)
    byte_rate: str | None = _optional(None, rate_of_bytes)
    over_rate: OverRate = _limit("slow", one_of(OverRate))
    max_outbox: int = _limit(1024 * 1024, count)
    slow_consumer: SlowConsumer = _limit("close", one_of(SlowConsumer))
    max_rooms: int | None = _optional(1000, count)
    allowed_origins: Literal["*"] | tuple[str, ...] | None = _optional(None, origins)
    subprotocols: tuple[str, ...] = _limit((), subprotocol_names)
    ping_interval: float | None = _optional(20.0, positive)
    ping_timeout: float | None = _optional(20.0, positive)
    compression: bool | Compression = _limit(False, _flag_or_settings)
    codec: Literal["json", "msgpack"] | Codec | None = _optional(None, _codec_or_name)
    invalid: Invalid = _limit("reply", one_of(Invalid))
    max_invalid: int = _limit(10, count)
    parallel: int = _limit(1, count)

    __signature__: ClassVar[Signature]

    def __init__(self, **limits: Unpack[Limits]) -> None:
        given = cast("dict[str, object]", limits)
        known = {each.name: each for each in fields(self)}
        for name in given:
            if name not in known:
                meant = nearest(name, known)
                hint = f"did you mean {meant!r}?" if meant else "the limits are " + ", ".join(known)
                raise TypeError(f"unknown limit {name!r}: {hint}")
        for name, each in known.items():
            kept = each.metadata["check"](name, given[name]) if name in given else each.default
            object.__setattr__(self, name, kept)

    def replace(self, **limits: Unpack[Limits]) -> ConnectionConfig:
        """Return a copy with `limits` (fields by keyword) in place of the present values.

        Raises:
            TypeError: A keyword names no field, or a value has the wrong type.
            ValueError: A value is out of its range.
        """
        changed = {each.name: getattr(self, each.name) for each in _changed(self)}
        return ConnectionConfig(**cast("Limits", changed | limits))

    def __str__(self) -> str:
        """Name the limits that differ from the defaults, as keywords."""
        return " ".join(f"{each.name}={_shown(getattr(self, each.name))}" for each in _changed(self))


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


def _changed(config: ConnectionConfig) -> list[Field[Any]]:
    return [each for each in fields(config) if getattr(config, each.name) != each.default]


def _shown(value: object) -> str:
    return str(getattr(value, "__qualname__", None) or repr(value))


# For `help` and notebooks, which see no further than `**limits`.
ConnectionConfig.__signature__ = Signature(
    [
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=hint)
        for each, hint in zip(fields(ConnectionConfig), get_type_hints(Limits).values(), strict=True)
    ]
)

DEFAULT_CONFIG: Final = ConnectionConfig()
"""The limits of a route that sets none."""
