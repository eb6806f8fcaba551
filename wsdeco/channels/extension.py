"""What wsdeco's own protocol offers in the scope, to those who go through ASGI's `receive` and `send` as well."""

from __future__ import annotations

from typing import Any, Final, Protocol

from starlette.types import Message, Receive, Scope, Send

from wsdeco.config import Compression, ConnectionConfig
from wsdeco.reasons import Close, CloseCode, Unknown

__all__ = ["EXTENSION", "WireConversation", "conversation_of", "end_of", "set_wire_options"]

EXTENSION: Final = "wsdeco"
"""The key of `scope["extensions"]` under which the protocol offers its conversation."""


class WireConversation(Protocol):
    """What is asked of the conversation: see `wsdeco.transport.asgi.Conversation`."""

    @property
    def end(self) -> Close | Unknown | None:
        """Why nothing more comes; `None` while something may come."""
        ...

    @property
    def last_activity(self) -> float:
        """When the last frame arrived that is not the answer to a ping of ours."""
        ...

    def set_options(
        self,
        *,
        max_message_size: int,
        compression: bool | Compression,
        keepalive: tuple[float | None, float | None],
        close_timeout: float,
    ) -> None:
        """Set what the connection is accepted with."""

    def yield_connection(self, receive: Receive, send: Send) -> Any:
        """Return the connection, if nothing stands between."""


def conversation_of(scope: Scope) -> WireConversation | None:
    """Return the conversation, if the server speaks wsdeco's own protocol."""
    extensions: dict[str, Any] | None = scope.get("extensions")
    return None if extensions is None else extensions.get(EXTENSION)


def set_wire_options(conversation: WireConversation, config: ConnectionConfig) -> None:
    """Let the wire keep the options of a route, whoever stands between it and the route."""
    conversation.set_options(
        max_message_size=config.max_message_size,
        compression=config.compression,
        keepalive=(config.ping_interval, config.ping_timeout),
        close_timeout=config.close_timeout,
    )


def end_of(conversation: WireConversation | None, message: Message) -> Close | Unknown | None:
    """Return why the connection has ended, with who began it, which `websocket.disconnect` does not say.

    `None` where that is not known, or `message` says something else, as one of a middleware may.
    """
    end = None if conversation is None else conversation.end
    code = end.code if isinstance(end, Close) else CloseCode.ABNORMAL
    return end if message.get("code") == code else None
