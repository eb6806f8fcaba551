"""Python files are watched, and what runs them is told when they change (extra `reload`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wsdeco.reasons import ServerError

__all__ = ["watching"]

_DEBOUNCE: Final = 200
"""Milliseconds in which changes count as one: an editor writes a file in several steps."""

_POLL: Final = 50
"""Milliseconds after which a step without a change is one."""


@contextmanager
def watching(folder: Path, on_change: Callable[[str], None]) -> Generator[None]:
    """Call `on_change` in a thread, with the name of a file, as soon as Python files below `folder` have changed.

    Raises:
        ServerError: watchfiles is not installed.
    """
    try:
        from watchfiles import PythonFilter, watch  # noqa: PLC0415 - an extra
    except ImportError as exc:
        raise ServerError("reload needs watchfiles: pip install 'wsdeco[reload]'") from exc
    over = threading.Event()

    def run() -> None:
        for changes in watch(
            folder, watch_filter=PythonFilter(), debounce=_DEBOUNCE, step=_POLL, stop_event=over, rust_timeout=500
        ):
            on_change(min(Path(path).name for _, path in changes))

    thread = threading.Thread(target=run, name="wsdeco-reload", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
