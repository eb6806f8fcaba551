"""Connections of a process that has forked: a child holds their sockets as well, and closing them here says nothing."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

__all__ = ["say_end"]

_children: list[bool] = []
"""Not empty once the process has forked, which servers hardly do; programs that `subprocess` starts do not count."""


def say_end(transport: asyncio.BaseTransport) -> None:
    """Let the peer see the end of a connection that is lost or closed, also where a child holds the socket.

    Args:
        transport: The transport; its socket is still open.
    """
    if not _children:
        return
    opened = transport.get_extra_info("socket")
    # What stands for the socket in uvloop has no `shutdown`.
    with suppress(OSError), socket.socket(fileno=os.dup(opened.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


def _note_child() -> None:
    if not _children:
        _children.append(True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_note_child)
