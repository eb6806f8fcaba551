"""What `App.run` prints when it serves: the address, and each route with the limits that differ from the defaults."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from types import FunctionType
from typing import Final, cast

from wsdeco.compiled import COMPILED, FORM
from wsdeco.config import DEFAULT_CONFIG, ConnectionConfig
from wsdeco.routing.application import Application, not_found_of
from wsdeco.routing.registry import RouteInfo
from wsdeco.server.serving import Server

__all__ = ["print_banner", "route_lines"]

_DURATIONS: Final = (("h", 3600), ("min", 60), ("s", 1))
_SIZES: Final = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))


def print_banner(server: Server, hint: str) -> None:
    """Print what `server` serves, and `hint`: how it ends."""
    lines = [_as_json(server)] if server.own.log_format == "json" else _as_text(server, hint)
    # The disk may be full, or the stream closed: no reason not to serve.
    with suppress(OSError, ValueError):
        try:
            print(*lines, sep="\n", flush=True)  # noqa: T201 - the address to open belongs on stdout
        except BrokenPipeError:
            _redirect_to_nowhere()
            raise


def _as_json(server: Server) -> str:
    routes = [{"kind": each.kind, "path": each.path, "name": each.name} for each in server.app.route_infos]
    urls = {"http": server.http_url, "ws": server.ws_url}
    return json.dumps({"event": "serving", **urls, "compiled": COMPILED, "routes": routes})


def _as_text(server: Server, hint: str) -> list[str]:
    addresses = dict.fromkeys((server.http_url, server.ws_url))
    if server.listeners.is_inherited:
        # Whoever has opened them may have opened several, of which URLs have the first.
        addresses |= dict.fromkeys(server.listeners.names[1:])
    lines = [f"Serving {' and '.join(addresses)}", ""]
    lines += [f"  {line}" for line in route_lines(server.app)]
    console = not_found_of(server.app).console_path
    if console is not None:
        lines += ["", f"Console: {server.http_url}{console}"]
    return [*lines, "", f"wsdeco is {FORM}.", hint]


def route_lines(app: Application) -> list[str]:
    """Return one line for each route of `app`: what it takes, its path, its name, and limits that are no defaults."""
    rows = [(info.kind, info.path, info.name, _limits(info)) for info in app.route_infos]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _redirect_to_nowhere() -> None:
    # The reader of this pipe is gone; the interpreter would flush it at its end, and fail.
    descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(descriptor, sys.stdout.fileno())
    finally:
        os.close(descriptor)


def _limits(info: RouteInfo) -> str:
    config = info.config
    if config is None:
        return ""
    names = [field.name for field in fields(ConnectionConfig)]
    changed = [name for name in names if getattr(config, name) != getattr(DEFAULT_CONFIG, name)]
    return ", ".join(f"{name}={_readable(name, getattr(config, name))}" for name in changed)


def _readable(name: str, value: object) -> str:
    match value:
        case bool():
            return str(value)
        case float():
            return _in_units(value, _DURATIONS)
        case int() if not name.startswith("max_connections"):
            return _in_units(value, _SIZES)
        case tuple():
            return "|".join(cast("tuple[str, ...]", value))
        case FunctionType():
            return value.__qualname__
        case _:
            return str(value)


def _in_units(value: float, units: Sequence[tuple[str, int]]) -> str:
    unit, size = next((each for each in units if value >= each[1] and value % each[1] == 0), units[-1])
    return f"{value / size:.15g} {unit}"
