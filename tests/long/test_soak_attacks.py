"""What one client, or fifty, take from the others: `python -m pytest -m soak -s tests/long/test_soak_attacks.py`.

`tests/RESULTS.md` keeps them. Beside each stands what an endpoint of plain ASGI gives on uvicorn as it comes.
"""

import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

import pytest

from tests.support import raw
from tests.support.crowd import PATIENCE, Client, Serve, SoakServer, crowd_of, wait_for
from tests.support.raw import Opcode

MIB: Final = 1 << 20
SERVERS: Final = ("wsdeco", "uvicorn")
SECONDS: Final = 5.0
"""How long an attack lasts."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


def measured(what: str, server: str, **figures: object) -> None:
    """Say what was measured."""
    text = ", ".join(f"{name} {figure}" for name, figure in figures.items())
    print(f"\n{what} {server}: {text}")  # noqa: T201 - for `-s`


def has_heard(client: Client, number: int) -> bool:
    return client.messages >= number


def round_trips(port: int, until: Callable[[], bool]) -> list[float]:
    """Speak on a connection of one's own; return the milliseconds that its handshake and each echo took."""
    began = time.monotonic()
    with crowd_of(port) as crowd:
        (client,) = crowd.enter(1)
        took = [(time.monotonic() - began) * 1000]
        while not until():
            begin = time.monotonic()
            heard = client.messages
            client.send(raw.text("a good client"))
            assert crowd.watch(partial(has_heard, client, heard + 1))
            took.append((time.monotonic() - begin) * 1000)
            time.sleep(0.01)
    return took


