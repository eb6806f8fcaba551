"""`wsdeco connect`: in a pipe, and in a terminal, which is a pseudo-terminal here."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import pytest
from starlette.exceptions import HTTPException
from websockets.exceptions import ConnectionClosedOK

from tests.support.checkout import CHECKOUT
from tests.support.programs import PATIENCE, taken_port
from tests.unit.cli.test_cli import fresh_imports, refusal
from wsdeco import Address, App, Sink
from wsdeco.cli import conversation
from wsdeco.cli.connect import command
from wsdeco.cli.conversation import Conversation

__all__ = ["fresh_imports"]


class Echo:
    async def on_connect(self, addr: Address, sink: Sink) -> None:
        self.sink = sink
        if sink.query_params.get("token") == "wrong":
            raise HTTPException(401, "The token\x1b is wrong.")
        if "x-greet" in sink.headers:
            await sink.send(f"{sink.headers['x-greet']}")

    async def on_message(self, data: str | bytes) -> str | bytes | None:
        if isinstance(data, str) and data.startswith("close "):
            await self.sink.close(int(data.split()[1]), "as\x1byou wish")
            return None
        if data == "bytes":
            return bytes(range(70))
        if data == "many":
            for number in range(1000):
                await self.sink.send(str(number))
        return data


@pytest.fixture
def url() -> Generator[str]:
    app = App()
    app.add("/ws", Echo, subprotocols=["chat.v1"])
    app.add("/full", Echo, max_connections=1)
    server = app.run(port=0, background=True)
    assert server is not None
    with server:
        yield server.url


def piped(*arguments: str, said: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "wsdeco", "connect", *arguments],
        input=said,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        **options,
    )


# In a pipe.


def test_lines_become_messages_and_the_answers_come_within_the_wait(url: str) -> None:
    ended = piped(f"{url}/ws", "--wait", "0.5", said=b'hello\r\n{"a": 1}\n\nlast')
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout == b'hello\n{"a": 1}\n\nlast\n'


def test_the_scheme_may_be_left_out_and_headers_and_subprotocols_go_along(url: str) -> None:
    place = url.removeprefix("ws://")
    for address in (f"{place}/ws", f":{place.partition(':')[2]}/ws", f"http://{place}/ws#x"):
        assert piped(address, "--header", "X-Greet: hi", "-s", "chat.v1", "--wait", "0.5").stdout == b"hi\n"


def test_binary_messages_are_one_each_and_come_as_they_are(url: str) -> None:
    data = bytes(range(256)) * 10
    assert piped(f"{url}/ws", "--binary", "--wait", "0.5", said=data).stdout == data
    assert piped(f"{url}/ws", "--wait", "0.5", said=b"bytes").stdout == bytes(range(70)) + b"\n"


def test_what_is_no_utf_8_is_refused(url: str) -> None:
    ended = piped(f"{url}/ws", said=b"ok\n\xff\n")
    assert ended.returncode == 2
    assert b"the input is no UTF-8" in ended.stderr
    assert ended.stderr.endswith(b"add --binary\n")


@pytest.mark.parametrize(("code", "status"), [(1000, 0), (1001, 101), (1011, 111), (4001, 120)])
def test_the_exit_status_tells_the_close_code(code: int, status: int, url: str) -> None:
    # The pipe stays open, so that only the server ends it.
    with subprocess.Popen(
        [sys.executable, "-m", "wsdeco", "connect", f"{url}/ws"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(f"close {code}\n".encode())
        process.stdin.flush()
        assert process.wait(PATIENCE) == status
        said = process.stderr.read().decode()
    assert said == ("" if code == 1000 else f"Closed with {code}: as\\x1byou wish\n")


def test_a_reader_that_has_enough_ends_it(url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "wsdeco", "connect", f"{url}/ws"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"one\n"
        process.stdout.close()
        process.stdin.write(b"many\n")
        process.stdin.flush()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == b""


def test_why_it_cannot_connect_is_one_line(url: str) -> None:
    place = re.escape(url)
    with taken_port() as port:
        pass
    for arguments, line in (
        (
            [f"{url}/ws?token=wrong"],
            rf"{place}/ws\?token=wrong refuses the handshake with 401 Unauthorized: The token\\x1b is",
        ),
        ([f"{url}/other"], rf"{place}/other refuses the handshake with 404 Not Found$"),
        ([f"ws://127.0.0.1:{port}/ws"], rf"no server listens at ws://127\.0\.0\.1:{port}/ws$"),
        ([f"wss://{url.removeprefix('ws://')}/ws"], r"cannot connect to wss://\S+: \S"),
    ):
        code, said = refusal("connect", *arguments)
        assert code == 1
        assert re.match(line, said), said
        assert said.isprintable()


@pytest.mark.parametrize("address", ["ftp://x/y", "ws://", "ws://host:port/", "ws://[::1", "host:0/x", ""])
def test_what_is_no_address_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal("connect", address) == (2, "")
    assert "is no address of a WebSocket" in capsys.readouterr().err


def test_what_is_no_header_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for field in ("nothing", ": value"):
        assert refusal("connect", "/ws", "-H", field) == (2, "")
        assert "is no header field" in capsys.readouterr().err


def test_a_path_alone_means_the_server_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(url: str, **options: Any) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr("websockets.sync.client.connect", connect)
    assert refusal("connect", "/ws") == (
        1,
        "no server listens at ws://127.0.0.1:8000/ws: start it, with `wsdeco run app.py` for instance",
    )
    assert refusal("connect", "example.com/ws") == (1, "no server listens at ws://example.com/ws")
    assert command.name == "connect"


# In a terminal.


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, *arguments: str, source: int | None = None, output: int | None = None) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wsdeco", "connect", *arguments],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
            stdin=theirs if source is None else source,
            stdout=theirs if output is None else output,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def leave(self) -> int:
        """Type Ctrl-D until the program ends: one that comes before it edits a line is lost; return its status."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.type("\x04")
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(1)
        pytest.fail("it does not end")

    def interrupt(self) -> int:
        """Press Ctrl-C until the program ends: one that comes just before it waits is lost; return its status."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.process.send_signal(signal.SIGINT)
            # Another one on its way out would change the status.
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(PATIENCE / 6)
        pytest.fail("it does not end")

    def expect(self, text: str) -> None:
        """Wait for `text` behind what was waited for before."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            ready, _, _ = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} is not shown, but {self.shown!r}"
            try:
                self.shown += os.read(self._ours, 4096).decode(errors="replace")
            except OSError:
                pytest.fail(f"{text!r} is not shown, but {self.shown!r}")
        self.shown = self.shown.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(*arguments: str, **streams: int) -> Generator[Terminal]:
    opened = Terminal(*arguments, **streams)
    try:
        yield opened
    finally:
        opened.close()


