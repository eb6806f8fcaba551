"""DNS rebinding: a listener on loopback that a browser reached under the name of somebody else's site."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, cast

from starlette.types import Scope

from wsdeco.connection.refusals import Refusal
from wsdeco.origins import is_loopback
from wsdeco.reasons import CloseCode, printable
from wsdeco.values import texts

__all__ = ["FORWARDING", "Hosts", "checked_hosts"]

FORWARDING: Final = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"}
)
"""Header fields that reverse proxies add to a handshake, and that the WebSocket of a page cannot."""

_HOST: Final = re.compile(r"(?P<name>.*?)(?::(?P<port>[0-9]{1,5}))?", re.DOTALL)

_DEFAULT_PORTS: Final = ("80", "443")

_NAME: Final = re.compile(r"[^\s/:*@]+")


class Hosts:
    """Refuses requests that reached a listener on loopback directly, and under a name that is not this machine's.

    The name of any site may resolve to 127.0.0.1, and for a browser its pages are of the same origin as this server
    then. Such a request carries the port of the listener behind that name. One that a reverse proxy on this machine
    passes on carries the port of the proxy, or none. An address is no name, and cannot be made to resolve to another.
    """

    __slots__ = ("_allowed", "_let_in")

    def __init__(self, allowed: frozenset[str] = frozenset()) -> None:
        """Let these names in as well, as `checked_hosts` returns them."""
        self._allowed = allowed
        self._let_in: tuple[bytes, object] | None = None

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return how a handshake or a plain request is refused, if it is."""
        server = scope.get("server")
        for field, value in scope["headers"]:
            # Nearly all come under one name.
            if field == b"host" and (value, server) != self._let_in:
                host: str = value.decode("latin-1")
                # granian has the port as text.
                address, port = server or ("", 0)
                if not self._is_foreign(host.lower(), address, str(port)):
                    self._let_in = value, server
                elif not _is_proxied(scope):
                    return _refusal(host, f"{address}:{port}")
        return None

    def _is_foreign(self, host: str, address: str, port: str) -> bool:
        if not address.startswith("127.") and address != "::1":
            return False
        found = cast("re.Match[str]", _HOST.fullmatch(host))
        name, given = found["name"].removesuffix("."), found["port"]
        is_direct = port in _DEFAULT_PORTS if given is None else given == port
        if not is_direct or not name or is_loopback(name) or name in self._allowed or "*" in self._allowed:
            return False
        try:
            ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return True
        return False


def _is_proxied(scope: Scope) -> bool:
    # The script of a page can give a plain request any of these fields, once its site is of the same origin.
    return scope["type"] == "websocket" and any(field in FORWARDING for field, _ in scope["headers"])


def _refusal(host: str, listener: str) -> Refusal:
    advice = (
        f"host {printable(host)} is no name of this machine, and {listener} was reached directly: a page of another "
        "site may have made its name resolve to 127.0.0.1 (DNS rebinding); if the name is yours, write "
        "App(allowed_hosts=[...]) with it, or allowed_origins=[...] on the route"
    )
    return Refusal("host", 403, CloseCode.POLICY, advice=advice)


def checked_hosts(hosts: Iterable[str]) -> frozenset[str]:
    """Return host names as requests are compared with them.

    Raises:
        TypeError: `hosts` is no list of strings.
        ValueError: One of them is no host name, or has a port.
    """
    names = texts("allowed_hosts", hosts, "myapp.test")
    for name in names:
        if name != "*" and not _NAME.fullmatch(name):
            raise ValueError(
                f"allowed_hosts holds {name!r}, which is no host name: write it without scheme, port and path, such as "
                "'myapp.test', or '*' for every name"
            )
    return frozenset(name.lower().removesuffix(".") for name in names)
