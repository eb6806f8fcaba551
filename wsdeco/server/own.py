"""The options of `App.run` that uvicorn does not have."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Final

__all__ = ["OwnOptions"]

_LOG_FORMATS: Final = ("text", "json")


@dataclass(frozen=True, slots=True)
class OwnOptions:
    """What `App.run` takes besides the options of uvicorn.

    Attributes:
        log_format: `"text"` or `"json"`, for all that the server prints.
        drain_timeout: Seconds over which the clients are told to leave, in random order; 0 for all at once.
        drain_delay: Seconds before that in which new handshakes get 503, so that a load balancer notices.
        worker_timeout: Seconds after which a worker process whose event loop hangs is replaced; `None` for never.
        max_connections_per_worker: WebSocket connections after which a worker process is replaced; `None` for no limit.
        reload: Serve in a worker process, which is replaced as soon as a Python file below the current folder changes.
    """

    log_format: str = "text"
    drain_timeout: float = 0.0
    drain_delay: float = 0.0
    worker_timeout: float | None = None
    max_connections_per_worker: int | None = None
    reload: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: One of them is out of its range.
        """
        if self.log_format not in _LOG_FORMATS:
            raise ValueError(f"log_format must be one of {', '.join(map(repr, _LOG_FORMATS))}, not {self.log_format!r}")
        _check_seconds("drain_timeout", self.drain_timeout)
        _check_seconds("drain_delay", self.drain_delay)
        if self.worker_timeout is not None:
            _check_seconds("worker_timeout", self.worker_timeout)
        count: Any = self.max_connections_per_worker
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"max_connections_per_worker must be 1 or more, not {count!r}")

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
            ValueError: A value is out of its range.
        """
        names = cls.names()
        own = {name: value for name, value in options.items() if name in names}
        return cls(**own), {name: value for name, value in options.items() if name not in names}


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be 0 or more seconds and finite, not {value!r}")
