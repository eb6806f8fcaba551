"""`ConnectionConfig` takes what is meant and names what is wrong."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, Literal, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from wsdeco.config import (
    DEFAULT_CONFIG,
    Codec,
    Compression,
    ConnectionConfig,
    Invalid,
    Limits,
    OnMessageTimeout,
    OverRate,
    Seconds,
    SlowConsumer,
    make_config,
)
from wsdeco.rates import Pace, pace_of

FIELDS: Final = [field.name for field in dataclasses.fields(ConnectionConfig)]
COUNTS: Final = [
    "max_connections",
    "max_connections_total",
    "max_connections_per_client",
    "max_message_size",
    "max_inbox",
    "burst",
    "max_outbox",
    "max_rooms",
    "max_invalid",
    "parallel",
]
POSITIVE_SECONDS: Final = [
    "max_connection_duration",
    "idle_timeout",
    "connect_timeout",
    "first_message_timeout",
    "message_timeout",
    "close_timeout",
    "send_timeout",
    "ping_interval",
    "ping_timeout",
]
SECONDS: Final = [*POSITIVE_SECONDS, "disconnect_grace"]
LISTS: Final = [("allowed_origins", "https://example.com"), ("subprotocols", "chat.v1")]
OPTIONAL: Final = [
    "max_connections",
    "max_connections_total",
    "max_connections_per_client",
    "max_connection_duration",
    "idle_timeout",
    "first_message_timeout",
    "message_timeout",
    "send_timeout",
    "disconnect_grace",
    "max_rooms",
    "client",
    "message_rate",
    "burst",
    "byte_rate",
    "allowed_origins",
    "ping_interval",
    "ping_timeout",
    "codec",
]

STORED_AS: Final[dict[object, object]] = {
    bool | Compression: bool | Compression,
    bool: bool,
    int: int,
    int | None: int | None,
    Seconds: float,
    Seconds | None: float | None,
    SlowConsumer: SlowConsumer,
    Invalid: Invalid,
    OverRate: OverRate,
    OnMessageTimeout: OnMessageTimeout,
    str | None: str | None,
    Literal["json", "msgpack"] | Codec | None: Literal["json", "msgpack"] | Codec | None,
    Callable[[HTTPConnection], object] | None: Callable[[HTTPConnection], object] | None,
    Literal["*"] | Iterable[str] | None: Literal["*"] | tuple[str, ...] | None,
    Sequence[str]: tuple[str, ...],
}


class Choice(StrEnum):
    EVERY = "*"
    DROP = "drop"


def configure(name: str, value: object) -> ConnectionConfig:
    limits: dict[str, Any] = {name: value}
    return ConnectionConfig(**limits)


def fault(error: type[Exception], name: str, value: object) -> str:
    with pytest.raises(error) as caught:
        configure(name, value)
    assert caught.type is error
    return str(caught.value)


def test_defaults() -> None:
    assert ConnectionConfig() == DEFAULT_CONFIG
    assert dataclasses.asdict(DEFAULT_CONFIG) == {
        "max_connections": None,
        "max_connections_total": None,
        "max_connections_per_client": None,
        "client": None,
        "max_connection_duration": None,
        "idle_timeout": None,
        "connect_timeout": 10.0,
        "refuse_after_upgrade": False,
        "first_message_timeout": None,
        "message_timeout": None,
        "on_message_timeout": "close",
        "close_timeout": 10.0,
        "send_timeout": 60.0,
        "disconnect_grace": 30.0,
        "max_message_size": 1024 * 1024,
        "max_inbox": 64 * 1024,
        "message_rate": None,
        "burst": None,
        "byte_rate": None,
        "over_rate": "slow",
        "max_outbox": 1024 * 1024,
        "slow_consumer": "close",
        "max_rooms": 1000,
        "allowed_origins": None,
        "subprotocols": (),
        "ping_interval": 20.0,
        "ping_timeout": 20.0,
        "compression": False,
        "codec": None,
        "invalid": "reply",
        "max_invalid": 10,
        "parallel": 1,
    }


def test_defaults_are_as_a_check_would_keep_them() -> None:
    for name in FIELDS:
        default = getattr(DEFAULT_CONFIG, name)
        kept = getattr(configure(name, default), name)
        assert (kept, type(kept)) == (default, type(default))


def test_keywords_of_the_decorator_mirror_the_fields() -> None:
    keywords = get_type_hints(Limits)
    assert list(keywords) == FIELDS
    assert Limits.__required_keys__ == frozenset()

    stored = get_type_hints(ConnectionConfig)
    assert {name: stored[name] for name in FIELDS} == {name: STORED_AS[keywords[name]] for name in FIELDS}


def test_every_parameter_is_a_keyword_with_a_default_and_documented() -> None:
    parameters = list(inspect.signature(ConnectionConfig).parameters.values())
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert {parameter.name: parameter.annotation for parameter in parameters} == get_type_hints(Limits)
    assert [parameter.default for parameter in parameters] == [getattr(DEFAULT_CONFIG, name) for name in FIELDS]
    documentation = inspect.getdoc(ConnectionConfig) or ""
    assert [name for name in FIELDS if f"    {name}: " not in documentation] == []


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1, 1.0),
        (0.25, 0.25),
        (3600, 3600.0),
        (timedelta(minutes=1, milliseconds=500), 60.5),
        (timedelta.max, timedelta.max.total_seconds()),
        (sys.float_info.max, sys.float_info.max),
    ],
)
def test_durations_become_seconds(name: str, value: Seconds, seconds: float) -> None:
    stored = getattr(configure(name, value), name)
    assert stored == seconds
    assert type(stored) is float


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", ["60", b"60", True, False, [1], 1j, object])
def test_a_duration_of_the_wrong_type(name: str, value: object) -> None:
    assert fault(TypeError, name, value) == (
        f"{name} must be seconds (a number) or a timedelta, not {type(value).__name__}: {value!r}"
    )


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-1, "-1"),
        (-0.001, "-0.001"),
        (timedelta(seconds=-2), "-2.0"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (10**309, repr(10**309)),
    ],
)
def test_a_duration_out_of_range(name: str, value: Seconds, shown: str) -> None:
    least = "0 or more" if name == "disconnect_grace" else "more than 0"
    assert fault(ValueError, name, value) == f"{name} must be {least} seconds and finite, not {shown}"


@pytest.mark.parametrize("name", POSITIVE_SECONDS)
@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (0.0, "0.0"), (-0.0, "-0.0"), (timedelta(), "0.0")])
def test_a_duration_of_nothing(name: str, value: Seconds, shown: str) -> None:
    assert fault(ValueError, name, value) == f"{name} must be more than 0 seconds and finite, not {shown}"


@pytest.mark.parametrize("value", [0, 0.0, timedelta()])
def test_a_grace_of_nothing_is_allowed(value: Seconds) -> None:
    assert ConnectionConfig(disconnect_grace=value).disconnect_grace == 0


@given(st.integers(1) | st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_any_finite_duration_is_a_float_or_refused(value: float) -> None:
    if value > sys.float_info.max:
        assert "finite" in fault(ValueError, "idle_timeout", value)
    else:
        assert ConnectionConfig(idle_timeout=value).idle_timeout == float(value)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [1, 1000, 2**40])
def test_counts(name: str, value: int) -> None:
    assert getattr(configure(name, value), name) == value


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", ["1", 1.0, True, False, timedelta(1), [1]])
def test_a_count_of_the_wrong_type(name: str, value: object) -> None:
    assert fault(TypeError, name, value) == f"{name} must be an int, not {type(value).__name__}: {value!r}"


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_out_of_range(name: str, value: int) -> None:
    assert fault(ValueError, name, value) == f"{name} must be 1 or more, not {value}"


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_sets_no_limit(name: str) -> None:
    assert getattr(configure(name, None), name) is None


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in OPTIONAL])
def test_none_where_a_limit_is_needed(name: str) -> None:
    message = fault(TypeError, name, None)
    assert message.startswith(f"{name} must be ")
    assert message.endswith("None")


@pytest.mark.parametrize(
    ("name", "value", "amount", "seconds"),
    [
        ("message_rate", "20/s", 20, 1),
        ("message_rate", "600/min", 600, 60),
        ("message_rate", " 1.5 / hour ", 1.5, 3600),
        ("byte_rate", "1MiB/s", 1024**2, 1),
        ("byte_rate", "64 KiB/s", 65536, 1),
        ("byte_rate", "0.5kB/minute", 500, 60),
    ],
)
def test_rates(name: str, value: str, amount: float, seconds: float) -> None:
    assert getattr(configure(name, value), name) == value
    assert pace_of(value) == Pace(seconds / amount, seconds)
    assert pace_of(value, 4) == Pace(seconds / amount, 4 * seconds / amount)


@pytest.mark.parametrize("name", ["message_rate", "byte_rate"])
@pytest.mark.parametrize("value", ["20", "20/year", "-1/s", "0/s", "0.5/s", "s", "", "1XB/s", "\n", "1e9/s"])
def test_what_is_no_rate(name: str, value: str) -> None:
    examples = {"message_rate": '"20/s" or "600/min"', "byte_rate": '"64KiB/s" or "1MiB/s"'}[name]
    advice = f"{name} must be a rate of 1 or more per s, min or h, such as {examples}, not {value!r}"
    assert fault(ValueError, name, value) == advice
    assert fault(TypeError, name, 20) == f"{name} must be a rate such as {examples}, not int: 20"


def test_rates_of_messages_have_no_unit_and_those_of_bytes_have_one() -> None:
    assert "such as" in fault(ValueError, "message_rate", "1MiB/s")
    assert "such as" in fault(ValueError, "byte_rate", "100/s")


async def find_user(request: HTTPConnection) -> str:
    return request.cookies["user"]


def user_of(request: HTTPConnection) -> str:
    return request.cookies["user"]


def test_who_a_client_is() -> None:
    config = ConnectionConfig(client=user_of)
    assert config.client is user_of
    assert str(config) == "client=user_of"
    advice = "client must be a plain function of the request, such as lambda request: request.cookies['user'], not "
    assert fault(TypeError, "client", "user") == f"{advice}str: 'user'"
    assert fault(TypeError, "client", find_user) == f"{advice}an async function"


@pytest.mark.parametrize("value", ["close", "drop"])
def test_slow_consumer(value: SlowConsumer) -> None:
    assert ConnectionConfig(slow_consumer=value).slow_consumer == value


@pytest.mark.parametrize(
    ("error", "value"),
    [(ValueError, "abort"), (ValueError, "Close"), (ValueError, ""), (TypeError, 1), (TypeError, [])],
)
def test_slow_consumer_out_of_range(error: type[Exception], value: object) -> None:
    assert fault(error, "slow_consumer", value) == f"slow_consumer must be 'close' or 'drop', not {value!r}"


def test_string_enumerations_are_stored_as_their_text() -> None:
    config = ConnectionConfig(slow_consumer=Choice.DROP, allowed_origins=Choice.EVERY)  # type: ignore[arg-type]
    assert repr((config.slow_consumer, config.allowed_origins)) == "('drop', '*')"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        ("*", "*"),
        ([], ()),
        (["https://example.com", "null"], ("https://example.com", "null")),
        (["*"], "*"),
        (["https://example.com", "*"], "*"),
        (["vscode-webview://0b3c"], ("vscode-webview://0b3c",)),
        (("HTTPS://Example.com:8443",), ("HTTPS://Example.com:8443",)),
        ({"https://example.com"}, ("https://example.com",)),
        (iter(["chrome-extension://abc"]), ("chrome-extension://abc",)),
    ],
)
def test_allowed_origins(value: Literal["*"] | Iterable[str] | None, stored: object) -> None:
    assert ConnectionConfig(allowed_origins=value).allowed_origins == stored


@pytest.mark.parametrize(
    "origin",
    ["example.com", "https://example.com/", "https://*.example.com", "https://user@example.com", "NULL", "", "a\nb"],
)
def test_allowed_origins_that_are_no_origins(origin: str) -> None:
    assert fault(ValueError, "allowed_origins", ["https://example.org", origin]) == (
        f"allowed_origins holds {origin!r}, which is not an origin (RFC 6454): "
        "write scheme, host and port alone, such as 'https://example.com'"
    )


@pytest.mark.parametrize(("name", "example"), LISTS)
@pytest.mark.parametrize("value", ["https://example.com", "chat", b"chat", 7, True])
def test_a_list_of_the_wrong_type(name: str, example: str, value: object) -> None:
    assert fault(TypeError, name, value) == f"{name} must be a list of strings such as ['{example}'], not {value!r}"


@pytest.mark.parametrize(("name", "example"), LISTS)
@pytest.mark.parametrize("item", [b"chat", 7, None])
def test_a_list_of_other_things(name: str, example: str, item: object) -> None:
    assert fault(TypeError, name, [example, item]) == (
        f"{name} must hold strings such as '{example}', not {type(item).__name__}: {item!r}"
    )


@pytest.mark.parametrize("value", [[], ["chat.v1"], ("v2.chat", "v1.chat"), ["!#$%&'*+-.^_`|~aZ09"]])
def test_subprotocols(value: Sequence[str]) -> None:
    assert ConnectionConfig(subprotocols=value).subprotocols == tuple(value)


@pytest.mark.parametrize("name", ["", "chat v1", "chat,v1", "chat;v=1", "chat/1", "chät", "chat\r\n", "a\x00b", "²"])
def test_subprotocols_that_are_no_tokens(name: str) -> None:
    assert fault(ValueError, "subprotocols", ["chat.v1", name]) == (
        f"subprotocols holds {name!r}, which is not a token (RFC 9110, section 5.6.2): write a name such as 'chat.v1'"
    )


def test_subprotocols_named_twice() -> None:
    assert fault(ValueError, "subprotocols", ["chat", "json", "chat"]) == (
        "subprotocols must name each one once, not ['chat', 'json', 'chat']"
    )


@pytest.mark.parametrize("value", [{"chat"}, frozenset({"chat"})])
def test_subprotocols_without_an_order(value: object) -> None:
    assert fault(TypeError, "subprotocols", value) == (
        f"subprotocols must be a list, as the preferred one comes first, not a set: {value!r}"
    )


def test_replace_returns_a_changed_copy() -> None:
    config = ConnectionConfig(max_connections=5, idle_timeout=60)
    changed = config.replace(idle_timeout=timedelta(minutes=2), subprotocols=["chat"])
    assert changed == ConnectionConfig(max_connections=5, idle_timeout=120, subprotocols=["chat"])
    assert config == ConnectionConfig(max_connections=5, idle_timeout=60)
    assert config.replace() == config
    assert config.replace(idle_timeout=None) == ConnectionConfig(max_connections=5)
    assert dataclasses.replace(config, idle_timeout=None) == ConnectionConfig(max_connections=5)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("idle_timout", "idle_timeout"),
        ("max_connection", "max_connections"),
        ("maxInbox", "max_inbox"),
        ("origins", "allowed_origins"),
        ("subprotocol", "subprotocols"),
    ],
)
def test_a_misspelt_limit_is_answered_with_a_suggestion(name: str, meant: str) -> None:
    limits: dict[str, Any] = {name: 1}
    for make in (ConnectionConfig, ConnectionConfig().replace):
        with pytest.raises(TypeError) as caught:
            make(**limits)
        assert str(caught.value) == f"unknown limit {name!r}: did you mean {meant!r}?"


def test_an_unknown_limit_is_answered_with_the_known_ones() -> None:
    with pytest.raises(TypeError) as caught:
        ConnectionConfig().replace(zzz=1)  # type: ignore[call-arg]
    assert str(caught.value) == "unknown limit 'zzz': the limits are " + ", ".join(FIELDS)


def test_replace_checks_the_values() -> None:
    with pytest.raises(ValueError, match=r"^max_inbox must be 1 or more, not 0$"):
        ConnectionConfig().replace(max_inbox=0)


@pytest.mark.parametrize("name", FIELDS)
def test_a_config_is_frozen(name: str) -> None:
    config = ConnectionConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(config, name)
    assert config == DEFAULT_CONFIG


def test_a_config_has_no_room_for_a_misspelt_attribute() -> None:
    assert not hasattr(ConnectionConfig(), "__dict__")


def test_equal_configs_have_equal_hashes() -> None:
    config = ConnectionConfig(idle_timeout=60, allowed_origins=["https://example.com"], subprotocols=["chat"])
    same = ConnectionConfig(
        idle_timeout=timedelta(minutes=1), allowed_origins=("https://example.com",), subprotocols=("chat",)
    )
    assert config == same
    assert hash(config) == hash(same)
    assert {config: "found"}[same] == "found"
    assert config != DEFAULT_CONFIG


def test_a_config_can_be_copied_and_pickled() -> None:
    config = ConnectionConfig(max_connections=3, allowed_origins="*", subprotocols=["chat"])
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - pickled on this very line


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (ConnectionConfig(), ""),
        (ConnectionConfig(connect_timeout=10, max_inbox=65536), ""),
        (ConnectionConfig(max_connections=1000, idle_timeout=60), "max_connections=1000 idle_timeout=60.0"),
        (ConnectionConfig(send_timeout=None, slow_consumer="drop"), "send_timeout=None slow_consumer='drop'"),
        (
            ConnectionConfig(allowed_origins=["https://example.com"], subprotocols=["a", "b"]),
            "allowed_origins=('https://example.com',) subprotocols=('a', 'b')",
        ),
    ],
)
def test_str_names_the_limits_that_differ_from_the_defaults(config: ConnectionConfig, text: str) -> None:
    assert str(config) == text


def test_make_config_without_anything_is_the_default() -> None:
    assert make_config(None, {}) is DEFAULT_CONFIG


def test_make_config_takes_a_config_as_it_is() -> None:
    config = ConnectionConfig(max_connections=1)
    assert make_config(config, {}) is config


def test_make_config_puts_the_keywords_on_top() -> None:
    config = ConnectionConfig(max_connections=1, idle_timeout=5)
    assert make_config(config, {"idle_timeout": 7}) == ConnectionConfig(max_connections=1, idle_timeout=7)
    assert make_config(config, {"idle_timeout": None}) == ConnectionConfig(max_connections=1)
    assert make_config(None, {"slow_consumer": "drop"}) == ConnectionConfig(slow_consumer="drop")


@pytest.mark.parametrize("config", [{"max_connections": 1}, 5, "", ConnectionConfig])
def test_make_config_refuses_what_is_no_config(config: Any) -> None:
    with pytest.raises(TypeError) as caught:
        make_config(config, {})
    assert str(caught.value) == (
        f"config must be a ConnectionConfig, not {type(config).__name__}: write ConnectionConfig(...)"
    )


def test_make_config_answers_a_misspelt_keyword_with_a_suggestion() -> None:
    limits: Any = {"idle_timout": 5}
    with pytest.raises(TypeError, match=r"^unknown limit 'idle_timout': did you mean 'idle_timeout'\?$"):
        make_config(None, limits)


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_compression_is_a_flag_or_settings(value: object) -> None:
    with pytest.raises(TypeError, match=r"^compression must be True, False or a Compression such as .*, not "):
        configure("compression", value)
    assert ConnectionConfig(compression=True).compression
    settings = Compression(level=9, threshold=100)
    assert ConnectionConfig(compression=settings).compression == settings
    assert str(ConnectionConfig(compression=settings)) == "compression=Compression(level=9, threshold=100)"


@pytest.mark.parametrize(
    ("settings", "fault", "message"),
    [
        ({"level": 0}, ValueError, "level of compression must be 1 to 9, not 0"),
        ({"level": 10}, ValueError, "level of compression must be 1 to 9, not 10"),
        ({"level": "best"}, TypeError, "level of compression must be an int, not str: 'best'"),
        ({"threshold": -1}, ValueError, "threshold of compression must be 0 or more, not -1"),
        ({"threshold": True}, TypeError, "threshold of compression must be an int, not bool: True"),
    ],
)
def test_settings_of_compression_out_of_their_range(
    settings: dict[str, Any], fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault) as caught:
        Compression(**settings)
    assert str(caught.value) == message


class Reverse:
    """A codec."""

    def encode(self, message: Any) -> str | bytes:
        return str(message)[::-1]

    def decode(self, frame: str | bytes) -> Any:
        return frame[::-1]


def test_codecs() -> None:
    own = Reverse()
    assert [ConnectionConfig(codec=codec).codec for codec in ("json", "msgpack", own)] == ["json", "msgpack", own]
    with pytest.raises(ValueError, match=r"^codec must be 'json' or 'msgpack', not 'yaml'"):
        configure("codec", "yaml")
    for wrong in (1, Reverse, object()):
        with pytest.raises(TypeError, match=r"^codec must be 'json', 'msgpack' or an object with encode and decode"):
            configure("codec", wrong)


@pytest.mark.parametrize("value", ["reply", "close"])
def test_invalid(value: Invalid) -> None:
    assert ConnectionConfig(invalid=value).invalid == value