def within(seconds: float) -> Callable[[], bool]:
    """Return what tells whether so much time is over."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


@contextmanager
def highest_memory(server: SoakServer) -> Generator[list[int]]:
    """Look every 20 ms what memory the server takes; the list holds the growth at last."""
    before = server.resident
    growth = [0]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            growth[0] = max(growth[0], server.resident - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield growth
    finally:
        over.set()
        thread.join()


@contextmanager
def flooding(clients: list[Client], data: bytes, *, read: bool = False) -> Generator[None]:
    """Send `data` on each connection, again and again, as fast as the server takes it."""
    over = threading.Event()

    def flood() -> None:
        left = dict.fromkeys(clients, b"")
        for client in clients:
            client.sock.setblocking(False)
        while not over.is_set():
            for client in list(left):
                try:
                    left[client] = left[client] or data
                    left[client] = left[client][client.sock.send(left[client]) :]
                except BlockingIOError:
                    pass
                except OSError:
                    del left[client]
                    continue
                if read:
                    with suppress(OSError):
                        client.sock.recv(MIB)
            over.wait(0.001)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(("number", "payload"), [(1_000_000, b"ab"), (2_000_000, b"")])
def test_tiny_fragments_of_one_message(serve: Serve, kind: str, number: int, payload: bytes) -> None:
    server = serve(server=kind, max_message_size=4 * MIB, ping_interval=None)
    data = raw.frame(Opcode.CONTINUATION, payload, fin=False) * 10_000
    with crowd_of(server.port) as crowd:
        (client,) = crowd.enter(1)
        client.sock.settimeout(PATIENCE)
        client.send(raw.frame(Opcode.TEXT, payload, fin=False))
        begin, seconds = time.monotonic(), server.seconds
        with highest_memory(server) as growth:
            for _ in range(number // 10_000):
                client.sock.sendall(data)
            client.send(raw.frame(Opcode.CONTINUATION, payload))
            assert crowd.watch(lambda: client.messages == 1, 240)
    assert client.received == (number + 2) * len(payload)
    took = time.monotonic() - begin
    measured(
        "R4",
        kind,
        fragments=number,
        of_bytes=len(payload),
        seconds=round(took, 1),
        processor=round(server.seconds - seconds, 1),
        growth_MiB=round(growth[0] / MIB, 1),
    )
    # The echo takes as much again.
    assert kind == "uvicorn" or growth[0] < 4 * client.received + MIB


@pytest.mark.parametrize("kind", SERVERS)
def test_tiny_messages_at_hooks_that_hang(serve: Serve, kind: str) -> None:
    number = 200
    server = serve(server=kind, max_message_size=1024, max_inbox=1024, max_outbox=1024, ping_interval=None)
    data = raw.text("ab") * 50_000
    with crowd_of(server.port) as crowd:
        clients = crowd.enter(number)
        time.sleep(0.5)
        with highest_memory(server) as growth:
            for client in clients:
                client.send(raw.text("wait"))
            for client in clients:
                client.sock.settimeout(0.05)
                with suppress(OSError):
                    client.sock.sendall(data)
            time.sleep(1)
    measured("R23", kind, connections=number, KiB_each=round(growth[0] / number / 1024, 1))
    assert kind == "uvicorn" or growth[0] / number < 67 * 1024


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
def test_floods_of_tiny_messages(serve: Serve, kind: str, read: bool) -> None:
    server = serve(server=kind)
    with crowd_of(server.port) as crowd:
        clients = crowd.enter(50)
        with highest_memory(server) as growth, flooding(clients, raw.text("ab") * 10_000, read=read):
            took = round_trips(server.port, within(SECONDS))
    measured("R24", kind, floods=50, worst_ms=round(max(took)), MiB=round(growth[0] / MIB, 1))
    assert kind == "uvicorn" or max(took) < 250


@pytest.mark.parametrize("kind", SERVERS)
def test_concurrent_sends_to_a_peer_that_does_not_read(serve: Serve, kind: str) -> None:
    server = serve(server=kind)
    with crowd_of(server.port) as crowd:
        (client,) = crowd.enter(1, receive_buffer=4096)
        crowd.stop_reading(client)
        with highest_memory(server) as growth:
            client.send(raw.text("send 3000 100000"))
            took = round_trips(server.port, within(SECONDS))
    measured("R25", kind, sends="3000 of 100 kB", worst_ms=round(max(took)), MiB=round(growth[0] / MIB, 1))
    assert kind == "uvicorn" or growth[0] < 16 * MIB


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("path", ["/none", "/body"])
def test_pipelined_requests_whose_responses_nobody_reads(serve: Serve, kind: str, path: str) -> None:
    server = serve(server=kind)
    request = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path.encode()
    with crowd_of(server.port) as crowd:
        client = crowd.dial()
        crowd.stop_reading(client)
        with highest_memory(server) as growth, flooding([client], request * 4000):
            took = round_trips(server.port, within(SECONDS))
    what = "R16" if path == "/none" else "R17"
    measured(what, kind, path=path, MiB=round(growth[0] / MIB, 1), worst_ms=round(max(took)))
    assert kind == "uvicorn" or growth[0] < 16 * MIB
    assert kind == "uvicorn" or max(took) < 250


def seconds_to_end(server: SoakServer, patience: float = 45.0) -> float:
    begin = time.monotonic()
    server.signal()
    with suppress(AssertionError):
        wait_for(lambda: not server.running(), patience)
    return time.monotonic() - begin


@pytest.mark.parametrize("kind", SERVERS)
def test_the_end_of_a_server_with_dribbled_bodies(serve: Serve, kind: str) -> None:
    number = 300
    server = serve(server=kind)
    head = b"POST /body HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n"
    over = threading.Event()
    with crowd_of(server.port) as crowd:
        clients = [crowd.dial() for _ in range(number)]
        for client in clients:
            client.send(head)

        def dribble() -> None:
            while not over.wait(0.5):
                for client in clients:
                    with suppress(OSError):
                        client.sock.send(b"x")

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            time.sleep(1.5)
            took = seconds_to_end(server)
        finally:
            over.set()
            thread.join()
    measured("R19", kind, bodies=number, seconds=round(took, 1))
    assert kind == "uvicorn" or took < 5


@pytest.mark.parametrize("kind", SERVERS)
def test_the_end_of_a_server_with_one_frozen_client(serve: Serve, kind: str) -> None:
    server = serve(server=kind)
    opened = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    with opened:
        opened.sendall(raw.handshake("/ws"))
        assert b" 101 " in opened.recv(1024)
        took = seconds_to_end(server)
    measured("R20", kind, seconds=round(took, 1))
    assert kind == "uvicorn" or took < 3
