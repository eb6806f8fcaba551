"""Who is let in: the gates that each handshake of a route passes.

A gate looks at the scope and answers with a ticket, with a refusal, or with `None` if nothing has to be given back. The
tickets are given back when everything about the connection has ended, on every path.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar, Final, Literal, Protocol

from starlette.types import Scope

from wsdeco.config import ConnectionConfig
from wsdeco.origins import origin_allowed
from wsdeco.reasons import CloseCode, printable

__all__ = ["Admission", "Gate", "Refusal", "Share", "Slots", "Ticket"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a handshake is refused, and how.

    Attributes:
        cause: One word, by which refusals are counted.
        status: The HTTP status.
        code: The close code, if the WebSocket was accepted before (by an endpoint that calls `handle_socket`).
        retry_after: Seconds after which it may be worth to try again.
        advice: What somebody who meets it can change; a warning in the log says so.
    """

    cause: str
    status: int
    code: int
    retry_after: int | None = None
    advice: str | None = None

    @property
    def phrase(self) -> str:
        """All that the peer learns."""
        return HTTPStatus(self.status).phrase

    @property
    def headers(self) -> dict[str, str]:
        """The header fields of the response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class Ticket(Protocol):
    """What a connection holds as long as it lives."""

    def give_back(self) -> None:
        """Let another connection have it."""


class Gate(Protocol):
    """One condition of being let in."""

    def enter(self, scope: Scope) -> Ticket | Refusal | None:
        """Return what is to be given back, if anything, or why the handshake is refused. Nothing is awaited."""
        ...


class Share(Protocol):
    """Counts the connections of this process among those of all worker processes."""

    def take(self, name: str, limit: int, /) -> bool:
        """Take a place of the route `name`; return whether fewer than `limit` were taken in all processes."""
        ...

    def give_back(self, name: str, /) -> None:
        """Give one place of the route `name` back."""


class Slots:
    """Counts the connections of a route against `max_connections` and `max_connections_total`; its own ticket.

    Attributes:
        share: Where those of all worker processes are counted; `None` where this process is the only one.
        limit: Connections at a time in this process; `None` for no limit.
        total: Connections at a time in all worker processes; `None` for no limit.
        name: What the route is called in all of them.
        taken: Connections of this process at present, handshakes in progress included.
    """

    __slots__ = ("limit", "name", "taken", "total")

    share: ClassVar[Share | None] = None

    def __init__(self, limit: int | None, total: int | None = None, name: str = "") -> None:
        self.limit = limit
        self.total = total
        self.name = name
        self.taken = 0

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


class _Tickets:
    """Several tickets as one."""

    __slots__ = ("_tickets",)

    def __init__(self, tickets: list[Ticket]) -> None:
        self._tickets = tickets

    def give_back(self) -> None:
        for ticket in self._tickets:
            ticket.give_back()


class Admission:
    """The gates of one route, in the order in which a handshake passes them. The slot comes first.

    Args:
        name: What the route is called in the log.
        slots: The slots of the route.
        config: Its limits.
        hosts: The gate of loopback listeners, which stands where the origin is trusted because the Host says the same.

    Attributes:
        name: What the route is called in the log.
        slots: The slots of the route.
    """

    def __init__(self, name: str, slots: Slots, config: ConnectionConfig, hosts: Gate) -> None:
        self.name = name
        self.slots = slots
        origins = _Origins(config)
        self._gates: tuple[Gate, ...] = (slots, hosts, origins) if config.allowed_origins is None else (slots, origins)

    def admit(self, scope: Scope) -> Ticket | Refusal:
        """Return what is to be given back when everything about the connection has ended, or why it is refused."""
        tickets: list[Ticket] = []
        for gate in self._gates:
            answer = gate.enter(scope)
            if isinstance(answer, Refusal):
                for ticket in tickets:
                    ticket.give_back()
                return answer
            if answer is not None:
                tickets.append(answer)
        return tickets[0] if len(tickets) == 1 else _Tickets(tickets)
