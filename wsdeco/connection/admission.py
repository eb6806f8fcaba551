"""Who is let in: the gates that each handshake of a route passes.

A gate looks at the scope and answers with a ticket, with a refusal, or with `None` if nothing has to be given back. A
ticket stands for those before it as well; the last one is given back when everything about the connection has ended, on
every path.
"""

from __future__ import annotations

from typing import Literal, cast

from starlette.types import Scope

from wsdeco.config import ConnectionConfig
from wsdeco.connection.clients import PerClient
from wsdeco.connection.slots import Slots
from wsdeco.connection.tickets import Gate, Refusal, Ticket
from wsdeco.origins import origin_allowed
from wsdeco.reasons import CloseCode, printable

__all__ = ["Admission"]


class _Origins:
    """Lets in the pages of allowed origins, and all that is no page (RFC 6455, section 10.2)."""

    def __init__(self, config: ConnectionConfig) -> None:
        self._allowed: Literal["*"] | tuple[str, ...] | None = config.allowed_origins

    def enter(self, scope: Scope) -> Refusal | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        sent = [value for name, value in headers if name == b"origin"]
        if not sent:
            return None
        origins = [value.decode("latin-1") for value in sent]
        host = next((value.decode("latin-1") for name, value in headers if name == b"host"), None)
        if origin_allowed(origins, host, scope["scheme"], self._allowed):
            return None
        advice = (
            f"origin {printable(', '.join(origins))} is not that of {scope['scheme']}://{printable(host or '')}; if "
            "its pages may connect, set allowed_origins=[...]; behind a proxy let it pass on the Host header of the "
            "browser (nginx: proxy_set_header Host $http_host), and where it ends TLS let the server trust "
            "its X-Forwarded-Proto"
        )
        return Refusal("origin", 403, CloseCode.POLICY, advice=advice)


class Admission:
    """The gates of one route, in the order in which a handshake passes them. The slot comes first.

    Args:
        name: What the route is called in the log.
        slots: The slots of the route.
        config: Its limits.
        hosts: The gate of loopback listeners, which is needed if the origin is trusted because the Host says the same.

    Attributes:
        name: What the route is called in the log.
        slots: The slots of the route.
    """

    def __init__(self, name: str, slots: Slots, config: ConnectionConfig, hosts: Gate) -> None:
        self.name = name
        self.slots = slots
        gates: list[Gate] = [slots, _Origins(config)]
        if config.allowed_origins is None:
            gates.insert(1, hosts)
        if config.max_connections_per_client is not None:
            gates.append(PerClient(slots, config.max_connections_per_client, config.client))
        self._gates = tuple(gates)

    def admit(self, scope: Scope) -> Ticket | Refusal:
        """Return what is to be given back when everything about the connection has ended, or why it is refused."""
        ticket: Ticket | None = None
        for gate in self._gates:
            answer = gate.enter(scope)
            if isinstance(answer, Refusal):
                if ticket is not None:
                    ticket.give_back()
                return answer
            if answer is not None:
                ticket = answer
        return cast(Ticket, ticket)