def test_a_terminal_edits_lines_recalls_them_and_ends_with_ctrl_d(url: str) -> None:
    with terminal(f"{url}/ws", "-s", "chat.v1") as opened:
        opened.expect("Connected, speaks chat.v1; Ctrl-D ends")
        opened.expect("> ")
        opened.type("helo\x1b[Dl\r")
        opened.expect("< hello")
        opened.type("\x1b[A\r")
        opened.expect("< hello")
        opened.type("\x04")
        assert opened.process.wait(PATIENCE) == 0


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """What a program in the background is started with would be inherited: that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
def test_a_terminal_folds_json_and_shows_controls_by_number(url: str) -> None:
    with terminal(f"{url}/ws") as opened:
        opened.expect("> ")
        opened.type('{"short": [1, 2]}\r')
        opened.expect('< {"short": [1, 2]}')
        numbers = ", ".join(["1234567890"] * 12)
        opened.type(f'{{"list": [{numbers}], "empty": {{}}, "inner": {{"a": 1}}}}\r')
        opened.expect('< {\r\n  "list": [\r\n    1234567890,\r\n')
        opened.expect('\r\n  ],\r\n  "empty": {},\r\n  "inner": {"a": 1}\r\n}')
        opened.type("{no json\r")
        opened.expect("< {no json")
        opened.type("a\u202eb\r")
        opened.expect("< a\\u{202e}b")
        opened.type("bytes\r")
        opened.expect("< (70 bytes) 00 01 02")
        opened.expect("3f …")
        assert opened.interrupt() == 130


def test_a_terminal_shows_the_head_of_a_long_message_and_sends_lines_as_bytes(url: str) -> None:
    with terminal(f"{url}/ws", "-H", f"X-Greet: {'x' * 10_005}") as opened:
        opened.expect("… (5 more characters)")
        assert opened.leave() == 0
    with terminal(f"{url}/ws", "--binary") as opened:
        opened.expect("> ")
        opened.type("AB\r")
        opened.expect("< (2 bytes) 41 42")


def test_a_terminal_is_left_when_the_server_closes(url: str) -> None:
    with terminal(f"{url}/ws") as opened:
        opened.expect("> ")
        opened.type("close 1011\r")
        opened.expect("Closed with 1011: as\\x1byou wish")
        assert opened.process.wait(PATIENCE) == 111


def test_what_is_typed_may_go_to_a_terminal_and_the_answers_to_a_file(url: str) -> None:
    with terminal(f"{url}/ws", output=subprocess.PIPE) as opened:
        assert opened.process.stdout is not None
        opened.type('{"a": 1}\r')
        assert opened.process.stdout.readline() == b'{"a": 1}\n'
        opened.type("\x04")
        assert opened.process.wait(PATIENCE) == 0
        opened.process.stdout.close()


def test_answers_to_a_pipe_of_input_are_shown_in_a_terminal(url: str) -> None:
    with terminal(f"{url}/ws", "--wait", "0.5", source=subprocess.PIPE) as opened:
        assert opened.process.stdin is not None
        opened.process.stdin.write(b"a\x1bb\n")
        opened.process.stdin.close()
        opened.expect("< a\\u{1b}b\r\n")
        assert opened.process.wait(PATIENCE) == 0


class Closes:
    """A connection that its peer closes once `event` is set."""

    close_code = 1001
    close_reason = ""
    subprotocol = None

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __iter__(self) -> Iterator[str]:
        self.event.wait(PATIENCE)
        raise ConnectionClosedOK(None, None)

    def send(self, message: object) -> None:
        """Close as the line comes, and go on when the end has been received."""
        self.event.set()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and thread.name == "receiving":
                thread.join(PATIENCE)

    def close(self) -> None: ...


class Pipe:
    """A standard input that is no terminal."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self.buffer = lines

    def isatty(self) -> bool:
        return False


