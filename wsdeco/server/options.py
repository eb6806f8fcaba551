"""From the arguments of `App.run` to a server: which of uvicorn's options have a meaning here, and what they become."""

from __future__ import annotations

import inspect
import ssl
import sys
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.config import LOG_LEVELS

from wsdeco.reasons import BackplaneError, ServerError
from wsdeco.routing.application import Application, rooms_of
from wsdeco.server.listen import check_address
from wsdeco.server.own import OwnOptions
from wsdeco.server.serving import Server
from wsdeco.values import count, nearest, seconds

__all__ = ["check_options", "make_server"]

_UVICORN_MAX_SIZE: Final = 16 * 1024 * 1024
"""Largest message, in bytes, if functions and mounted apps have limits of their own."""

_COMMAND_LINE: Final = (
    "write `uvicorn module:ws --ws wsdeco.protocol:WebSocketProtocol --{}` in a shell, with the name of your module"
)

_OTHERWISE: Final[dict[str, str]] = {
    "app": "the app is the one that run() is called on",
    "factory": "the app is the one that run() is called on",
    "interface": "the app is the one that run() is called on",
    "reload_delay": _COMMAND_LINE.format("reload --reload-delay 1"),
    "reload_dirs": _COMMAND_LINE.format("reload --reload-dir src"),
    "reload_excludes": _COMMAND_LINE.format("reload --reload-exclude tests"),
    "reload_includes": _COMMAND_LINE.format("reload --reload-include '*.html'"),
    "timeout_worker_healthcheck": "a worker is replaced when its process ends, and asked for nothing before",
    "http": "run() chooses the HTTP implementation; for another, " + _COMMAND_LINE.format("http h11"),
    "http2": "WebSocket connections need HTTP/1.1; for HTTP/2, put a proxy in front",
    "h11_max_incomplete_event_size": "the head of a request has 64 KiB at most",
    "lifespan": "decorate start-up and shutdown with @ws.lifespan",
    "ws": "run() chooses the WebSocket implementation; for another, write `uvicorn module:ws --ws wsproto` in a shell",
    "ws_max_queue": "set max_inbox=... on the handler",
}
"""Options of uvicorn that have no meaning here, and what to write instead."""


_OF_HANDLERS: Final[dict[str, str]] = {
    "ws_max_size": "set max_message_size=... on the handler",
    "ws_per_message_deflate": "set compression=True on the handler",
}
"""Options that reach functions and mounted apps alone, and what to write if there are handlers only."""

_GRACE: Final = "timeout_graceful_shutdown"

_NEEDS_CERTIFICATE: Final = [
    "ssl_keyfile",
    "ssl_keyfile_password",
    "ssl_version",
    "ssl_cert_reqs",
    "ssl_ca_certs",
    "ssl_ciphers",
]


def check_options(host: object, port: object, workers: object, options: dict[str, Any]) -> None:
    """Refuse arguments of `App.run` that cannot be used.

    Raises:
        TypeError: One of them has the wrong type, or is unknown or has no meaning here.
        ValueError: One of them is out of its range.
    """
    check_address(host, port)
    checked = count("workers", workers)
    _check_options(options)
    own = OwnOptions.taken_from(options)[0]
    own.check_workers(checked)
    own.check_place(host, port)


def _check_options(options: dict[str, Any]) -> None:
    parameters = {*inspect.signature(uvicorn.Config).parameters, *OwnOptions.names()}
    meaningful = sorted(parameters - set(_OTHERWISE) | {"host", "port", "background", "workers"})
    for name in options:
        if name in _OTHERWISE:
            raise TypeError(f"run() has no option {name!r}: {_OTHERWISE[name]}")
        if name not in parameters:
            meant = nearest(name, meaningful)
            hint = f"did you mean {meant!r}?" if meant else "it takes those of uvicorn.Config"
            raise TypeError(f"run() has no option {name!r}: {hint}")
    level = options.get("log_level")
    if isinstance(level, str) and level.lower() not in LOG_LEVELS:
        raise ValueError(f"log_level must be one of {', '.join(map(repr, LOG_LEVELS))}, not {level!r}")
    if options.get("loop", "auto") not in {"auto", "asyncio"}:
        raise ValueError(f"loop must be 'auto' (uvloop where it is installed) or 'asyncio', not {options['loop']!r}")
    if options.get(_GRACE) is not None:
        seconds(_GRACE, options[_GRACE])


