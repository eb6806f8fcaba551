"""The threads in which hooks run what blocks (`asyncio.to_thread`), also while the interpreter ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

__all__ = ["HookThreads"]

P = ParamSpec("P")
T = TypeVar("T")

_REFUSES: Final = "cannot schedule new futures"
"""What a pool says that is over, and every one as soon as the main thread has ended."""


class HookThreads(ThreadPoolExecutor):
    """A pool that takes work to the end.

    A server beside the main thread, as in a notebook, ends behind it, and `concurrent.futures` takes no more work then.
    But an `on_disconnect` that saves something is called exactly then.

    Args:
        name: How the names of the threads begin.
    """

    def __init__(self, name: str) -> None:
        super().__init__(thread_name_prefix=name)
        self._name = name
        self._is_over = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work."""
        self._is_over = True
        super().shutdown(wait, cancel_futures=cancel_futures)

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `function` in a thread, or at once if the interpreter has begun to end and starts no more of them."""
        try:
            return super().submit(function, *args, **kwargs)
        except RuntimeError as exc:
            if self._is_over or _REFUSES not in str(exc):
                raise
        future: Future[T] = Future()
        work = (future, function, args, kwargs)
        try:
            threading.Thread(target=_work, args=work, name=f"{self._name}_last", daemon=True).start()
        except RuntimeError:
            _work(*work)
        return future


def _work(future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function(*args, **kwargs))
    except BaseException as exc:
        future.set_exception(exc)
