"""Lines of the standard input as messages of a connection, and its messages as lines of the standard output."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import unicodedata
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import click
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

__all__ = ["AGAIN", "Conversation"]

_PROMPT: Final = "> "
_LONGEST: Final = 10_000
"""Characters of a message that a terminal shows; a pipe gets all."""
AGAIN: Final = 1.0
"""Seconds after which a thread that still waits for a line is interrupted once more."""


class Conversation:
    """Talks over one connection until one side ends."""

    def __init__(self, connection: ClientConnection, *, binary: bool, wait: float) -> None:
        """Talk over an open connection.

        Args:
            connection: The connection.
            binary: Whether to send binary messages.
            wait: Seconds that answers get at the end of the input, unless that is a terminal.
        """
        self._connection = connection
        self._binary = binary
        self._wait = wait
        self._from_terminal = sys.stdin.isatty()
        self._to_terminal = sys.stdout.isatty()
        self._reading = threading.Lock()
        self._is_reading = False
        self._has_enough = False
        self._over = threading.Event()
        self._left = threading.Event()

    def run(self) -> tuple[int, str]:
        """Talk; return the close code, 1000 if it was this side that ended, and the text with it.

        Raises:
            KeyboardInterrupt: Somebody has pressed Ctrl-C.
            UsageError: The input is no UTF-8.
        """
        with self._interruptible():
            return self._run()

    @contextmanager
    def _interruptible(self) -> Generator[None]:
        """Let the end of the connection interrupt the wait for a line, also if Ctrl-C is ignored.

        It is in a program that a shell has started in the background, whose user does not mean it.
        """
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            yield
            return

        def interrupt(_number: int, _frame: object) -> None:
            if self._over.is_set():
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _run(self) -> tuple[int, str]:
        receiving = threading.Thread(target=self._receive, name="receiving", daemon=True)
        receiving.start()
        try:
            self._send()
        except ConnectionClosed:
            # The thread that receives reads why the connection ended.
            self._over.wait()
        except KeyboardInterrupt:
            if not self._over.is_set():
                raise
        finally:
            self._left.set()
            self._is_reading = False
            ended = self._over.is_set()
            self._connection.close()
            receiving.join()
        if not ended or self._has_enough:
            return 1000, ""
        return self._connection.close_code or 1006, self._connection.close_reason or ""

    def _send(self) -> None:
        if self._read():
            for message in self._messages():
                self._is_reading = False
                self._connection.send(message)
                if not self._read():
                    break
        self._is_reading = False
        if not self._from_terminal:
            self._over.wait(self._wait)

    def _read(self) -> bool:
        """Return whether to wait for input: not if the connection has ended, as nothing would end the wait."""
        with self._reading:
            self._is_reading = not self._over.is_set()
        return self._is_reading

    def _messages(self) -> Iterator[str | bytes]:
        if self._from_terminal:
            yield from self._typed()
        elif self._binary:
            yield sys.stdin.buffer.read()
        else:
            yield from map(_text, sys.stdin.buffer)

    def _typed(self) -> Iterator[str | bytes]:
        # Gives line editing and history, on a Python that has them.
        with suppress(ImportError):
            __import__("readline")
        if self._to_terminal:
            agreed = self._connection.subprotocol
            _write(f"Connected{f', speaks {agreed}' if agreed else ''}; Ctrl-D ends\n".encode())
        with suppress(EOFError):
            while True:
                line = input(_PROMPT if self._to_terminal else "")
                yield line.encode() if self._binary else line

    def _receive(self) -> None:
        with suppress(ConnectionClosed):
            for message in self._connection:
                # What comes after that is read for the closing handshake behind it.
                if not self._has_enough:
                    self._try_to_show(message)
        self._end()

    def _try_to_show(self, message: str | bytes) -> None:
        try:
            self._show(message)
        except BrokenPipeError:
            # The reader of the pipe, `head` for instance, has left.
            _redirect_to_nowhere()
            self._has_enough = True
            self._end()

    def _end(self) -> None:
        with self._reading:
            self._over.set()
            is_reading, self._is_reading = self._is_reading, False
        if is_reading and hasattr(signal, "pthread_kill"):
            main = threading.main_thread().ident or 0
            # Nothing else ends a thread that waits for a line.
            signal.pthread_kill(main, signal.SIGINT)
            # It may have come just before the system call, and interrupted nothing.
            while not self._left.wait(AGAIN):
                signal.pthread_kill(main, signal.SIGINT)

    def _show(self, message: str | bytes) -> None:
        if self._to_terminal:
            self._show_above(f"< {_readable(message)}\n")
        elif isinstance(message, str):
            _write(message.encode() + b"\n")
        else:
            _write(message if self._binary else message + b"\n")

    def _show_above(self, text: str) -> None:
        # In place of the line that is being edited, which comes again below.
        readline: Any = sys.modules.get("readline")
        edited = _PROMPT + readline.get_line_buffer() if readline is not None and self._is_reading else ""
        _write((f"\r\033[K{text}{edited}" if self._from_terminal else text).encode())


def _text(line: bytes) -> str:
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as exc:
        raise click.UsageError(f"the input is no UTF-8, which text messages are ({exc}): add --binary") from None


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _readable(message: str | bytes) -> str:
    if isinstance(message, bytes):
        more = " …" if len(message) > 64 else ""
        return f"({len(message)} bytes) {message[:64].hex(' ')}{more}"
    text = message
    if len(message) <= _LONGEST and message[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            text = _folded(json.loads(message), shutil.get_terminal_size().columns - 2)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text) - _LONGEST} more characters)"
    return "".join(map(_visible, text))


def _folded(value: Any, width: int, indent: str = "") -> str:
    """Return JSON in as few lines as `width` allows."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= width or line[0] not in "{[":
        return line
    inner = f"{indent}  "
    if line[0] == "{":
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_folded(each, width, inner)}" for key, each in value.items()]
    else:
        parts = [_folded(each, width, inner) for each in value]
    return f"{line[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{line[-1]}"


def _visible(character: str) -> str:
    # Controls, which could command the terminal, and what turns the direction of text.
    if character in "\n\t" or not unicodedata.category(character).startswith("C"):
        return character
    return f"\\u{{{ord(character):x}}}"


def _redirect_to_nowhere() -> None:
    # The interpreter flushes its output at the end, and would fail again.
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)
