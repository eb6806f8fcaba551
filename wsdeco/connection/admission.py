"""Who is let in: what each handshake of a route passes, the slot first.

The answer is a refusal, or a ticket, which is given back when everything about the connection has ended, on every path.
"""

from __future__ import annotations

from typing import Final, Literal

from starlette.types import Scope

from wsdeco.config import ConnectionConfig
from wsdeco.connection.clients import client_of
from wsdeco.connection.hosts import Hosts
from wsdeco.connection.refusals import Refusal
from wsdeco.connection.slots import Slots
from wsdeco.origins import origin_allowed
from wsdeco.reasons import CloseCode, printable

__all__ = ["Admission", "Ticket"]

_FULL: Final = Refusal("full", 503, CloseCode.TRY_AGAIN_LATER, retry_after=1)
_TOO_MANY: Final = Refusal("client", 429, CloseCode.TRY_AGAIN_LATER, retry_after=1)


class Ticket:
    """What a connection holds as long as it lives: a slot, and a place of its client if these are counted."""

    __slots__ = ("_client", "_slots")

    def __init__(self, slots: Slots, client: str | None = None) -> None:
        self._slots = slots
        self._client = client

    def give_back(self) -> None:
        """Let another connection have it."""
        if self._client is not None:
            self._slots.give_back_for(self._client)
        self._slots.give_back()


class Admission:
    """Admits the handshakes of one route.

    Args:
        name: What the route is called in the log.
        slots: The slots of the route.
        config: Its limits.
        hosts: Looks at the Host of requests, which matters if the origin is trusted because the Host says the same.

    Attributes:
        name: What the route is called in the log.
        slots: The slots of the route.
    """

    def __init__(self, name: str, slots: Slots, config: ConnectionConfig, hosts: Hosts) -> None:
        self.name = name
        self.slots = slots
        self._config = config
        self._hosts = hosts
        # One object for all connections, unless each client is counted.
        self._ticket = Ticket(slots)

    def admit(self, scope: Scope) -> Ticket | Refusal:
        """Return what is to be given back when everything about the connection has ended, or why it is refused."""
        if not self.slots.take():
            return _FULL
        try:
            answer = self._judge(scope)
        except BaseException:
            self.slots.give_back()
            raise
        if isinstance(answer, Refusal):
            self.slots.give_back()
        return answer

    def _judge(self, scope: Scope) -> Ticket | Refusal:
        config = self._config
        refusal = self._hosts.refusal(scope) if config.allowed_origins is None else None
        refusal = refusal or _refusal_of_origin(scope, config.allowed_origins)
        if refusal is not None or config.max_connections_per_client is None:
            return refusal or self._ticket
        try:
            client = client_of(scope, config.client)
        except Exception as exc:
            return Refusal("failure", 500, CloseCode.INTERNAL_ERROR, failure=exc)
        is_free = self.slots.take_for(client, config.max_connections_per_client)
        return Ticket(self.slots, client) if is_free else _TOO_MANY


def _refusal_of_origin(scope: Scope, allowed: Literal["*"] | tuple[str, ...] | None) -> Refusal | None:
    """Return how the page of an origin that is not allowed is refused (RFC 6455, section 10.2); `None` lets in."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    sent = [value for name, value in headers if name == b"origin"]
    if not sent:
        return None
    origins = [value.decode("latin-1") for value in sent]
    host = next((value.decode("latin-1") for name, value in headers if name == b"host"), None)
    if origin_allowed(origins, host, scope["scheme"], allowed):
        return None
    advice = (
        f"origin {printable(', '.join(origins))} is not that of {scope['scheme']}://{printable(host or '')}; if "
        "its pages may connect, set allowed_origins=[...]; behind a proxy let it pass on the Host header of the "
        "browser (nginx: proxy_set_header Host $http_host), and where it ends TLS let the server trust "
        "its X-Forwarded-Proto"
    )
    return Refusal("origin", 403, CloseCode.POLICY, advice=advice)
