"""Unix sockets: their files, who may open them, and which servers have left theirs behind."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from wsdeco.reasons import ServerError

__all__ = ["DEFAULT_PERMISSIONS", "check_path", "check_permissions", "listen_on_path", "remove"]

DEFAULT_PERMISSIONS: Final = 0o660
"""Read and write for user and group.

uvicorn's 0o666 and gunicorn's 0o777 let every program of the machine in, past whatever the proxy in front checks. A
proxy of another user is given the group of the socket (`SupplementaryGroups=` of systemd), or other permissions.
"""

_LARGEST: Final = 0o777


def check_path(path: object) -> str:
    """Return the path of a Unix socket, absolute: a program may change its folder before it removes the file.

    Raises:
        TypeError: It is no path.
        ValueError: It is empty, or no file could have it.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"uds must be the path of a Unix socket such as '/run/chat/ws.sock', not {path!r}")
    name = os.fsdecode(cast("str | os.PathLike[str]", path))
    if not name or "\0" in name:
        raise ValueError(f"uds must be the path of a Unix socket such as '/run/chat/ws.sock', not {name!r}")
    return str(Path(name).absolute())


def check_permissions(permissions: object) -> None:
    """Refuse what are no permissions of a file.

    Raises:
        ValueError: They are not.
    """
    given: Any = permissions
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= _LARGEST:
        # 660 without the prefix is 0o1224.
        raise ValueError(f"uds_permissions must be permissions of a file, in octal as in 0o660, not {permissions!r}")


def listen_on_path(path: str, permissions: int, backlog: int) -> socket.socket:
    """Listen on a Unix socket, in the place of one that a server has left behind.

    Args:
        path: Its file, as `check_path` returns it.
        permissions: Those of the file.
        backlog: Connections that may wait to be accepted.

    Raises:
        ServerError: That is not possible; the text is one line.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ServerError(f"uds={path!r} needs Unix sockets, which this system does not have: write host and port")
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            listener.bind(path)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not _is_left_behind(path):
                raise
            Path(path).unlink()
            listener.bind(path)
        # Nobody can connect before listen(): the permissions that bind() chose are never those of an open door.
        Path(path).chmod(permissions)
        listener.listen(backlog)
    except OSError as exc:
        if listener.getsockname():
            Path(path).unlink()
        listener.close()
        raise ServerError(_explain(exc, path)) from exc
    return listener


def remove(path: str) -> None:
    """Remove the file of a Unix socket whose server has ended, unless another server has it already."""
    if _is_left_behind(path):
        with suppress(OSError):
            Path(path).unlink()


def _is_left_behind(path: str) -> bool:
    """Return whether it is the file of a Unix socket on which nobody listens."""
    try:
        if not Path(path).is_socket():
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            # With a full backlog it would wait.
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


def _explain(exc: OSError, path: str) -> str:
    if exc.errno == errno.EADDRINUSE:
        return (
            f"the Unix socket {path} is taken: stop the server that uses it, or name another path"
            if Path(path).is_socket()
            else f"{path} is a file, and no Unix socket: remove it, or name another path"
        )
    # Of a path that is too long Python knows no error number.
    return f"cannot listen on the Unix socket {path}: {os.strerror(exc.errno) if exc.errno else exc}"
