"""`wsdeco connect /ws`: a WebSocket client for the terminal, and for pipes."""

from __future__ import annotations

import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from wsdeco.origins import is_loopback
from wsdeco.reasons import printable

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

__all__ = ["command"]

_LOCAL: Final = "ws://127.0.0.1:8000"
"""Where `wsdeco run` serves unless it is told otherwise."""

_SCHEMES: Final = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}

_EXAMPLES: Final = """\
\b
examples:
  wsdeco connect /ws                       the server that `wsdeco run app.py` starts
  wsdeco connect localhost:9000/ws         another port; ws:// may be left out
  wsdeco connect wss://example.com/ws --header 'Authorization: Bearer 123'
  echo hello | wsdeco connect /ws          one message for each line, and the answers

\b
Exit status: 0 closed by you or with 1000; 1 cannot connect, or refused;
101 to 115 closed with 1001 to 1015; 120 closed with another code.
"""


@click.command("connect", short_help="Talk to a WebSocket.", epilog=_EXAMPLES)
@click.argument("url")
@click.option("-H", "--header", "headers", multiple=True, metavar="FIELD", help="'Name: value' for the handshake.")
@click.option("-s", "--subprotocol", "subprotocols", multiple=True, metavar="NAME", help="Subprotocol to offer.")
@click.option("--binary", is_flag=True, help="Send binary messages; from a pipe, all of it as one.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=1.0,
    metavar="SECONDS",
    help="How long to go on showing answers at the end of the input of a pipe.",
)
def command(url: str, headers: tuple[str, ...], subprotocols: tuple[str, ...], binary: bool, wait: float) -> None:
    """Send lines to a WebSocket as messages, and show what it sends.

    URL may leave out ws://; a path alone means the server on 127.0.0.1:8000. Ctrl-D ends.
    """
    from wsdeco.cli.conversation import Conversation  # noqa: PLC0415 - other commands need no client

    connection = _connect(_address(url), [_header(each) for each in headers], list(subprotocols))
    try:
        code, reason = Conversation(connection, binary=binary, wait=wait).run()
    except KeyboardInterrupt:
        # The status that a shell gives a program that Ctrl-C has ended.
        sys.exit(130)
    if code != 1000:
        said = f": {printable(reason)}" if reason else ""
        click.echo(f"Closed with {code}{said}", err=True)
    sys.exit(_status(code))


def _address(text: str) -> str:
    if "://" not in text:
        text = {"/": _LOCAL, ":": "ws://127.0.0.1"}.get(text[:1], "ws://") + text
    try:
        parts = urlsplit(text)
        scheme = _SCHEMES.get(parts.scheme.lower()) if parts.hostname and parts.port != 0 else None
    except ValueError:
        # The port is no number, or an address in brackets none.
        scheme = None
    if scheme is None:
        raise click.UsageError(
            f"{text!r} is no address of a WebSocket: write ws://host:port/path, or /path for the server on this machine"
        )
    return urlsplit(text)._replace(scheme=scheme, fragment="").geturl()


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"{text!r} is no header field: write 'Name: value'")
    return name.strip(), value.strip()


def _connect(url: str, headers: list[tuple[str, str]], subprotocols: list[Any]) -> ClientConnection:
    from websockets.exceptions import InvalidHandshake, InvalidStatus  # noqa: PLC0415
    from websockets.sync.client import connect  # noqa: PLC0415

    host = urlsplit(url).hostname or ""
    try:
        return connect(
            url,
            additional_headers=headers,
            subprotocols=subprotocols or None,
            max_size=None,
            proxy=None if is_loopback(host) else True,
        )
    except InvalidStatus as exc:
        status = exc.response.status_code
        body = (exc.response.body or b"").decode(errors="replace").strip()
        said = f": {printable(body)}" if body and body != _phrase(status) else ""
        raise SystemExit(f"{url} refuses the handshake with {status} {_phrase(status)}{said}") from None
    except ConnectionRefusedError:
        hint = ": start it, with `wsdeco run app.py` for instance" if url.startswith(_LOCAL) else ""
        raise SystemExit(f"no server listens at {url}{hint}") from None
    except (OSError, InvalidHandshake, ValueError) as exc:
        raise SystemExit(f"cannot connect to {url}: {printable(str(exc)) or type(exc).__name__}") from None


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else ""


def _status(code: int) -> int:
    if code == 1000:
        return 0
    return code - 900 if 1000 < code <= 1015 else 120
