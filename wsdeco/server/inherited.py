"""Sockets that another program has opened: systemd by its protocol (sd_listen_fds(3)), or who names a descriptor."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from wsdeco.reasons import ServerError

__all__ = ["activated_descriptors", "socket_of"]

_FIRST: Final = 3
"""SD_LISTEN_FDS_START."""

_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def activated_descriptors() -> Sequence[int]:
    """Return the descriptors that systemd has opened for this process, which become its own, if it has opened any.

    As sd_listen_fds(3) does, it forgets the variables, so that no program which this one starts takes them for its own.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return ()
    count = os.environ.get("LISTEN_FDS", "")
    for name in _VARIABLES:
        os.environ.pop(name, None)
    descriptors = range(_FIRST, _FIRST + int(count)) if count.isdecimal() else range(0)
    for each in descriptors:
        with suppress(OSError):
            os.set_inheritable(each, False)
    return descriptors


def socket_of(descriptor: int, name: str) -> socket.socket:
    """Return the socket of a descriptor, which owns it from now on.

    Args:
        descriptor: The descriptor.
        name: What the error calls it.

    Raises:
        ServerError: It is no socket that can listen.
    """
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise ServerError(f"{name} is no socket: {os.strerror(exc.errno or 0)}") from exc
    fault = _fault(listener)
    if fault:
        listener.close()
        raise ServerError(f"{name} is no socket that can listen for connections: {fault}")
    return listener


def _fault(listener: socket.socket) -> str:
    if listener.type != socket.SOCK_STREAM:
        return "it is not of type SOCK_STREAM"
    with suppress(OSError):
        listener.getpeername()
        return "it is a connection (write Accept=no in the unit of systemd)"
    name = listener.getsockname()
    is_bound = bool(name) if isinstance(name, str | bytes) else name[1] != 0
    return "" if is_bound else "it has no address"
