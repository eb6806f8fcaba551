"""The AsyncAPI 3.1 document of an app: a channel for each path, and an operation for each direction of it.

https://www.asyncapi.com/docs/reference/specification/v3.1.0, with the WebSocket bindings of version 0.1.0.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import compile_path

from wsdeco.config import ConnectionConfig
from wsdeco.describe.messages import Message, Messages, messages_of
from wsdeco.routing.registry import Registered, Registry

__all__ = ["asyncapi"]

_DEFAULT_VERSION: Final = "0.0.0"
"""What an app without a `__version__` has: the document must have one."""

_ALWAYS: Final = {
    "1000": "normal end",
    "1002": "protocol error",
    "1007": "text that is no UTF-8",
    "1011": "a hook has failed",
    "1012": "the server shuts down",
}
"""Close codes that every route may end with."""


def asyncapi(registry: Registry, server: str | None = None) -> dict[str, Any]:
    """Return the AsyncAPI document of an app, made of what JSON has.

    Args:
        registry: What is registered in the app.
        server: The address of the server, such as `wss://example.com/live`; by default the document names none.
    """
    served = [each for each in registry.registered() if each.info.kind != "http"]
    document: dict[str, Any] = {"asyncapi": "3.1.0", "info": _info(served), "defaultContentType": "application/json"}
    if server is not None:
        document["servers"] = {"server": _server(server)}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    found, schemas = messages_of(served)
    for each, messages in zip(served, found, strict=True):
        key = _key(compile_path(each.info.path)[1], channels)
        channels[key] = _channel(each, messages)
        operations |= _operations(key, each, messages)
    document |= {"channels": channels, "operations": operations}
    if schemas:
        document["components"] = {"schemas": schemas}
    return document


def _info(served: Iterable[Registered]) -> dict[str, Any]:
    name = next((getattr(each.target, "__module__", "") for each in served), "")
    module = sys.modules.get(name)
    package = sys.modules.get(name.partition(".")[0])
    file = getattr(module, "__file__", None)
    title = Path(file).stem if name == "__main__" and file else name
    info = {"title": title or "wsdeco", "version": str(getattr(package, "__version__", _DEFAULT_VERSION))}
    return info | _described(getattr(module, "__doc__", None))


def _server(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    found = {"host": parts.netloc, "protocol": parts.scheme}
    return found | ({"pathname": parts.path} if parts.path.strip("/") else {})


def _key(path: str, taken: Iterable[str]) -> str:
    # Only word characters, since the name becomes part of references.
    word = "_".join(re.findall(r"[A-Za-z0-9]+", path)) or "root"
    key, number = word, 1
    while key in taken:
        number += 1
        key = f"{word}_{number}"
    return key


def _channel(each: Registered, messages: Messages) -> dict[str, Any]:
    path = each.info.path
    _, address, convertors = compile_path(path)
    channel: dict[str, Any] = {"address": address, "title": each.info.name, "x-path": path} | _described(
        _own_docstring(each.target)
    )
    channel["messages"] = {message.name: _message(message) for message in (*messages.received, *messages.sent)}
    if convertors:
        channel["parameters"] = {name: {"x-type": _kinds()[type(found)]} for name, found in convertors.items()}
    binding: dict[str, Any] = {"method": "GET", "bindingVersion": "0.1.0"}
    config = each.info.config
    if config is not None:
        if config.subprotocols:
            offered = {"type": "string", "enum": list(config.subprotocols)}
            binding["headers"] = {"type": "object", "properties": {"Sec-WebSocket-Protocol": offered}}
        channel["x-limits"] = {field.name: _plain(getattr(config, field.name)) for field in fields(config)}
        channel["x-close-codes"] = _close_codes(config)
        channel["x-refusals"] = _refusals(config)
    return channel | {"bindings": {"ws": binding}}


def _kinds() -> dict[type, str]:
    # Applications may add convertors of their own.
    return {type(convertor): name for name, convertor in reversed(CONVERTOR_TYPES.items())}


def _operations(key: str, each: Registered, messages: Messages) -> dict[str, Any]:
    operations: dict[str, Any] = {}
    for action, kinds in (("receive", messages.received), ("send", messages.sent)):
        if kinds:
            references = [{"$ref": f"#/channels/{key}/messages/{kind.name}"} for kind in kinds]
            operations[f"{action}_{key}"] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{key}"},
                "messages": references,
            }
    hook: object = getattr(each.target, "on_message", None)
    if messages.received and hook is not None:
        operations[f"receive_{key}"] |= _described(hook.__doc__)
    return operations


def _message(message: Message) -> dict[str, Any]:
    made = {"name": message.name, "contentType": message.content_type, "payload": message.payload}
    return made | _described(message.description)


def _close_codes(config: ConnectionConfig) -> dict[str, str]:
    codes = _ALWAYS | {"1009": f"a message of more than {config.max_message_size} bytes"}
    limits = [
        f"{getattr(config, name):g} s {what}"
        for name, what in (("idle_timeout", "without a message"), ("max_connection_duration", "of connection"))
        if getattr(config, name) is not None
    ]
    if limits:
        codes["1001"] = " or ".join(limits)
    policy = [f"more than {rate}" for rate in (config.message_rate, config.byte_rate) if rate is not None]
    if config.over_rate != "close":
        policy.clear()
    if config.first_message_timeout is not None:
        policy.append(f"no message for {config.first_message_timeout:g} s")
    if policy:
        codes["1008"] = " or ".join(policy)
    if config.slow_consumer == "close" or config.send_timeout is not None:
        codes["1013"] = "the client reads too slowly"
    return dict(sorted(codes.items()))


def _refusals(config: ConnectionConfig) -> dict[str, str]:
    refusals = {"500": "a hook has failed", "503": "the server shuts down, or the hook takes too long"}
    if config.max_connections is not None or config.max_connections_total is not None:
        refusals["503"] = "too many connections, or the server shuts down"
    if config.max_connections_per_client is not None:
        refusals["429"] = "too many connections of this client"
    if config.allowed_origins != "*":
        refusals["403"] = "the page comes from another origin"
    return dict(sorted(refusals.items()))


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(cast("tuple[object, ...]", value))
    # Values without a form in JSON are a codec of the user's, or a group of limits.
    is_plain = value is None or isinstance(value, str | int | float)
    return value if is_plain else type(value).__name__


def _own_docstring(target: object) -> str | None:
    # A base class is documented for itself, and a dataclass writes its signature if it has no docstring.
    text = vars(target).get("__doc__") if isinstance(target, type) else target.__doc__
    written = text is not None and not text.startswith(f"{getattr(target, '__name__', '')}(")
    return text if written else None


def _described(text: str | None) -> dict[str, Any]:
    return {"description": inspect.cleandoc(text)} if text else {}
