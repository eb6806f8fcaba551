"""`wsdeco routes app.py`: print the paths of an app with their limits."""

from __future__ import annotations

import click

from wsdeco.cli.target import find_app

__all__ = ["command"]


@click.command("routes", short_help="Print the paths of an app with their limits.")
@click.argument("target")
def command(target: str) -> None:
    """Print what the App of a file or a module serves, with the limits that differ from the defaults.

    TARGET is app.py or package.module, with :name behind it if that has several apps.
    """
    app, _ = find_app(target)
    # Loads uvicorn, which a command line that is refused does not need.
    from wsdeco.server.banner import route_lines  # noqa: PLC0415

    click.echo("\n".join(route_lines(app)))
