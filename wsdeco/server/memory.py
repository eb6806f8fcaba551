"""How much memory the process has, as Linux says."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["STATM", "Memory"]

STATM: Final = Path("/proc/self/statm")
"""Where Linux says so, in pages."""


class Memory:
    """What `/proc` says of this process; a context manager.

    Args:
        statm: The file that says it.

    Its file stays open: without a descriptor left none could be opened, and the server has to go on.

    Raises:
        OSError: The system does not say so there.
    """

    def __init__(self, statm: Path = STATM) -> None:
        self._page_size = os.sysconf("SC_PAGE_SIZE")
        self._file = statm.open("rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def resident(self) -> int:
        """Bytes of it that are in RAM."""
        return int(os.pread(self._file.fileno(), 256, 0).split()[1]) * self._page_size
