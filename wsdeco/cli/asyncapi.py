"""`wsdeco asyncapi app.py`: print the AsyncAPI document of an app."""

from __future__ import annotations

import json

import click

from wsdeco.cli.target import find_app
from wsdeco.routing.application import registry_of

__all__ = ["command"]


@click.command("asyncapi", short_help="Print the AsyncAPI document of an app.")
@click.argument("target")
@click.option("--server", metavar="URL", help="Address of the server, such as wss://example.com/live, to be named.")
def command(target: str, server: str | None) -> None:
    """Print the AsyncAPI 3.1 document of the App of a file or a module, in JSON.

    TARGET is app.py or package.module, with :name behind it if that has several apps.
    """
    from wsdeco.describe.document import asyncapi  # noqa: PLC0415 - it may have been left out

    app, _ = find_app(target)
    click.echo(json.dumps(asyncapi(registry_of(app), server), indent=2, ensure_ascii=False))