def test_a_server_that_closes_while_the_line_is_sent_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def lines() -> Iterator[bytes]:
        yield b"line\n"
        pytest.fail("it reads on, and would wait for ever")

    monkeypatch.setattr(sys, "stdin", Pipe(lines()))
    assert Conversation(cast("Any", Closes(threading.Event())), binary=False, wait=0).run() == (1001, "")


def test_an_interrupt_that_comes_just_before_the_read_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts: list[int] = []
    interrupt = signal.pthread_kill

    def lines() -> Iterator[bytes]:
        reads.set()
        yield source.readline()

    def second_counts(thread: int, number: int) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            interrupt(thread, number)

    reads = threading.Event()
    monkeypatch.setattr(sys, "stdin", Pipe(lines()))
    monkeypatch.setattr(signal, "pthread_kill", second_counts)
    monkeypatch.setattr(conversation, "AGAIN", 0.2)
    receiving, sending = os.pipe()
    with os.fdopen(receiving, "rb") as source, os.fdopen(sending, "wb"):
        assert Conversation(cast("Any", Closes(reads)), binary=False, wait=0).run() == (1001, "")
    assert interrupts[:2] == [signal.SIGINT, signal.SIGINT]


def test_a_server_that_is_faster_than_the_line_is_told_by_its_close_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        """A connection that has ended when the first line is sent."""

        close_code = 1001
        close_reason = ""
        subprotocol = None

        def __iter__(self) -> Iterator[str]:
            sent.wait(PATIENCE)
            raise ConnectionClosedOK(None, None)

        def send(self, message: object) -> None:
            sent.set()
            raise ConnectionClosedOK(None, None)

        def close(self) -> None: ...

    sent = threading.Event()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"line\n")))
    assert Conversation(cast("Any", Closed()), binary=False, wait=0).run() == (1001, "")


def test_an_interrupt_of_the_user_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: bytes) -> bytes:
        raise KeyboardInterrupt

    class Open(Closes):
        def __iter__(self) -> Iterator[str]:
            closed.wait(PATIENCE)
            raise ConnectionClosedOK(None, None)

        def close(self) -> None:
            closed.set()

    closed = threading.Event()
    monkeypatch.setattr(sys, "stdin", Pipe(map(interrupt, [b"line"])))
    with pytest.raises(KeyboardInterrupt):
        Conversation(cast("Any", Open(threading.Event())), binary=False, wait=0).run()


@pytest.fixture
def ignored_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ignored_interrupts")
def test_the_end_of_the_connection_ends_one_in_the_background_and_ctrl_c_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lines() -> Iterator[bytes]:
        os.kill(os.getpid(), signal.SIGINT)
        reads.set()
        yield source.readline()

    reads = threading.Event()
    monkeypatch.setattr(sys, "stdin", Pipe(lines()))
    receiving, sending = os.pipe()
    with os.fdopen(receiving, "rb") as source, os.fdopen(sending, "wb"):
        assert Conversation(cast("Any", Closes(reads)), binary=False, wait=0).run() == (1001, "")


def test_nothing_is_read_for_a_connection_that_is_over_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Over(Closes):
        def __iter__(self) -> Iterator[str]:
            raise ConnectionClosedOK(None, None)

    def lines() -> Iterator[bytes]:
        yield b""
        pytest.fail("it reads")

    def start_and_wait(thread: threading.Thread) -> None:
        start(thread)
        thread.join(PATIENCE)

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start_and_wait)
    monkeypatch.setattr(sys, "stdin", Pipe(lines()))
    assert Conversation(cast("Any", Over(threading.Event())), binary=False, wait=0).run() == (1001, "")
