"""The opening handshake, without I/O: the request's head in, the response's head out (RFC 6455, section 4.2).

The server parsed the request before and hands on its head, so this parser is small. It is strict all the
same, since whoever owns the socket may hand on bytes as they came: it takes linear time, accepts nothing that two
parsers could read differently (folded lines, bare line feeds, a body), and every refusal closes the connection,
so that nothing behind a failed upgrade is ever taken for a request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple, TypeAlias, cast

from wsdeco.tokens import is_token_of_bytes

__all__ = [
    "MAX_HEAD_LINES",
    "MAX_HEAD_SIZE",
    "Headers",
    "Refusal",
    "Request",
    "accept_response",
    "check_acceptance",
    "check_headers",
    "check_refusal",
    "check_subprotocol",
    "parse_request",
    "read_handshake",
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
_UPGRADE_FIELD: Final = b"\r\nUpgrade: websocket\r\n"
"""The field as nearly all clients write it; a handshake that has another form of it takes the longer way."""
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
_VERSION: Final = b"13"
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_IN_HEAD: Final = _CONTROL.sub(b"", bytes(range(256)))
"""What a line of a head may hold."""
_USUAL_NAMES: Final = {
    form: name.lower()
    for name in (
        *(b"Host", b"Connection", b"Upgrade", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"User-Agent", b"Origin"),
        *(b"Sec-WebSocket-Extensions", b"Sec-WebSocket-Protocol", b"Pragma", b"Cache-Control", b"Cookie"),
        *(b"Accept-Encoding", b"Accept-Language", b"X-Forwarded-For", b"X-Forwarded-Proto"),
    )
    for form in (name, name.lower())
}
"""Header names as most clients write them, each with its form in lower case: these need no check."""
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


class Request(NamedTuple):
    """A handshake request.

    Attributes:
        head: All of it, without the empty line that ends it.
        target: The request target, as sent.
        headers: Names in lower case, values as sent, in order.
        key: The value of `Sec-WebSocket-Key`.
        subprotocols: The subprotocols the peer offers, in its order of preference.
        extensions: The value of `Sec-WebSocket-Extensions`, empty without one.
    """

    head: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    key: bytes
    subprotocols: list[str]
    extensions: str


def take_head(buffer: bytearray, searched: int) -> bytes | None:
    """Take the head of a request off `buffer`, with the empty line behind it.

    Args:
        buffer: What has arrived.
        searched: How much of it was looked at before.

    Returns:
        The head without the empty line, all there is if that is too much for a head, or `None` if more must come.
    """
    end = buffer.find(_END_OF_HEAD, max(0, searched - len(_END_OF_HEAD) + 1))
    if end < 0 and len(buffer) <= MAX_HEAD_SIZE:
        return None
    head = bytes(buffer if end < 0 else buffer[:end])
    del buffer[: len(head) + len(_END_OF_HEAD)]
    return head


def read_handshake(data: bytes) -> tuple[Request, bytes] | None:
    """Return the handshake that the first bytes of a connection are, and what follows it; else `None`.

    `None` says nothing but that somebody else must have a look: the request may go on, be another one, or be refused.
    """
    # `in` would try whether it looks for an integer first, and make an exception of it.
    if data.find(_UPGRADE_FIELD) < 0 or not data.startswith(b"GET /"):
        return None
    end = data.find(_END_OF_HEAD)
    if not 0 <= end <= MAX_HEAD_SIZE - len(b"\r\n"):
        return None
    head = data[:end]
    lines = head.lower()
    if lines.count(b"\r\nupgrade:") > 1 or lines.count(b"\r\nconnection:") > 1:
        # uvicorn looks at one of several such fields.
        return None
    try:
        return parse_request(head), data[end + len(_END_OF_HEAD) :]
    except Refusal:
        return None


def parse_request(head: bytes) -> Request:
    """Parse the head of a handshake request, without the empty line that ends it.

    Raises:
        Refusal: The request cannot be accepted.
    """
    lines = head.split(b"\r\n", MAX_HEAD_LINES)
    if len(lines) > MAX_HEAD_LINES or len(head) > MAX_HEAD_SIZE:
        raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request head is too large.")
    # Deleting the allowed bytes is faster than searching for a forbidden one.
    if head.translate(None, _IN_HEAD) != b"\r\n" * (len(lines) - 1):
        raise Refusal(HTTPStatus.BAD_REQUEST, "The request head holds a control character.")
    target = _parse_request_line(lines[0])
    headers: list[tuple[bytes, bytes]] = []
    for line in lines[1:]:
        sent_name, colon, value = line.partition(b":")
        name = _USUAL_NAMES.get(sent_name)
        if name is None:
            if not is_token_of_bytes(sent_name):
                raise Refusal(HTTPStatus.BAD_REQUEST, "The request has a malformed header line.")
            name = sent_name.lower()
        if not colon:
            raise Refusal(HTTPStatus.BAD_REQUEST, "The request has a malformed header line.")
        headers.append((name, value.strip(b" \t")))
    fields = dict(headers)
    if len(fields) < len(headers):
        fields = _combined(headers)
    _check_upgrade(fields)
    key = _check_key(fields)
    subprotocols = _split(fields.get(b"sec-websocket-protocol"))
    extensions = fields.get(b"sec-websocket-extensions", b"").decode("latin-1")
    return Request(head, target, headers, key, subprotocols, extensions)


def _combined(headers: Headers) -> dict[bytes, bytes]:
    """Return the fields of a request, several of one name as one (RFC 9110, section 5.3)."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        fields[name] = fields[name] + b", " + value if name in fields else value
    if sum(name == b"host" for name, _ in headers) > 1:
        # Its value may hold a comma, so several of them joined could not be told from one.
        del fields[b"host"]
    return fields


