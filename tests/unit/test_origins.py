"""Origins are decided exactly: the same origin, a listed one, or none."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsdeco.origins import Origin, origin_allowed, parse_origin

PARSED: Final[list[tuple[str, Origin]]] = [
    ("http://example.com", ("http", "example.com", 80)),
    ("https://example.com", ("https", "example.com", 443)),
    ("https://example.com:443", ("https", "example.com", 443)),
    ("https://example.com:80", ("https", "example.com", 80)),
    ("https://example.com:1", ("https", "example.com", 1)),
    ("https://example.com:65535", ("https", "example.com", 65535)),
    ("ws://example.com", ("ws", "example.com", 80)),
    ("wss://example.com", ("wss", "example.com", 443)),
    ("HTTPS://Example.COM", ("https", "example.com", 443)),
    ("https://example.com.", ("https", "example.com.", 443)),
    ("https://xn--mnchen-3ya.de", ("https", "xn--mnchen-3ya.de", 443)),
    ("https://under_score.example", ("https", "under_score.example", 443)),
    ("http://127.0.0.1:8000", ("http", "127.0.0.1", 8000)),
    ("http://[::1]", ("http", "[::1]", 80)),
    ("http://[0:0:0:0:0:0:0:1]:8000", ("http", "[::1]", 8000)),
    ("http://[2001:DB8:0:0::1]", ("http", "[2001:db8::1]", 80)),
    (
        "chrome-extension://gighmmpiobklfepjocnamgkkbiglidom",
        ("chrome-extension", "gighmmpiobklfepjocnamgkkbiglidom", 0),
    ),
    (
        "moz-extension://8d7a1b2c-0000-4000-8000-1a2b3c4d5e6f",
        ("moz-extension", "8d7a1b2c-0000-4000-8000-1a2b3c4d5e6f", 0),
    ),
    ("vscode-webview://1b4ltqk5", ("vscode-webview", "1b4ltqk5", 0)),
    ("capacitor://localhost:5173", ("capacitor", "localhost", 5173)),
    ("app://.", ("app", ".", 0)),
]

NOT_ORIGINS: Final = [
    "",
    "null",
    "NULL",
    "*",
    "example.com",
    "//example.com",
    "https:example.com",
    "https:/example.com",
    "https:\\\\example.com",
    "https://",
    "https://:443",
    "file://",
    "file:///etc/passwd",
    "about:blank",
    "data:text/html,hello",
    "https://example.com/",
    "https://example.com/chat",
    "https://example.com?room=1",
    "https://example.com#top",
    "https://example.com\\",
    "https://user@example.com",
    "https://user:secret@example.com",
    "https://@example.com",
    "https://example.com@evil.net",
    "https://example.com:443@evil.net",
    " https://example.com",
    "https://example.com ",
    "https://exam ple.com",
    "https://example.com\n",
    "https://exam\tple.com",
    "https://example.com\x00",
    "https://example.com\x00.evil.net",
    "https://example.com\x7f",
    "https://example.com https://evil.net",
    "https://example.com,https://evil.net",
    "https://example.com:",
    "https://example.com:0",
    "https://example.com:0443",
    "https://example.com:65536",
    "https://example.com:99999",
    "https://example.com:443443",
    "https://example.com:-1",
    "https://example.com:+443",
    "https://example.com:4_43",
    "https://example.com:https",
    "https://example.com:\u0664\u0664\u0663",
    "https://example.com:443:443",
    "https://.example.com",
    "https://example..com",
    "app://..",
    "https://*.example.com",
    "https://exam%70le.com",
    "https://münchen.de",
    "https://\uff45xample.com",
    "http\u017f://example.com",
    "1http://example.com",
    "://example.com",
    "http://::1",
    "http://[::1",
    "http://::1]",
    "http://[]",
    "http://[1]",
    "http://[127.0.0.1]",
    "http://[localhost]",
    "http://[v1.fe80::a]",
    "http://[fe80::1%25eth0]",
    "http://[::1].evil.net",
    "http://[::12345]",
]

LIST: Final = ("https://example.com", "http://example.org:8080", "http://[::1]:3000")

DECISIONS: Final[list[tuple[str, str | None, str, tuple[str, ...] | None, bool]]] = [
    # The same origin.
    ("https://example.com", "example.com", "wss", None, True),
    ("https://example.com", "example.com", "https", None, True),
    ("https://example.com", "example.com:443", "wss", None, True),
    ("https://example.com:443", "example.com", "wss", None, True),
    ("http://example.com", "example.com", "ws", None, True),
    ("http://example.com", "example.com", "http", None, True),
    ("http://example.com:8000", "example.com:8000", "ws", None, True),
    ("HTTPS://EXAMPLE.com", "Example.COM", "wss", None, True),
    ("https://example.com.", "example.com.", "wss", None, True),
    ("http://[2001:db8::1]:8000", "[2001:DB8:0::1]:8000", "ws", None, True),
    # Another scheme, host or port.
    ("http://example.com", "example.com", "wss", None, False),
    ("https://example.com", "example.com", "ws", None, False),
    ("wss://example.com", "example.com", "wss", None, False),
    ("chrome-extension://example.com", "example.com", "wss", None, False),
    ("https://example.com:8443", "example.com", "wss", None, False),
    ("https://example.com", "example.com:8443", "wss", None, False),
    ("https://example.com:44", "example.com:443", "wss", None, False),
    ("https://example.com.", "example.com", "wss", None, False),
    ("https://example.com", "example.com.", "wss", None, False),
    ("https://www.example.com", "example.com", "wss", None, False),
    ("https://example.com", "www.example.com", "wss", None, False),
    ("https://example.com.evil.net", "example.com", "wss", None, False),
    ("https://evilexample.com", "example.com", "wss", None, False),
    ("https://evil-example.com", "example.com", "wss", None, False),
    ("https://example.co", "example.com", "wss", None, False),
    ("https://exampleXcom", "example.com", "wss", None, False),
    # What is no origin, or no Host.
    ("null", "example.com", "wss", None, False),
    ("null", "null", "wss", None, False),
    ("", "example.com", "wss", None, False),
    ("", "", "wss", None, False),
    ("https://", "", "wss", None, False),
    ("https://example.com/", "example.com", "wss", None, False),
    ("https://example.com@evil.net", "example.com", "wss", None, False),
    ("https://evil.net@example.com", "example.com", "wss", None, False),
    ("https://user@example.com", "user@example.com", "wss", None, False),
    ("https://example.com", "user@example.com", "wss", None, False),
    ("https://example.com/x", "example.com/x", "wss", None, False),
    ("https://example.com https://evil.net", "example.com", "wss", None, False),
    ("https://example.com", None, "wss", None, False),
    ("null", None, "wss", None, False),
    # Loopback to loopback.
    ("http://localhost:5173", "localhost:8000", "ws", None, True),
    ("https://localhost:5173", "localhost:8000", "ws", None, True),
    ("http://localhost:8888", "127.0.0.1:8000", "ws", None, True),
    ("http://127.0.0.1:8888", "localhost:8000", "ws", None, True),
    ("http://127.8.9.10:8888", "127.255.255.254:8000", "ws", None, True),
    ("http://[::1]:8888", "127.0.0.1:8000", "wss", None, True),
    ("http://127.0.0.1:8888", "[0::1]:8000", "ws", None, True),
    ("http://app.localhost:3000", "LOCALHOST:8000", "ws", None, True),
    ("http://localhost:3000", "api.localhost:8000", "ws", None, True),
    # Loopback on one side alone, or what only looks like it.
    ("http://localhost:5173", "example.com", "ws", None, False),
    ("http://localhost", "10.0.0.1", "ws", None, False),
    ("http://localhost", None, "ws", None, False),
    ("http://evil.net", "localhost:8000", "ws", None, False),
    ("http://evil.net", "127.0.0.1:8000", "ws", None, False),
    ("null", "localhost:8000", "ws", None, False),
    ("http://localhost.evil.net", "localhost", "ws", None, False),
    ("http://evillocalhost", "localhost", "ws", None, False),
    ("http://localhost.", "localhost", "ws", None, False),
    ("http://127.0.0.1.evil.net", "127.0.0.1", "ws", None, False),
    ("http://127.evil.net", "127.0.0.1", "ws", None, False),
    ("http://127.1", "127.0.0.1", "ws", None, False),
    ("http://127.0.0.01", "127.0.0.1", "ws", None, False),
    ("http://2130706433", "127.0.0.1", "ws", None, False),
    ("http://0.0.0.0", "127.0.0.1", "ws", None, False),
    ("http://128.0.0.1", "127.0.0.1", "ws", None, False),
    ("http://[::2]", "[::1]", "ws", None, False),
    ("http://[::ffff:127.0.0.1]", "[::1]", "ws", None, False),
    ("http://localhost@evil.net", "localhost", "ws", None, False),
    ("chrome-extension://localhost", "localhost", "ws", None, False),
    ("ws://localhost", "localhost", "ws", None, False),
    # A list, which replaces the default.
    ("https://example.com", "api.example.net", "wss", LIST, True),
    ("https://example.com:443", "api.example.net", "ws", LIST, True),
    ("HTTPS://example.COM", None, "wss", LIST, True),
    ("http://example.org:8080", "api.example.net", "wss", LIST, True),
    ("http://[0::1]:3000", "api.example.net", "wss", LIST, True),
    ("https://chat.example", "chat.example", "wss", ("HTTPS://Chat.Example:443",), True),
    ("chrome-extension://abc", "example.com", "wss", ("chrome-extension://abc",), True),
    ("null", "example.com", "wss", ("https://example.com", "null"), True),
    ("https://api.example.net", "api.example.net", "wss", LIST, False),
    ("http://localhost:5173", "localhost:8000", "ws", LIST, False),
    ("http://example.com", "example.com", "ws", LIST, False),
    ("https://example.com:8443", "example.com", "wss", LIST, False),
    ("http://example.org", "example.org", "ws", LIST, False),
    ("https://example.com.evil.net", "example.com", "wss", LIST, False),
    ("https://evilexample.com", "example.com", "wss", LIST, False),
    ("https://example.com.", "example.com", "wss", LIST, False),
    ("https://example.com/", "example.com", "wss", LIST, False),
    ("https://example.com@evil.net", "example.com", "wss", LIST, False),
    ("null", "example.com", "wss", LIST, False),
    ("NULL", "example.com", "wss", ("null",), False),
    ("nullnull", "example.com", "wss", ("null",), False),
    ("", "example.com", "wss", ("null",), False),
    ("https://example.com/", "example.com", "wss", ("null",), False),
    ("https://example.com", "example.com", "wss", (), False),
    ("https://example.com", "example.com", "wss", ("*",), False),
]


@pytest.mark.parametrize(("text", "origin"), PARSED)
def test_an_origin_is_parsed_and_normalized(text: str, origin: Origin) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize("text", NOT_ORIGINS)
def test_anything_else_is_not_an_origin(text: str) -> None:
    assert parse_origin(text) is None


@pytest.mark.parametrize(("origin", "host", "scheme", "allowed", "expected"), DECISIONS)
def test_every_origin_is_decided_exactly(
    origin: str, host: str | None, scheme: str, allowed: tuple[str, ...] | None, expected: bool
) -> None:
    assert origin_allowed([origin], host, scheme, allowed) is expected


@pytest.mark.parametrize("origin", [*NOT_ORIGINS, *(text for text, _ in PARSED)])
def test_the_star_allows_every_origin(origin: str) -> None:
    assert origin_allowed([origin], "server.example", "wss", "*")


@pytest.mark.parametrize("host", ["example.com", None])
@pytest.mark.parametrize("allowed", [None, (), ("https://example.com",)])
def test_a_client_without_origin_is_allowed(allowed: tuple[str, ...] | None, host: str | None) -> None:
    assert origin_allowed([], host, "wss", allowed)
    assert origin_allowed([], host, "wss", "*")


@pytest.mark.parametrize("second", ["https://example.com", "https://evil.net", "null", ""])
def test_more_than_one_origin_header_is_refused(second: str) -> None:
    for origins in (["https://example.com", second], [second, "https://example.com"]):
        assert not origin_allowed(origins, "example.com", "wss", None)
        assert not origin_allowed(origins, "example.com", "wss", ("https://example.com", "null"))
        assert not origin_allowed(origins, "example.com", "wss", "*")


labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=8)
hosts = st.one_of(
    st.lists(labels, min_size=1, max_size=4).map(".".join),
    st.sampled_from(["localhost", "a.localhost", "example.com", "example.com."]),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(network="127.0.0.0/8").map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
ports = st.integers(1, 65535)
schemes = st.sampled_from(["http", "https", "ws", "wss", "chrome-extension", "app"])
near_origins = st.text("htps:/.@?#[]1\\ %*\0\n\u017f\u212a\xe9-_wnul", max_size=24)
DEFAULT_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def serialize(origin: Origin) -> str:
    scheme, host, port = origin
    return f"{scheme}://{host}" if port == DEFAULT_PORTS.get(scheme, 0) else f"{scheme}://{host}:{port}"


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    if host.startswith("["):
        return int(IPv6Address(host[1:-1])) == 1
    return re.fullmatch(r"[0-9.]+", host) is not None and host.count(".") == 3 and int(IPv4Address(host)) >> 24 == 127


@given(st.one_of(st.text(), near_origins, st.binary().map(lambda raw: raw.decode("latin-1"))))
@example("http://[::1%0]")
def test_no_text_raises_and_what_parses_round_trips(text: str) -> None:
    origin = parse_origin(text)
    if origin is not None:
        assert parse_origin(serialize(origin)) == origin
        assert text.lower().startswith(f"{origin[0]}://")
        assert re.fullmatch(r"[!-~]+://[^/\\?#@%*\x00-\x20\x7f-\U0010ffff]+", text) is not None


@given(schemes, hosts, ports | st.none())
def test_an_origin_round_trips(scheme: str, host: str, port: int | None) -> None:
    text = f"{scheme}://{host}" if port is None else f"{scheme}://{host}:{port}"
    origin = parse_origin(text)
    assert origin is not None
    assert origin[0] == scheme
    assert origin[2] == (DEFAULT_PORTS.get(scheme, 0) if port is None else port)
    assert parse_origin(serialize(origin)) == origin == parse_origin(text.upper())


@given(
    st.lists(st.one_of(st.text(), near_origins), max_size=3),
    st.one_of(st.none(), st.text(), hosts),
    st.one_of(st.text(), st.sampled_from(["ws", "wss"])),
    st.one_of(st.none(), st.lists(st.one_of(st.text(), near_origins), max_size=3).map(tuple)),
)
def test_no_handshake_raises(
    origins: list[str], host: str | None, scheme: str, allowed: tuple[str, ...] | None
) -> None:
    decision = origin_allowed(origins, host, scheme, allowed)
    if len(origins) != 1:
        assert decision is (not origins)
    elif parse_origin(origins[0]) is None:
        assert decision is (allowed is not None and origins[0] == "null" and "null" in allowed)


@given(st.sampled_from(["ws", "wss"]), hosts, ports, st.sampled_from(["http", "https"]), hosts, ports)
def test_only_the_exact_origin_is_the_same_origin(
    scheme: str, host: str, port: int, page_scheme: str, page_host: str, page_port: int
) -> None:
    own_scheme = {"ws": "http", "wss": "https"}[scheme]
    header = f"{host}:{port}"
    assert origin_allowed([f"{own_scheme}://{host}:{port}"], header, scheme, None)

    both_loopback = is_loopback(host) and is_loopback(page_host)
    same = (own_scheme, host, port) == (page_scheme, page_host, page_port)
    expected = same or both_loopback
    assert origin_allowed([f"{page_scheme}://{page_host}:{page_port}"], header, scheme, None) is expected


@given(hosts, st.text(min_size=1, max_size=6), st.integers(0, 40))
def test_one_character_more_is_another_origin(host: str, extra: str, position: int) -> None:
    text = f"https://{host}:8443"
    position = min(position, len(text))
    altered = text[:position] + extra + text[position:]
    parsed = parse_origin(altered)
    expected = parsed is not None and parsed == parse_origin(text)
    assert origin_allowed([altered], None, "wss", (text,)) is expected
