"""How a peer learns that its connection ends: by half a close, and from a process that has forked."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

__all__ = ["half_close", "say_end"]

_children: list[bool] = []
"""Not empty once the process has forked, which servers hardly do; programs that `subprocess` starts do not count."""


def half_close(transport: asyncio.Transport) -> bool:
    """End the stream to the peer, and return whether its own is still to be read.

    To close a socket with unread bytes would reset the connection, and destroy what the peer has yet to read. TLS has
    no such half: there the transport is closed.
    """
    if not transport.can_write_eof():
        transport.close()
        return False
    try:
        transport.write_eof()
    except OSError:
        # The peer has reset the connection, and the loop has yet to notice.
        transport.abort()
        return False
    return True


def say_end(transport: asyncio.BaseTransport) -> None:
    """Let the peer see the end of a connection that is lost or closed.

    A child of a process that has forked holds the sockets as well, so that closing them here says nothing.

    Args:
        transport: The transport; its socket is still open.
    """
    if not _children:
        return
    opened = transport.get_extra_info("socket")
    # uvloop's stand-in for the socket has no `shutdown`.
    with suppress(OSError), socket.socket(fileno=os.dup(opened.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


def _note_child() -> None:
    if not _children:
        _children.append(True)


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_parent=_note_child)
