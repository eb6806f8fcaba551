"""The handshake's parser and its responses."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

import pytest

from tests.support.in_memory import ACCEPTED, REQUEST, request
from wsdeco.wire.handshake import (
    MAX_HEAD_SIZE,
    Refusal,
    accept_response,
    check_headers,
    check_refusal,
    parse_request,
    refusal_response,
)

HEAD = REQUEST.removesuffix(b"\r\n\r\n")


def parse(raw: bytes) -> Any:
    return parse_request(raw.removesuffix(b"\r\n\r\n"))


def refused(raw: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(raw)
    return caught.value


class TestRequest:
    def test_parts(self) -> None:
        parsed = parse(
            request("X-Name: caf\xe9 ", "x-name:\t2", "Sec-WebSocket-Protocol: a, b", "sec-websocket-protocol: c")
        )
        assert parsed.target == b"/chat?x=1"
        assert parsed.key == b"dGhlIHNhbXBsZSBub25jZQ=="
        assert parsed.subprotocols == ["a", "b", "c"]
        assert parsed.extensions == ""
        assert parsed.headers[5:7] == [(b"x-name", b"caf\xe9"), (b"x-name", b"2")]

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"connection: Upgrade", b"CONNECTION: keep-alive, uPGRADE"),
            (b"connection: Upgrade", b"connection: keep-alive\r\nconnection: ,upgrade"),
            (b"upgrade: websocket", b"Upgrade: WebSocket"),
            (b"upgrade: websocket", b"Upgrade: other, websocket"),
            (b"host: example.com", b"HOST:example.com"),
            (b"host: example.com", b"host: example.com\r\ncontent-length: 0"),
        ],
    )
    def test_accepted_forms(self, old: bytes, new: bytes) -> None:
        assert parse(REQUEST.replace(old, new)).key == b"dGhlIHNhbXBsZSBub25jZQ=="

    @pytest.mark.parametrize(
        ("old", "new", "status"),
        [
            (b"GET ", b"POST ", 405),
            (b"HTTP/1.1", b"HTTP/1.0", 505),
            (b"HTTP/1.1", b"HTTP/2", 505),
            (b"GET /chat?x=1 ", b"GET  ", 400),
            (b"GET /chat?x=1 HTTP/1.1", b"GET", 400),
            (b"/chat", b"/ch at", 400),
            (b"/chat", b"/ch\xe9t", 400),
            (b"/chat", b"/ch\tat", 400),
            (b"host: example.com\r\n", b"", 400),
            (b"host: example.com", b"host: a\r\nhost: b", 400),
            (b"host: example.com", b"host: a\r\n folded", 400),
            (b"host: example.com", b"host : a", 400),
            (b"host: example.com", b"no colon", 400),
            (b"host: example.com", b"host", 400),
            (b"host: example.com", b": empty name", 400),
            (b"host: example.com", b"host: a\nb: c", 400),
            (b"host: example.com", b"host: a\rb", 400),
            (b"host: example.com", b"host: a\0b", 400),
            (b"host: example.com", b"host: a\x7fb", 400),
            (b"host: example.com", b"host: a\r\ncontent-length: 5", 400),
            (b"host: example.com", b"host: a\r\ntransfer-encoding: chunked", 400),
            (b"connection: Upgrade", b"connection: close", 426),
            (b"upgrade: websocket", b"upgrade: h2c", 426),
            (b"version: 13", b"version: 8", 426),
            (b"version: 13", b"version: 13, 8", 426),
            (b"sec-websocket-version: 13\r\n", b"", 426),
            (b"version: 13", b"version: 13\r\nsec-websocket-version: 13", 426),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"", 400),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25j", 400),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"not base64, not at all !", 400),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-key: x", 400),
            (b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"", 400),
        ],
    )
    def test_refused_forms(self, old: bytes, new: bytes, status: int) -> None:
        assert old in REQUEST
        assert refused(REQUEST.replace(old, new)).status == status

    def test_version_is_named_in_the_refusal(self) -> None:
        assert refused(REQUEST.replace(b"version: 13", b"version: 7")).headers == [(b"sec-websocket-version", b"13")]

    def test_every_byte_in_a_header_value(self) -> None:
        for byte in range(256):
            raw = REQUEST.replace(b"example.com", b"a" + bytes([byte]) + b"b")
            if byte == 9 or (byte >= 32 and byte != 127):
                assert parse(raw).headers[0] == (b"host", b"a" + bytes([byte]) + b"b")
            else:
                assert refused(raw).status == 400

    def test_size(self) -> None:
        room = MAX_HEAD_SIZE - len(HEAD) - len(b"\r\nx: ")
        assert parse(request("x: " + "a" * room)).key
        assert refused(request("x: " + "a" * (room + 1))).status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE

    def test_number_of_lines(self) -> None:
        room = 128 - len(HEAD.split(b"\r\n"))
        assert parse(request(*["x: a"] * room)).key
        assert refused(request(*["x: a"] * (room + 1))).status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE

    @pytest.mark.parametrize("filler", [" ", "\t", ":", ",", "a", ", upgrade"])
    def test_time_is_linear(self, filler: str) -> None:
        line = "connection: " + filler * (60_000 // len(filler)) + "x"
        started = time.process_time()
        for _ in range(10):
            parse(request(line))
        assert time.process_time() - started < 1.0


class TestResponses:
    def test_accept(self) -> None:
        assert accept_response(b"dGhlIHNhbXBsZSBub25jZQ==", []) == ACCEPTED
        response = accept_response(b"dGhlIHNhbXBsZSBub25jZQ==", [(b"set-cookie", b"a"), (b"set-cookie", b"b")])
        assert response.endswith(b"\r\nset-cookie: a\r\nset-cookie: b\r\n\r\n")

    def test_refusal_frames_its_body_itself(self) -> None:
        headers = [
            (b"content-length", b"7"),
            (b"connection", b"keep-alive"),
            (b"x", b"1"),
            (b"transfer-encoding", b"chunked"),
        ]
        assert refusal_response(404, headers, b"no", default_headers=[(b"server", b"s"), (b"X", b"2")]) == (
            b"HTTP/1.1 404 Not Found\r\nserver: s\r\nx: 1\r\nconnection: close\r\ncontent-length: 2\r\n"
            b"content-type: text/plain; charset=utf-8\r\n\r\nno"
        )

    def test_refusal_with_a_content_type(self) -> None:
        assert refusal_response(403, [(b"content-type", b"text/html")], b"<p>").count(b"content-type") == 1

    @pytest.mark.parametrize("status", [204, 304])
    def test_refusal_without_a_body(self, status: int) -> None:
        response = refusal_response(status, [], b"body")
        assert response.endswith(b"connection: close\r\n\r\n")

    def test_refusal_with_an_unknown_status(self) -> None:
        assert refusal_response(599).startswith(b"HTTP/1.1 599 \r\n")

    @pytest.mark.parametrize("status", [0, 99, 100, 101, 199, 600])
    def test_status_that_is_no_answer(self, status: int) -> None:
        with pytest.raises(ValueError, match="no answer to a handshake"):
            check_refusal(status, [])

    def test_names_become_lower_case(self) -> None:
        assert check_refusal(200, [(b"X-Name", b"Value")]) == [(b"x-name", b"Value")]

    def test_every_byte_of_a_header(self) -> None:
        for byte in range(256):
            character = bytes([byte])
            if (byte < 32 and byte != 9) or byte == 127:
                with pytest.raises(ValueError, match="control character"):
                    check_headers([(b"x", character)])
            else:
                assert check_headers([(b"x", character)]) == [(b"x", character)]
            if not (character.isalnum() or character in b"!#$%&'*+-.^_`|~"):
                with pytest.raises(ValueError, match="not a token"):
                    check_headers([(b"x" + character, b"")])

    @pytest.mark.parametrize("header", [("x", b"y"), (b"x", "y"), (b"x", 1)])
    def test_headers_are_bytes(self, header: tuple[object, object]) -> None:
        with pytest.raises(TypeError, match="write b'name', b'value'"):
            check_headers([header])
