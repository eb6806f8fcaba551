"""The options of `App.run` that uvicorn does not have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final

from wsdeco.server.local import DEFAULT_PERMISSIONS, check_path, check_permissions
from wsdeco.values import Check, count, seconds, within

__all__ = ["DEFAULT_PLACE", "OwnOptions"]

DEFAULT_PLACE: Final = ("127.0.0.1", 8000)
"""Host and port by default."""

_LOG_FORMATS: Final = ("text", "json")

_CHECKS: Final[dict[str, Check]] = {
    "fd": partial(within, least=0),
    "drain_timeout": seconds,
    "drain_delay": seconds,
    "worker_timeout": seconds,
    "max_connections_per_worker": count,
}


@dataclass(frozen=True, slots=True)
class OwnOptions:
    """What `App.run` takes besides the options of uvicorn, or understands in another way.

    Attributes:
        uds: Path of the Unix socket to listen on, in the place of host and port.
        uds_permissions: Those of its file, such as 0o666; `None` for 0o660.
        fd: Descriptor of a socket that another program has opened, in the place of host and port.
        log_format: `"text"` or `"json"`, for all that the server prints.
        drain_timeout: Seconds over which the clients are told to leave, in random order; 0 for all at once.
        drain_delay: Seconds before that in which new handshakes get 503, so that a load balancer notices.
        worker_timeout: Seconds after which a worker process whose event loop hangs is replaced; `None` for never.
        max_connections_per_worker: WebSocket connections after which a worker process is replaced; `None` for no limit.
        reload: Serve in a worker process, which is replaced as soon as a Python file below the current folder changes.
    """

    uds: str | None = None
    uds_permissions: int | None = None
    fd: int | None = None
    log_format: str = "text"
    drain_timeout: float = 0.0
    drain_delay: float = 0.0
    worker_timeout: float | None = None
    max_connections_per_worker: int | None = None
    reload: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TypeError: One of them has the wrong type.
            ValueError: One of them is out of its range, or has no meaning beside another one.
        """
        if self.uds is not None:
            object.__setattr__(self, "uds", check_path(self.uds))
        for each in fields(self):
            value: object = getattr(self, each.name)
            if each.name in _CHECKS and value is not each.default:
                object.__setattr__(self, each.name, _CHECKS[each.name](each.name, value))
        self._check_socket()
        if self.log_format not in _LOG_FORMATS:
            raise ValueError(f"log_format must be one of {', '.join(map(repr, _LOG_FORMATS))}, not {self.log_format!r}")

    def _check_socket(self) -> None:
        if self.fd is not None and self.uds is not None:
            raise ValueError("uds and fd are two places to listen: write one of them")
        if self.uds_permissions is not None:
            check_permissions(self.uds_permissions)
            if self.uds is None:
                raise ValueError("uds_permissions are those of a Unix socket: name it in uds")

    def check_place(self, host: object, port: object) -> None:
        """Refuse a host and a port if the server listens on something else.

        Raises:
            ValueError: They are not those by default.
        """
        for name in ("uds", "fd"):
            if getattr(self, name) is not None and (host, port) != DEFAULT_PLACE:
                raise ValueError(f"{name} takes the place of host and port: leave them out")

    @property
    def permissions(self) -> int:
        """The permissions of the file of the Unix socket."""
        return DEFAULT_PERMISSIONS if self.uds_permissions is None else self.uds_permissions

    def check_workers(self, workers: int) -> None:
        """Refuse options that do nothing without worker processes.

        Raises:
            ValueError: One of them is given.
        """
        for name in ("worker_timeout", "max_connections_per_worker"):
            if getattr(self, name) is not None and workers == 1 and not self.reload:
                raise ValueError(f"{name} is for worker processes: set workers to 2 or more")

    @classmethod
    def names(cls) -> set[str]:
        """Return the names of the options."""
        return {each.name for each in fields(cls)}

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> tuple[OwnOptions, dict[str, Any]]:
        """Return the own options, and those that are uvicorn's.

        Raises:
            TypeError: As for the class.
            ValueError: As for the class.
        """
        names = cls.names()
        own = {name: value for name, value in options.items() if name in names}
        return cls(**own), {name: value for name, value in options.items() if name not in names}
