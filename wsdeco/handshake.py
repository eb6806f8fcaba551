"""The opening handshake, without I/O: the request's head in, the response's head out (RFC 6455, section 4.2).

The server has parsed the request before and hands on its head, so this parser is small. It is strict all the
same, since whoever owns the socket may hand on bytes as they came: it takes linear time, accepts nothing that two
parsers could read differently (folded lines, bare line feeds, a body), and every refusal closes the connection,
so that nothing behind a failed upgrade is ever taken for a request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeAlias

__all__ = [
    "MAX_HEAD_SIZE",
    "Headers",
    "Refusal",
    "Request",
    "accept_response",
    "check_headers",
    "check_refusal",
    "parse_request",
    "refusal_response",
    "take_head",
]

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Header names and values as bytes, in order, duplicates included."""

MAX_HEAD_SIZE: Final = 64 * 1024
"""Largest request line with headers, in bytes."""
MAX_HEAD_LINES: Final = 128
"""Most lines of a request's head."""

_END_OF_HEAD: Final = b"\r\n\r\n"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
_VERSION: Final = b"13"
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_IN_TARGET: Final = re.compile(rb"[^\x21-\x7e]")
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OUR_HEADERS: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})
_BODILESS: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class Refusal(Exception):
    """The request is no handshake that can be accepted.

    Attributes:
        status: The HTTP status to answer with.
        message: What is wrong, in one line: the body of the answer.
        headers: Headers of the answer.
    """

    def __init__(self, status: HTTPStatus, message: str, headers: Headers = ()) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Request:
    """A handshake request.

    Attributes:
        target: The request target, as sent.
        headers: Names in lower case, values as sent, in order.
        key: The value of `Sec-WebSocket-Key`.
        subprotocols: The subprotocols the peer offers, in its order of preference.
        extensions: The values of `Sec-WebSocket-Extensions`.
    """

    target: bytes
    headers: list[tuple[bytes, bytes]]
    key: bytes
    subprotocols: list[str]
    extensions: list[str]


def take_head(buffer: bytearray, searched: int) -> bytes | None:
    """Take the head of a request off `buffer`, with the empty line behind it.

    Args:
        buffer: What has arrived.
        searched: How much of it has been looked at before.

    Returns:
        The head without the empty line, all there is if that is too much for a head, or `None` if more must come.
    """
    end = buffer.find(_END_OF_HEAD, max(0, searched - len(_END_OF_HEAD) + 1))
    if end < 0 and len(buffer) <= MAX_HEAD_SIZE:
        return None
    head = bytes(buffer if end < 0 else buffer[:end])
    del buffer[: len(head) + len(_END_OF_HEAD)]
    return head


def parse_request(head: bytes) -> Request:
    """Parse the head of a handshake request, without the empty line that ends it.

    Raises:
        Refusal: The request cannot be accepted.
    """
    lines = head.split(b"\r\n", MAX_HEAD_LINES)
    if len(lines) > MAX_HEAD_LINES or len(head) > MAX_HEAD_SIZE:
        raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request head is too large.")
    if _CONTROL.search(head.replace(b"\r\n", b"")) is not None:
        raise Refusal(HTTPStatus.BAD_REQUEST, "The request head holds a control character.")
    target = _parse_request_line(lines[0])
    headers: list[tuple[bytes, bytes]] = []
    values: dict[bytes, list[bytes]] = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if len(name) == len(line) or _TOKEN.fullmatch(name) is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "The request has a malformed header line.")
        name = name.lower()
        value = value.strip(b" \t")
        headers.append((name, value))
        values.setdefault(name, []).append(value)
    _check_upgrade(values)
    return Request(
        target,
        headers,
        _check_key(values),
        [token for value in values.get(b"sec-websocket-protocol", ()) for token in _split(value)],
        [value.decode("latin-1") for value in values.get(b"sec-websocket-extensions", ())],
    )


def _parse_request_line(line: bytes) -> bytes:
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if not target or _NOT_IN_TARGET.search(target) is not None:
        raise Refusal(HTTPStatus.BAD_REQUEST, "The request line is malformed.")
    if version != b"HTTP/1.1":
        raise Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "A WebSocket handshake needs HTTP/1.1.")
    if method != b"GET":
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "A WebSocket handshake is a GET.", [(b"allow", b"GET")])
    return target


