"""Memory that all worker processes of one parent share, without a name that somebody would have to remove."""

from __future__ import annotations

import mmap
import multiprocessing.reduction
import os
import tempfile
from typing import Any

from wsdeco.reasons import ServerError

__all__ = ["Memory"]


class Memory:
    """So many bytes. They reach a worker with the arguments of its process, and end with the last one.

    Attributes:
        bytes: The bytes.
        descriptor: The file behind them, whose locks hold between processes.
    """

    def __init__(self, size: int, descriptor: int) -> None:
        self.descriptor = descriptor
        self.bytes: mmap.mmap = mmap.mmap(descriptor, size)

    @classmethod
    def create(cls, size: int, purpose: str) -> Memory:
        """Return so many bytes, all 0.

        Args:
            size: How many.
            purpose: What the error says they are for.

        Raises:
            ServerError: The system has no room.
        """
        try:
            with tempfile.TemporaryFile(buffering=0) as file:
                # No holes: a process that writes into one ends if the disk is full.
                file.write(bytes(size))
                return cls(size, os.dup(file.fileno()))
        except OSError as exc:
            raise ServerError(f"there is no room for {purpose} over all workers: {exc}") from exc

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (len(self.bytes), multiprocessing.reduction.DupFd(self.descriptor))

    def close(self) -> None:
        """Let go of the memory."""
        self.bytes.close()
        os.close(self.descriptor)


def _attach(size: int, duplicate: Any) -> Memory:
    descriptor = duplicate.detach()
    # Programs that the worker starts have no business with it.
    os.set_inheritable(descriptor, False)
    return Memory(size, descriptor)
