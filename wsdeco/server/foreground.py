"""Serving in the main thread until a signal, and a process that ends whatever the hooks do then."""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Final

from wsdeco.server.allocator import keep_pages
from wsdeco.server.garbage import collect_garbage_rarely
from wsdeco.server.serving import ANYIO_THREAD, Server, join_threads
from wsdeco.server.signals import ENDING_SIGNALS, handle_signal

__all__ = [
    "FLUSH",
    "NOTICE",
    "REPEAT",
    "SECOND_SIGNAL",
    "TERMINAL_SIGNALS",
    "briefly",
    "end_process",
    "ending_signals_call",
    "say",
    "serve_in_main_thread",
    "stacks",
    "waiting_for",
    "watch_end",
]

NOTICE: Final = 1.0
"""Seconds after which an end that a signal has begun says why the process is still there."""

REPEAT: Final = 0.3
"""Seconds in which a second signal is the same as the first."""

FLUSH: Final = 0.5
"""Seconds that buffered output gets when the process is ended by force."""

TERMINAL_SIGNALS: Final[list[signal.Signals]] = [
    getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)
]
"""What a terminal sends to all processes of a program."""

_HANGUP: Final = getattr(signal, "SIGHUP", None)

SECOND_SIGNAL: Final = "a second signal ends the process at once; not every on_disconnect has run"
"""What is said when somebody has lost patience."""


def serve_in_main_thread(server: Server) -> None:
    """Serve until a signal has ended the server, or the parent of this worker process says so.

    Args:
        server: The server; it listens here, unless it has a parent, which does.

    Raises:
        ServerError: It cannot start.
    """
    with ExitStack() as stack:
        stack.enter_context(server.claimed())
        end = stack.enter_context(_end_on_signals(server))
        server.ticks += [stack.enter_context(each()) for each in (collect_garbage_rarely, keep_pages)]
        parent = server.parent
        if parent is None:
            server.listen()
        else:
            server.listeners = parent.listeners
            server.on_start = parent.ready
            parent.obey(server, end)
        server.run()
        left = join_threads(server.thread_prefix, ANYIO_THREAD)
    if left:
        # The interpreter waits for such threads for ever, and nothing can interrupt them.
        end_process(f"the process ends though hooks have left threads that still run: {', '.join(left)}", 0)


@contextmanager
def _end_on_signals(server: Server) -> Generator[Callable[[], None]]:
    """Let a first SIGINT or SIGTERM end `server`, and a second one, or an end that takes too long, the process.

    The context is what does the same as a first signal, for any thread. A server that has a parent is in a worker
    process: the parent gets the signals of the terminal, tells it to end, and is the one to lose patience.
    """
    # Putting into a SimpleQueue is safe in a signal handler, whatever the handler has interrupted.
    received: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def end() -> None:
        server.should_exit = True
        received.put(True)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if server.parent is None or number == signal.SIGTERM:
            end()

    watchdog = threading.Thread(target=watch_end, args=(server, received), name="wsdeco-watchdog", daemon=True)
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
    # What nohup has set stays: the hangup of a terminal is not to end the server then.
    numbers = [each for each in ENDING_SIGNALS if each != _HANGUP or signal.getsignal(each) is not signal.SIG_IGN]
    previous = {number: handle_signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def watch_end(server: Server, received: queue.SimpleQueue[bool]) -> None:
    """End the process by force, if the end of `server` takes too long or a second signal comes.

    Args:
        server: The server.
        received: `True` for each signal that ends it, and `False` for its end.
    """
    # A thread: a hook that blocks the event loop blocks everything in it that could notice.
    if not received.get():
        return
    limit = server.time_to_end
    is_over = _wait_for_end(server, received, limit)
    if is_over is None:
        why = f"the server has not ended within {limit:g} s, a hook blocks its event loop: the process ends"
        end_process(f"{stacks()}{why}", 1)
    elif not is_over:
        end_process(SECOND_SIGNAL, 1)


def _wait_for_end(server: Server, received: queue.SimpleQueue[bool], limit: float) -> bool | None:
    # Returns True for the end, False for a second signal before it, and None for neither within the limit.
    if server.parent is not None:
        server.parent.ending(limit)
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


def stacks() -> str:
    """Return what all threads do at this moment."""
    # faulthandler stops all other threads while it writes, which into a full pipe takes for ever: so into a file.
    try:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def end_process(line: str, status: int) -> None:
    """Say why, and end the process without waiting for any thread."""
    try:
        say(line)
    finally:
        os._exit(status)


def say(line: str) -> None:
    """Write a line to stderr, unless nobody reads it soon."""
    briefly(_write, line)


def briefly(function: Callable[..., object], *arguments: object) -> None:
    """Call what writes to a stream or a log, in a last resort: without waiting for it long, or minding its failure."""

    def call() -> None:
        # A stream may be closed, its reader gone, or the log may be a program's own and raise.
        with suppress(Exception):
            function(*arguments)

    # A stuck thread may hold the lock of the buffer, or the pipe may be full: writing could block for ever.
    writer = threading.Thread(target=call, daemon=True)
    with suppress(RuntimeError, MemoryError):
        # RuntimeError says that the system has no room for a thread.
        writer.start()
        writer.join(FLUSH)


def _write(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a log may be what a stuck thread holds
    print(end="", flush=True)  # noqa: T201 - flush() of a stdout that may not exist
