"""Who may connect: the web origins of a handshake, decided exactly (RFC 6454; RFC 6455, section 10.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, Literal, TypeAlias

__all__ = ["Origin", "is_loopback", "origin_allowed", "parse_origin"]

Origin: TypeAlias = tuple[str, str, int]
"""Scheme, host and port; port 0 if the scheme has no default port and none is given."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_PAGE_SCHEMES: Final = {"ws": "http", "wss": "https"}

# urllib.parse strips control characters and takes userinfo and paths, so the grammar is spelled out. It is ASCII, as
# browsers send international names in their xn-- form; the lone dot is the host of Electron's "app://.".
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]+\.?|\.)"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
)


def parse_origin(text: str) -> Origin | None:
    """Take an origin such as `https://example.com:8443` apart.

    Args:
        text: The value of an Origin header, or an origin from a configuration.

    Returns:
        Scheme and host in lower case (an IPv6 address compressed and in brackets) and the port: the one given, or
        else the default of http, https, ws and wss, or else 0. `None` for anything that is not exactly one origin,
        such as `null`, a list, or an origin with a path, a slash at its end, userinfo or white space.
    """
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return None
    scheme, host = match["scheme"].lower(), match["host"].lower()
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1]).compressed}]"
        except AddressValueError:
            return None
    port = _DEFAULT_PORTS.get(scheme, 0) if match["port"] is None else int(match["port"])
    return None if port > 65535 else (scheme, host, port)


def origin_allowed(
    origins: Sequence[str],
    host: str | None,
    scheme: str,
    allowed: Literal["*"] | tuple[str, ...] | None,
) -> bool:
    """Decide whether a handshake may go on, by the origin of the page that began it.

    Args:
        origins: The value of every Origin header of the handshake. None at all means that no browser sent it, which
            is allowed; more than one is refused.
        host: The Host header.
        scheme: The scheme of the ASGI scope: `ws` or `wss`, or `http` or `https`.
        allowed: `None` for the same origin only, and for loopback origins if the Host is a loopback name too;
            `"*"` for every origin, `null` and malformed ones included; a tuple for the listed origins and no other.

    Returns:
        Whether the origin is allowed.
    """
    if not origins:
        return True
    if len(origins) > 1:
        return False
    if allowed == "*":
        return True
    if allowed is not None and origins[0] == "null":
        return "null" in allowed
    origin = parse_origin(origins[0])
    if origin is None:
        return False
    if allowed is not None:
        return any(origin == parse_origin(listed) for listed in allowed)
    target = None if host is None else parse_origin(f"{_PAGE_SCHEMES.get(scheme, scheme)}://{host}")
    if target is None:
        return False
    page_scheme, page_host, _ = origin
    return origin == target or (page_scheme in ("http", "https") and is_loopback(page_host) and is_loopback(target[1]))


def is_loopback(host: str) -> bool:
    """Return whether a host, in lower case as an address or as URLs have it, means this machine alone."""
    if host in ("localhost", "::1", "[::1]") or host.endswith(".localhost"):
        return True
    try:
        return IPv4Address(host).is_loopback
    except AddressValueError:
        return False
