"""The token of HTTP (RFC 9110, section 5.6.2): what names of header fields and of subprotocols are made of."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_token", "is_token_of_bytes"]

_PATTERN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"

_text: Final = re.compile(_PATTERN)
_bytes: Final = re.compile(_PATTERN.encode("ascii"))


def is_token(text: str) -> bool:
    """Return whether a text is a token."""
    return _text.fullmatch(text) is not None


def is_token_of_bytes(data: bytes) -> bool:
    """Return whether bytes from the wire, or for it, are a token."""
    return _bytes.fullmatch(data) is not None