def _split(value: bytes) -> list[str]:
    return [token.strip() for token in value.decode("latin-1").split(",")]


def _check_upgrade(values: dict[bytes, list[bytes]]) -> None:
    if len(values.get(b"host", ())) != 1:
        raise Refusal(HTTPStatus.BAD_REQUEST, "The request needs one Host header.")
    if b"transfer-encoding" in values or any(length != b"0" for length in values.get(b"content-length", ())):
        raise Refusal(HTTPStatus.BAD_REQUEST, "A WebSocket handshake has no body.")
    if "upgrade" not in _tokens(values, b"connection") or "websocket" not in _tokens(values, b"upgrade"):
        raise Refusal(HTTPStatus.UPGRADE_REQUIRED, "This is a WebSocket endpoint.", [(b"upgrade", b"websocket")])
    if values.get(b"sec-websocket-version") != [_VERSION]:
        message = "The request needs one Sec-WebSocket-Version header, with the value 13."
        raise Refusal(HTTPStatus.UPGRADE_REQUIRED, message, [(b"sec-websocket-version", _VERSION)])


def _tokens(values: dict[bytes, list[bytes]], name: bytes) -> list[str]:
    return [token.lower() for value in values.get(name, ()) for token in _split(value)]


def _check_key(values: dict[bytes, list[bytes]]) -> bytes:
    keys = values.get(b"sec-websocket-key", [])
    try:
        if len(keys) == 1 and len(binascii.a2b_base64(keys[0], strict_mode=True)) == _KEY_BYTES:
            return keys[0]
    except binascii.Error:
        pass
    message = "The request needs one Sec-WebSocket-Key header: 16 bytes in base64."
    raise Refusal(HTTPStatus.BAD_REQUEST, message)


def check_headers(headers: Iterable[tuple[object, object]]) -> list[tuple[bytes, bytes]]:
    """Return response headers with their names in lower case.

    Raises:
        TypeError: A name or a value is not `bytes`.
        ValueError: A name is not a token, or a value holds a control character.
    """
    checked: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError(
                f"a response header is a pair of bytes, not {name!r} and {value!r}: write b'name', b'value'"
            )
        if _TOKEN.fullmatch(name) is None:
            raise ValueError(f"response header name {name!r} is not a token (RFC 9110, section 5.1)")
        if _CONTROL.search(value) is not None:
            raise ValueError(f"response header {name!r} holds a control character: {value!r}")
        checked.append((name.lower(), value))
    return checked


def accept_response(key: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the response that accepts a handshake.

    Args:
        key: The request's `Sec-WebSocket-Key`.
        headers: Further headers, checked before.
    """
    parts = [_SWITCHING, base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()), b"\r\n"]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


def check_refusal(status: int, headers: Iterable[tuple[object, object]]) -> list[tuple[bytes, bytes]]:
    """Return the headers of a refusal with their names in lower case.

    Raises:
        TypeError: A name or a value is not `bytes`.
        ValueError: The status is no answer to a handshake, or a header cannot be sent.
    """
    if not 200 <= status < 600:
        raise ValueError(f"HTTP status {status} is no answer to a handshake: use one from 200 to 599")
    return check_headers(headers)


def refusal_response(status: int, headers: Headers = (), body: bytes = b"", *, default_headers: Headers = ()) -> bytes:
    """Return the response that refuses a handshake, and says that the connection closes.

    Args:
        status: An HTTP status from 200 to 599.
        headers: Headers of the response, checked before; those that frame the body are ours.
        body: The body; text, unless `headers` say otherwise.
        default_headers: Headers for those names that `headers` do not hold.
    """
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    names = {name for name, _ in headers}
    sent = [pair for pair in default_headers if pair[0].lower() not in names]
    sent += [pair for pair in headers if pair[0] not in _OUR_HEADERS]
    sent.append((b"connection", b"close"))
    if status in _BODILESS:
        body = b""
    else:
        sent.append((b"content-length", b"%d" % len(body)))
        if b"content-type" not in names:
            sent.append((b"content-type", b"text/plain; charset=utf-8"))
    head = b"".join(b"%s: %s\r\n" % pair for pair in sent)
    return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, phrase.encode(), head, body)
