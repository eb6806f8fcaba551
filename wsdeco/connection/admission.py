"""Who is let in: the gates that each handshake of a route passes.

A gate looks at the scope and answers with a ticket, with a refusal, or with `None` if nothing has to be given back. A
ticket stands for those before it as well; the last one is given back when everything about the connection has ended, on
every path.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal, Protocol, cast

from starlette.types import Scope

from wsdeco.config import ConnectionConfig
from wsdeco.connection.clients import PerClient
from wsdeco.connection.tickets import Gate, Refusal, Ticket
from wsdeco.origins import origin_allowed
from wsdeco.reasons import CloseCode, printable

__all__ = ["Admission", "Share", "Slots"]


class Share(Protocol):
    """Counts the connections of this process among those of all worker processes."""

    def take(self, name: str, limit: int, /) -> bool:
        """Take a place of what is called `name`; return whether fewer than `limit` were taken in all processes."""
        ...

    def give_back(self, name: str, /) -> None:
        """Give one place of what is called `name` back."""


class Slots:
    """Counts the connections of a route against `max_connections` and `max_connections_total`; its own ticket.

    Attributes:
        share: Where those of all worker processes are counted; `None` if this process is the only one.
        limit: Connections at a time in this process; `None` for no limit.
        total: Connections at a time in all worker processes; `None` for no limit.
        name: What the route is called in all of them.
        taken: Connections of this process at present, handshakes in progress included.
        by_client: The same by client, if each of them is limited; only those that have any.
    """

    __slots__ = ("by_client", "limit", "name", "taken", "total")

    share: ClassVar[Share | None] = None

    def __init__(self, limit: int | None, total: int | None = None, name: str = "") -> None:
        self.limit: int | None = limit
        self.total: int | None = total
        self.name: str = name
        self.taken: int = 0
        self.by_client: dict[str, int] = {}

    def enter(self, scope: Scope) -> Ticket | Refusal:
        """Take a slot, if one is free."""
        return self if self.take() else _FULL

    def take(self) -> bool:
        """Take a slot; return whether one was free."""
        if self.limit is not None and self.taken >= self.limit:
            return False
        if self.total is not None and not self._take_of_total(self.total):
            return False
        self.taken += 1
        return True

    def give_back(self) -> None:
        """Give one slot back."""
        self.taken -= 1
        if self.total is not None and self.share is not None:
            self.share.give_back(self.name)

    def take_for(self, client: str, limit: int) -> bool:
        """Take one of the places of a client; return whether one was free."""
        taken = self.by_client.get(client, 0)
        if taken >= limit or (self.share is not None and not self.share.take(self._place_of(client), limit)):
            return False
        self.by_client[client] = taken + 1
        return True

    def give_back_for(self, client: str) -> None:
        """Give one place of a client back, and keep nothing of one that has none."""
        self.by_client[client] -= 1
        if not self.by_client[client]:
            del self.by_client[client]
        if self.share is not None:
            self.share.give_back(self._place_of(client))

    def _place_of(self, client: str) -> str:
        # A name that no route can have.
        return f"{self.name}\0{client}"

    def _take_of_total(self, total: int) -> bool:
        return self.taken < total if self.share is None else self.share.take(self.name, total)


_FULL: Final = Refusal("full", 503, CloseCode.TRY_AGAIN_LATER, retry_after=1)


class _Origins:
    """Lets in the pages of allowed origins, and all that is no page (RFC 6455, section 10.2)."""

    def __init__(self, config: ConnectionConfig) -> None:
        self._allowed: Literal["*"] | tuple[str, ...] | None = config.allowed_origins

    def enter(self, scope: Scope) -> Refusal | None:
        origins = _values(scope, b"origin")
        if not origins:
            return None
        host = next(iter(_values(scope, b"host")), None)
        if origin_allowed(origins, host, scope["scheme"], self._allowed):
            return None
        advice = (
            f"origin {printable(', '.join(origins))} is not that of {scope['scheme']}://{printable(host or '')}; if "
            "its pages may connect, set allowed_origins=[...]; behind a proxy let it pass on the Host header of the "
            "browser (nginx: proxy_set_header Host $http_host), and where it ends TLS let the server trust "
            "its X-Forwarded-Proto"
        )
        return Refusal("origin", 403, CloseCode.POLICY, advice=advice)


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


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
