"""The program `wsdeco`: its commands, each imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NoReturn

import click

from wsdeco import __version__
from wsdeco.compiled import FORM

__all__ = ["main"]

_COMMANDS: Final = ("asyncapi", "connect", "routes", "run")
"""Names of the commands."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # Statements, as programs that pack a script with its modules see no other imports.
        match cmd_name:
            case "asyncapi":
                from wsdeco.cli.asyncapi import command  # noqa: PLC0415 - only the command that is asked for
            case "connect":
                from wsdeco.cli.connect import command  # noqa: PLC0415
            case "routes":
                from wsdeco.cli.routes import command  # noqa: PLC0415
            case "run":
                from wsdeco.cli.run import command  # noqa: PLC0415
            case _:
                return None
        return command


@click.group(
    "wsdeco",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
)
@click.version_option(__version__, message=f"%(prog)s %(version)s ({FORM})")
def _program() -> None:
    """Serve WebSocket handlers."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Do what a command line says.

    Args:
        arguments: The words behind the name of the program; by default those it was started with.

    Raises:
        SystemExit: Always: with 0 at the end of the server, 1 if it cannot start, 2 for what is written wrongly.
    """
    _program.main(arguments, "wsdeco")