def _parse_request_line(line: bytes) -> bytes:
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if not target or not target.isascii() or target.split() != [target]:
        raise Refusal(HTTPStatus.BAD_REQUEST, "The request line is malformed.")
    if version != b"HTTP/1.1":
        raise Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "A WebSocket handshake needs HTTP/1.1.")
    if method != b"GET":
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "A WebSocket handshake is a GET.", [(b"allow", b"GET")])
    return target


def _split(value: bytes | None) -> list[str]:
    return [] if value is None else [token.strip(" \t") for token in value.decode("latin-1").split(",")]


def _check_upgrade(fields: dict[bytes, bytes]) -> None:
    if b"host" not in fields:
        raise Refusal(HTTPStatus.BAD_REQUEST, "The request needs one Host header.")
    if b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0":
        raise Refusal(HTTPStatus.BAD_REQUEST, "A WebSocket handshake has no body.")
    # Nearly all clients write just the token; a list is taken apart.
    is_usual = fields.get(b"connection") == b"Upgrade" and fields.get(b"upgrade") == b"websocket"
    if not is_usual and not (
        _has_token(fields, b"connection", "upgrade") and _has_token(fields, b"upgrade", "websocket")
    ):
        raise Refusal(HTTPStatus.UPGRADE_REQUIRED, "This is a WebSocket endpoint.", [(b"upgrade", b"websocket")])
    if fields.get(b"sec-websocket-version") != _VERSION:
        message = "The request needs one Sec-WebSocket-Version header, with the value 13."
        raise Refusal(HTTPStatus.UPGRADE_REQUIRED, message, [(b"sec-websocket-version", _VERSION)])


def _has_token(fields: dict[bytes, bytes], name: bytes, token: str) -> bool:
    return token in _split(fields.get(name, b"").lower())


def _check_key(fields: dict[bytes, bytes]) -> bytes:
    key = fields.get(b"sec-websocket-key", b"")
    try:
        if len(binascii.a2b_base64(key, strict_mode=True)) == _KEY_BYTES:
            return key
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
    for sent_name, sent_value in headers:
        name, value = _as_bytes(sent_name), _as_bytes(sent_value)
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            kinds = f"{type(name).__name__} and {type(value).__name__}"
            raise TypeError(f"a response header is a pair of bytes, not {kinds}: write b'name', b'value'")
        if not is_token_of_bytes(name):
            raise ValueError(f"header name {name.decode(errors='replace')!r} is not a token (RFC 9110, section 5.1)")
        if _CONTROL.search(value) is not None:
            raise ValueError(
                f"header {name.decode()!r} has a value that no header can carry: it holds a control character"
            )
        checked.append((name.lower(), value))
    return checked


def _as_bytes(part: object) -> object:
    # Other servers take these as well.
    return bytes(cast("bytearray | memoryview[int]", part)) if isinstance(part, bytearray | memoryview) else part


def check_subprotocol(subprotocol: str, offered: Collection[str]) -> None:
    """Refuse to agree on a subprotocol that the client does not offer.

    Raises:
        ValueError: It is not offered.
    """
    if subprotocol not in offered:
        raise ValueError(
            f"subprotocol {subprotocol!r} was not offered by the client, which offers {len(offered)} others: "
            "agree on one of these, or on none (RFC 6455, section 4.1)"
        )


def check_acceptance(
    request: Request, subprotocol: str | None, headers: Iterable[tuple[object, object]]
) -> list[tuple[bytes, bytes]]:
    """Return the headers with which a handshake is accepted, the subprotocol among them.

    Raises:
        TypeError: A name or a value is not `bytes`.
        ValueError: The subprotocol is not offered, or a header cannot be sent.
    """
    if subprotocol is None:
        return check_headers(headers)
    check_subprotocol(subprotocol, request.subprotocols)
    return [*check_headers(headers), (b"Sec-WebSocket-Protocol", subprotocol.encode("latin-1"))]


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
