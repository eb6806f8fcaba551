"""Serving in the main thread until a signal, and a process that ends whatever the hooks do then."""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Final

from wsdeco.server.garbage import collect_garbage_rarely
from wsdeco.server.serving import ANYIO_THREAD, Server, join_threads

__all__ = [
    "NOTICE",
    "REPEAT",
    "SECOND_SIGNAL",
    "end_process",
    "ending_signals_call",
    "say",
    "serve_in_main_thread",
    "waiting_for",
]

NOTICE: Final = 1.0
"""Seconds after which an end that a signal has begun says why the process is still there."""

REPEAT: Final = 0.3
"""Seconds in which a second signal is the same as the first."""

_FLUSH: Final = 0.5
"""Seconds that buffered output gets when the process is ended by force."""

_STDERR: Final = 2
"""The descriptor of standard error."""

_ENDING_SIGNALS: Final[list[signal.Signals]] = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
]
"""What ends a server: Ctrl-C, `kill`, and Ctrl-Break on Windows."""

SECOND_SIGNAL: Final = "a second signal ends the process at once; not every on_disconnect has run"
"""What is said when somebody has lost patience."""


def serve_in_main_thread(server: Server, watch: Callable[[Callable[[], None]], None] | None = None) -> None:
    """Serve until a signal has ended the server.

    Args:
        server: The server; it listens here, unless `watch` is given.
        watch: For a worker process, whose parent listens: called with what ends the server, from any thread.

    Raises:
        ServerError: It cannot start.
    """
    server.claim()
    with ExitStack() as stack:
        stack.callback(server.release)
        end = stack.enter_context(_end_on_signals(server))
        server.tick = stack.enter_context(collect_garbage_rarely())
        if watch is None:
            server.listen()
        else:
            watch(end)
        server.run()
        left = join_threads(server.thread_prefix, ANYIO_THREAD)
    if left:
        # The interpreter would wait for them for ever, and nothing can interrupt them.
        end_process(f"the process ends though hooks have left threads that still run: {', '.join(left)}", 0)


@contextmanager
def _end_on_signals(server: Server) -> Generator[Callable[[], None]]:
    """Let a first SIGINT or SIGTERM end `server`, and a second one, or an end that takes too long, the process.

    The context is what does the same as a first signal, for any thread. A server that has `on_end` is a worker process:
    its parent gets the signals of the terminal, tells it to end, and is the one to lose patience.
    """
    # Putting into a SimpleQueue is safe in a signal handler, whatever the handler has interrupted.
    received: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def end() -> None:
        server.should_exit = True
        received.put(True)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if server.on_end is None or number == signal.SIGTERM:
            end()

    watchdog = threading.Thread(target=_watch, args=(server, received), name="wsdeco-watchdog", daemon=True)
    watchdog.start()
    try:
        with ending_signals_call(on_signal):
            yield end
    finally:
        received.put(False)
        watchdog.join()


@contextmanager
def ending_signals_call(handler: Callable[[int, FrameType | None], object]) -> Generator[None]:
    """Have each signal that ends a server call `handler` in the block."""
    previous = {number: signal.signal(number, handler) for number in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)


def _watch(server: Server, received: queue.SimpleQueue[bool]) -> None:
    # A thread, because a hook may block the event loop and with it everything else that could notice.
    if not received.get():
        return
    limit = server.time_to_end
    is_over = _wait_for_end(server, received, limit)
    if is_over is None:
        with suppress(OSError):
            faulthandler.dump_traceback(_STDERR)
        end_process(f"the server has not ended within {limit:g} s, a hook blocks its event loop: the process ends", 1)
    elif not is_over:
        end_process(SECOND_SIGNAL, 1)


def _wait_for_end(server: Server, received: queue.SimpleQueue[bool], limit: float) -> bool | None:
    # Whether it has come; False is a second signal before that, and None neither within the limit.
    if server.on_end is not None:
        server.on_end(limit)
        over = time.monotonic() + limit
        while (signalled := _receive(received, max(0, over - time.monotonic()))) is True:
            pass
    else:
        # One Ctrl-C may come twice: from the terminal, and from a program around this one that passes it on.
        repeated_until = time.monotonic() + REPEAT
        while (signalled := _receive(received, min(NOTICE, limit))) is True and time.monotonic() < repeated_until:
            pass
        if signalled is None:
            say(waiting_for(limit))
            signalled = _receive(received, max(0, limit - NOTICE))
    return None if signalled is None else not signalled


def _receive(received: queue.SimpleQueue[bool], timeout: float) -> bool | None:
    try:
        return received.get(timeout=timeout)
    except queue.Empty:
        return None


def waiting_for(limit: float) -> str:
    """Return what is said of an end that takes up to `limit` seconds."""
    return f"waiting up to {limit:.0f} s for connections, hooks and requests; another Ctrl-C ends the process at once"


def end_process(line: str, status: int) -> None:
    """Say why, and end the process without waiting for any thread."""
    try:
        say(line)
    finally:
        os._exit(status)


def say(line: str) -> None:
    """Write a line to stderr, unless nobody reads it soon."""
    # What a stuck thread holds may be the lock of a buffer, or the end of a full pipe.
    writer = threading.Thread(target=_write, args=(line,), daemon=True)
    writer.start()
    writer.join(_FLUSH)


def _write(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a log may be what a stuck thread holds
    print(end="", flush=True)  # noqa: T201 - flush() of a stdout that may not exist
