"""Reasons carry the evidence, close codes are those an endpoint may send, and exceptions have one base."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, Final, assert_never, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsdeco.config import ConnectionConfig
from wsdeco.reasons import (
    MAX_CLOSE_REASON_BYTES,
    Close,
    CloseCode,
    ConnectionClosed,
    DisconnectReason,
    Error,
    HandlerError,
    HandlerWarning,
    LimitName,
    RouteError,
    ServerError,
    Timeout,
    Unknown,
    WsdecoError,
    check_close_code,
    cut_close_reason,
    printable,
)

REASONS: Final[list[DisconnectReason]] = [
    Close(1000, "bye"),
    Close(1011, by="server"),
    Error("on_message raised ValueError", ValueError("x")),
    Timeout("idle_timeout of 60 s ran out", "idle_timeout"),
    Unknown(),
]


def describe(reason: DisconnectReason) -> str:
    match reason:
        case Close(code, text, "client"):
            return f"client {code} {text}"
        case Close(code, _, by):
            return f"{by} {code}"
        case Error(message, exception):
            return f"{message}: {exception!r}"
        case Timeout(message, limit):
            return f"{message} [{limit}]"
        case Unknown():
            return "lost"
        case _:
            assert_never(reason)


def test_match_tells_every_reason_apart() -> None:
    assert [describe(reason) for reason in REASONS] == [
        "client 1000 bye",
        "server 1011",
        "on_message raised ValueError: ValueError('x')",
        "idle_timeout of 60 s ran out [idle_timeout]",
        "lost",
    ]


def test_the_set_of_reasons_is_closed() -> None:
    assert set(get_args(DisconnectReason)) == {Close, Error, Timeout, Unknown}


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Close(1000), "closed by the client with 1000"),
        (Close(4001, "bye", "client"), "closed by the client with 4001 (bye)"),
        (Close(1012, "restart", by="server"), "closed by the server with 1012 (restart)"),
        (Close(1000, "a\nb\x1b[31m\x00"), r"closed by the client with 1000 (a\nb\x1b[31m\x00)"),
        (Error("on_message raised KeyError"), "error: on_message raised KeyError"),
        (Error("a\r\nforged line\x1b[2J"), r"error: a\r\nforged line\x1b[2J"),
        (Timeout("idle_timeout of 60 s ran out", "idle_timeout"), "timeout: idle_timeout of 60 s ran out"),
        (Timeout("a\nb", "idle_timeout"), r"timeout: a\nb"),
        (Unknown(), "connection lost without a close frame"),
    ],
)
def test_a_reason_reads_as_one_line(reason: DisconnectReason, text: str) -> None:
    assert str(reason) == text


@pytest.mark.parametrize("reason", REASONS)
def test_reasons_are_frozen_hashable_and_equal_by_value(reason: DisconnectReason) -> None:
    same = copy.copy(reason)
    assert same is not reason
    assert same == reason
    assert hash(same) == hash(reason)
    assert not hasattr(reason, "__dict__")
    for field in dataclasses.fields(reason):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(reason, field.name, None)


def test_errors_are_equal_whatever_exception_they_carry() -> None:
    assert Error("failed", ValueError("x")) == Error("failed", ValueError("x"))
    assert Error("failed") != Error("failed otherwise")


def test_a_close_is_the_clients_unless_told_otherwise() -> None:
    assert Close(1000) == Close(1000, "", "client")
    assert Close(1000) != Close(1000, by="server")


def test_limit_names_are_fields_of_the_config() -> None:
    fields = {field.name for field in dataclasses.fields(ConnectionConfig)}
    assert set(get_args(LimitName)) <= fields


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain text, ünïcode 😀 'quoted' \\", "plain text, ünïcode 😀 'quoted' \\"),
        ("tab\there", r"tab\there"),
        ("\r\n\x00\x7f", r"\r\n\x00\x7f"),
        ("\x9b2J", r"\x9b2J"),
        ("\u2028\u202e\ufeff", r"\u2028\u202e\ufeff"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_text_stays_and_the_rest_becomes_printable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert (shown == text) is text.isprintable()


def test_close_codes_an_endpoint_may_send() -> None:
    assigned = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}
    for code in range(5001):
        if code in assigned or 3000 <= code <= 4999:
            assert check_close_code(code) == code
        else:
            with pytest.raises(ValueError, match=f"^close code {code} may not be sent .* use 1000 for a normal end"):
                check_close_code(code)


@pytest.mark.parametrize("code", [-1000, -1, 65535, 65536 + 1000, 2**64])
def test_close_codes_out_of_range(code: int) -> None:
    with pytest.raises(ValueError, match=f"^close code {code} may not be sent .* 3000 to 4999$"):
        check_close_code(code)


@pytest.mark.parametrize("code", ["1000", 1000.0, None, True, b"\x03\xe8"])
def test_close_codes_of_the_wrong_type(code: Any) -> None:
    with pytest.raises(TypeError) as caught:
        check_close_code(code)
    assert str(caught.value) == f"close code must be an int, not {type(code).__name__}: write close(1000)"


def test_named_close_codes_can_be_sent_but_for_the_two_that_are_only_observed() -> None:
    observed = {CloseCode.NO_STATUS, CloseCode.ABNORMAL}
    named = {value for name, value in vars(CloseCode).items() if name.isupper()}
    assert observed == {1005, 1006}
    for code in named - observed:
        assert check_close_code(code) == code


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("", ""),
        ("bye", "bye"),
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("é" * 61 + "x", "é" * 61 + "x"),
        ("é" * 62, "é" * 61),
        ("x" + "é" * 61, "x" + "é" * 61),
        ("€" * 41, "€" * 41),
        ("€" * 42, "€" * 41),
        ("x" + "€" * 41, "x" + "€" * 40),
        ("xx" + "€" * 41, "xx" + "€" * 40),
        ("😀" * 31, "😀" * 30),
        ("xxx" + "😀" * 31, "xxx" + "😀" * 30),
        ("\0" * 200, "\0" * 123),
    ],
)
def test_a_close_reason_is_cut_between_characters(reason: str, kept: str) -> None:
    assert cut_close_reason(reason) == kept


characters = st.characters(exclude_categories=["Cs"])


@given(st.text(characters), st.integers(0, 130), characters)
@example("", 122, "é")
@example("", 121, "€")
@example("", 120, "😀")
def test_the_cut_keeps_as_much_as_fits(start: str, padding: int, last: str) -> None:
    reason = start + "x" * padding + last * 3
    kept = cut_close_reason(reason)
    assert reason.startswith(kept)
    assert len(kept.encode()) <= MAX_CLOSE_REASON_BYTES
    if kept != reason:
        assert len(reason[: len(kept) + 1].encode()) > MAX_CLOSE_REASON_BYTES


@pytest.mark.parametrize("reason", [b"bye", None, 1000])
def test_a_close_reason_of_the_wrong_type(reason: Any) -> None:
    with pytest.raises(TypeError) as caught:
        cut_close_reason(reason)
    assert str(caught.value) == f"close reason must be a str, not {type(reason).__name__}"


@pytest.mark.parametrize("reason", ["\ud800", "bye\udfff", "x" * 200 + "\ud800"])
def test_a_close_reason_with_a_lone_surrogate(reason: str) -> None:
    with pytest.raises(ValueError, match=r"^close reason cannot be encoded as UTF-8: ") as caught:
        cut_close_reason(reason)
    assert caught.type is ValueError
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("reason", REASONS)
def test_connection_closed_carries_the_reason(reason: DisconnectReason) -> None:
    closed = ConnectionClosed(reason)
    assert closed.reason is reason
    assert str(closed) == f"the connection has ended: {reason}"
    assert pickle.loads(pickle.dumps(closed)).reason == reason  # noqa: S301 - pickled on this very line


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (HandlerError, (WsdecoError, TypeError)),
        (RouteError, (WsdecoError, ValueError)),
        (ServerError, (WsdecoError, RuntimeError)),
        (ConnectionClosed, (WsdecoError,)),
        (WsdecoError, (Exception,)),
        (HandlerWarning, (UserWarning,)),
    ],
)
def test_exception_hierarchy(error: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    assert error.__bases__ == bases


def test_one_base_catches_every_error_but_no_warning() -> None:
    with pytest.raises(WsdecoError):
        raise ConnectionClosed(Unknown())
    assert not issubclass(HandlerWarning, WsdecoError)
    assert not issubclass(ConnectionClosed, OSError)


def test_what_is_long_is_cut_for_a_line() -> None:
    assert printable("x" * 500) == "x" * 500
    assert printable("\n" * 60_000) == r"\n" * 500 + "\u2026"
