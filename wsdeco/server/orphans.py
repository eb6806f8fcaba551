"""A worker process ends with its parent also while it still imports the app, and so cannot read yet what tells it."""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

__all__ = ["WORKER_NAME", "end_with_parent", "is_worker", "leave_to_link"]

WORKER_NAME: Final = "wsdeco worker"
"""How the names of worker processes begin: it is known before anything else of them is."""

_left: Final = threading.Event()


def is_worker() -> bool:
    """Return whether this is a worker process."""
    # Imported in every process that another one has begun; most programs do without it.
    module = sys.modules.get("multiprocessing.process")
    return module is not None and module.current_process().name.startswith(WORKER_NAME)


def end_with_parent(tick: float = 0.5) -> None:
    """End this process, if it is a worker, when its parent has died, until `leave_to_link`.

    Args:
        tick: Seconds between two looks at the parent.
    """
    if is_worker():
        _left.clear()
        threading.Thread(target=_watch, args=(os.getppid(), tick), name="wsdeco-orphan", daemon=True).start()


def leave_to_link() -> None:
    """Stop looking: from now on the end of the parent is seen at once, and the end of the worker is an orderly one."""
    _left.set()


def _watch(parent: int, tick: float) -> None:
    while not _left.wait(tick):
        if os.getppid() != parent:
            os._exit(1)
