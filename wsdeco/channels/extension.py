"""What wsdeco's own protocol offers in the scope, to those who go through ASGI's `receive` and `send` as well."""

from __future__ import annotations

from typing import Any, Final

from starlette.types import Message, Scope

from wsdeco.config import ConnectionConfig
from wsdeco.reasons import Close, CloseCode, Unknown
from wsdeco.wire.contract import EXTENSION, Extension, Options

__all__ = ["end_of", "extension_of", "wire_options"]

_ONE_READ: Final = 256 * 1024
"""Bytes that an event loop may read from a connection at once."""


def extension_of(scope: Scope) -> Extension | None:
    """Return the extension, if the server speaks wsdeco's own protocol."""
    extensions: dict[str, Any] | None = scope.get("extensions")
    return None if extensions is None else extensions.get(EXTENSION)


def wire_options(config: ConnectionConfig) -> Options:
    """Return what the limits of a route mean on the wire."""
    return {
        "max_message_size": config.max_message_size,
        "compression": config.compression,
        "keepalive": (config.ping_interval, config.ping_timeout),
        # With higher limits, what one read brings is within what they allow to be held anyhow.
        "small_reads": config.max_message_size + 2 * config.max_outbox < _ONE_READ,
    }


def end_of(extension: Extension | None, message: Message) -> Close | Unknown | None:
    """Return why the connection has ended, with who began it, which `websocket.disconnect` does not say.

    `None` if that is not known, or `message` says something else, as one of a middleware may.
    """
    end = None if extension is None else extension.connection.end
    code = end.code if isinstance(end, Close) else CloseCode.ABNORMAL
    return end if message.get("code") == code else None
