"""The messages with types of a client: written as the peer of a handler writes them, and read as it reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import Match
from starlette.types import ASGIApp, Scope

from wsdeco.channels.data import Data
from wsdeco.definition.base import hooks_of
from wsdeco.routing.application import Application, registry_of

if TYPE_CHECKING:
    from wsdeco.typed.codecs import Format
    from wsdeco.typed.writer import Writer

__all__ = ["Forms"]


class Forms:
    """What the messages of one connection look like on the wire.

    Args:
        app: The app. If it is one of wsdeco, the annotations of the handler on the path decide, and its codec.
        scope: The handshake.

    Raises:
        TypeError: The library for messages with types is not installed.
    """

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        try:
            from wsdeco.typed.codecs import format_of  # noqa: PLC0415 - messages with types need an extra
            from wsdeco.typed.writer import Writer  # noqa: PLC0415 - as above
        except ImportError as exc:
            raise TypeError(
                "it is neither str nor bytes: for messages with types, pip install 'wsdeco[typed]'"
            ) from exc
        message, reply, codec = _annotations(app, scope)
        self._wire: Format = format_of(codec or "json")
        self._theirs: Writer = Writer(message, self._wire)
        self._replies: Writer = Writer(reply, self._wire)

    def sent(self, message: object) -> Data:
        """Return the frame of a message to the handler."""
        return self._theirs.write(message)

    def is_form_of(self, frame: Data, message: object) -> bool:
        """Return whether a frame of the handler holds this message."""
        wire = self._wire
        if not wire.fits(frame):
            return False
        expected = self._replies.write(message)
        try:
            found = wire.plain(wire.load(frame))
        except ValueError:
            return False
        return bool(found == wire.plain(wire.load(expected)))

    def read(self, frame: Data, kind: type[Any]) -> Any:
        """Return the message in a frame of the handler.

        Raises:
            AssertionError: It is not of the type `kind`.
        """
        from wsdeco.typed.reader import Invalid, Reader  # noqa: PLC0415 - messages with types need an extra

        try:
            return Reader(kind, self._wire).read(frame, is_answer=True)[0]
        except Invalid as fault:
            raise AssertionError(
                f"expected a message of {kind.__name__}, received {frame!r}: {fault.message} at {fault.path}"
            ) from None


def _annotations(app: object, scope: Scope) -> tuple[object, object, Any]:
    if isinstance(app, Application):
        for each in registry_of(app).registered():
            matches = any(route.matches(scope)[0] is Match.FULL for route in each.routes)
            if matches and each.info.config is not None and isinstance(each.target, type):
                hooks = hooks_of(each.target)
                return hooks.message, hooks.reply, each.info.config.codec
    return None, None, None
