"""What a message is, everywhere in the package."""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["Data"]

Data: TypeAlias = str | bytes
"""A message: `str` travels as a text frame, `bytes` as a binary one."""