def make_server(app: Application, host: str, port: int, options: dict[str, Any]) -> Server:
    """Return a server that is ready to listen, made of arguments that `check_options` has let pass.

    Raises:
        ServerError: The app has nothing to serve, or what an option or the environment names cannot be used.
    """
    if not app.app.routes:
        raise ServerError("no handler is registered: decorate a class with @ws.handler('/ws') first")
    try:
        rooms_of(app).find_backplane()
    except BackplaneError as exc:
        raise ServerError(str(exc)) from exc
    _check_effect(app, options)
    # Imported and not named, so that what packs a program (PyInstaller) sees them.
    from wsdeco.http import HttpProtocol  # noqa: PLC0415 - only who serves by run() needs it
    from wsdeco.observe.logs import log_config, watch  # noqa: PLC0415 - as above
    from wsdeco.protocol import WebSocketProtocol  # noqa: PLC0415 - as above

    own, options = OwnOptions.taken_from(options)
    defaults: dict[str, Any] = {
        "log_level": "warning",
        "ws_per_message_deflate": False,
        "log_config": log_config(own.log_format),
    }
    if sys.stdout is None or sys.stdout.closed:
        # uvicorn asks the stream whether it shows colours.
        defaults["use_colors"] = False
    if options.get("ssl_ca_certs"):
        # uvicorn's default asks no client for a certificate, and these would do nothing.
        defaults["ssl_cert_reqs"] = ssl.CERT_REQUIRED
    fixed: dict[str, Any] = {
        "http": HttpProtocol,
        "ws": WebSocketProtocol,
        "ws_max_size": _largest_message(app, options),
        "workers": 1,
        "lifespan": "on",
    }
    if options.get(_GRACE) is not None:
        fixed[_GRACE] = seconds(_GRACE, options[_GRACE])
    try:
        config = uvicorn.Config(app, host, port, interface="asgi3", **defaults | options | fixed)
    except Exception as exc:
        if "log_config" not in options:
            raise
        # Several libraries read the file; whichever fails, the file cannot be used.
        raise ServerError(f"log_config={options['log_config']!r} cannot be used: {type(exc).__name__}: {exc}") from exc
    try:
        _check_files(options)
        config.load()
    except OSError as exc:
        raise ServerError(f"TLS cannot be set up with {_tls_options(options)}: {exc}") from exc
    watch(app, config, is_shown="log_config" not in options)
    return Server(app, config, own)


def _check_effect(app: Application, options: dict[str, Any]) -> None:
    """Refuse options that would do nothing."""
    if all(info.config is not None for info in app.route_infos) and len(app.app.routes) == len(app.route_infos):
        for name, otherwise in _OF_HANDLERS.items():
            if name in options:
                raise TypeError(f"run() has no option {name!r} for handlers: {otherwise}")
    given = [name for name in _NEEDS_CERTIFICATE if options.get(name) is not None]
    if given and not options.get("ssl_certfile") and not options.get("ssl_context_factory"):
        raise ServerError(f"TLS cannot be set up with {', '.join(given)}: ssl_certfile, the certificate, is missing")
    if options.get("ssl_cert_reqs") and not options.get("ssl_ca_certs") and not options.get("ssl_context_factory"):
        raise ServerError("ssl_cert_reqs asks clients for certificates: name who issues them in ssl_ca_certs")


def _largest_message(app: Application, options: dict[str, Any]) -> int:
    configs = [info.config for info in app.route_infos if info.config is not None]
    sizes = [config.max_message_size for config in configs]
    if len(app.app.routes) > len(configs):
        sizes.append(options.get("ws_max_size", _UVICORN_MAX_SIZE))
    return max(sizes)


def _check_files(options: dict[str, Any]) -> None:
    files = {name: options[name] for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs") if options.get(name)}
    for name, file in files.items():
        if not Path(file).is_file():
            raise OSError(f"{name} names no file")


def _tls_options(options: dict[str, Any]) -> str:
    given = [f"{name}={str(value)!r}" for name, value in options.items() if name.endswith(("file", "_certs"))]
    return ", ".join(given)
