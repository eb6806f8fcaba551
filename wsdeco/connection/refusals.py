"""How a handshake is turned away."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

__all__ = ["Refusal"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a handshake is refused, and how.

    Attributes:
        cause: One word, by which refusals are counted.
        status: The HTTP status.
        code: The close code, if the WebSocket was accepted before (by an endpoint that calls `handle_socket`).
        retry_after: Seconds after which it may be worth to try again.
        advice: What somebody who meets it can change; a warning in the log says so.
        failure: What the user's code raised that had to decide; an error in the log says so.
    """

    cause: str
    status: int
    code: int
    retry_after: int | None = None
    advice: str | None = None
    failure: BaseException | None = None

    @property
    def phrase(self) -> str:
        """All that the peer learns."""
        return HTTPStatus(self.status).phrase

    @property
    def headers(self) -> dict[str, str]:
        """The header fields of the response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
