"""The client of every server: sockets, prebuilt frames, and as little work per reply as Python allows.

Replies are counted by their size, which is known, after one of them has been compared in full; compressed ones, whose
size the server chooses, are counted by their frame headers. Every loop is bounded in time.
"""

import collections
import contextlib
import gc
import select
import socket
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from benchmarks.wire import (
    CLOSE,
    FIN,
    Message,
    ServerFault,
    check_upgrade,
    frame_end,
    masked_frame,
    take_messages,
    upgrade_request,
)

HOST: Final = "127.0.0.1"

PATIENCE: Final = 15.0
"""Seconds that a server may take for what it has been sent."""

PORTS_OF_AN_ADDRESS: Final = 20_000
"""Connections that one address of the client opens."""

BATCH: Final = 32
"""Connections that are opened at the same time."""

READ_SIZE: Final = 256 * 1024
"""Largest read, in bytes."""

Greeting: TypeAlias = Callable[[socket.socket, bytes], None]
"""Takes a connection that waits, and what has come behind the handshake; returns once all is said that comes first."""

Counter: TypeAlias = Callable[[int, int], int]
"""Takes a descriptor and how many bytes it has just read; returns how many replies they complete."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one load has moved.

    Attributes:
        messages: Messages sent, each of which was answered.
        seconds: From the first message to the last reply.
        client_cpu: CPU seconds of the client.
    """

    messages: int
    seconds: float
    client_cpu: float


def open_connections(
    port: int,
    count: int,
    path: str = "/ws",
    *,
    compression: bool = False,
    within: float = PATIENCE,
    greeting: Greeting | None = None,
) -> list[socket.socket]:
    """Open WebSocket connections, `BATCH` at a time.

    Args:
        port: Port of the server on the loopback address.
        count: How many.
        path: What to ask for.
        compression: Ask for permessage-deflate, and insist on it.
        within: Seconds until it must be done.
        greeting: What client and server tell each other first; a server must not speak first without one.

    Raises:
        ServerFault: The server does not accept a handshake, or takes too long.
        OSError: The server does not accept a connection.
    """
    request = upgrade_request(port, path, compression=compression)
    deadline = time.monotonic() + within
    opened: list[socket.socket] = []
    try:
        while len(opened) < count:
            batch = min(BATCH, count - len(opened))
            for _ in range(batch):
                opened.append(_connect(port, deadline, len(opened)))
                opened[-1].sendall(request)
            for connection in opened[-batch:]:
                _finish_handshake(connection, deadline, greeting, compression=compression)
    except BaseException:
        abort_connections(opened)
        raise
    return opened


def close_connections(connections: Sequence[socket.socket]) -> None:
    """Close connections as RFC 6455, section 7.1.1 wants it; those that the server does not close are dropped."""
    farewell = masked_frame(FIN | CLOSE, (1000).to_bytes(2))
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(OSError):
        for connection in connections:
            connection.settimeout(_left(deadline))
            connection.sendall(farewell)
        for connection in connections:
            connection.settimeout(_left(deadline))
            while time.monotonic() < deadline and connection.recv(READ_SIZE):
                pass
    abort_connections(connections)


def abort_connections(connections: Sequence[socket.socket]) -> None:
    """Drop connections without a closing handshake."""
    for connection in connections:
        connection.close()


def check_echo(connection: socket.socket, message: Message) -> None:
    """Send `message` once and compare the reply, byte for byte unless it is compressed.

    Raises:
        ServerFault: The reply is not the text that was sent, in one frame, within `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    connection.settimeout(PATIENCE)
    connection.sendall(message.frame)
    reply = bytearray()
    while (end := frame_end(reply, 0)) is None:
        reply += _receive(connection, deadline)
    connection.setblocking(False)
    if message.reply_size is not None and (end != message.reply_size or not reply.endswith(message.reply)):
        raise ServerFault(f"its echo of {len(message.text)} bytes is another message, or more than one frame")
    if len(reply) != end:
        raise ServerFault("it sends more than the echo")


def exchange_once(connections: Sequence[socket.socket], message: Message) -> None:
    """Send `message` once on each connection, and wait for every reply."""
    for start in range(0, len(connections), BATCH):
        closed_loop(connections[start : start + BATCH], message, depth=1, seconds=0)


def closed_loop(connections: Sequence[socket.socket], message: Message, *, depth: int, seconds: float) -> Traffic:
    """Keep `depth` messages in flight on each connection for `seconds`, then wait for the last replies.

    Raises:
        ServerFault: A connection ends, or replies are missing `PATIENCE` after the last message.
    """
    with _polled(connections) as (poller, by_descriptor), _without_collector():
        replies_in, buffer = make_counter(by_descriptor, message)
        batches = [message.frame * count for count in range(depth + 1)]
        unsent: dict[int, memoryview] = {}
        clock = time.perf_counter
        cpu = time.process_time()
        start = clock()
        deadline = start + seconds
        for descriptor, connection in by_descriptor.items():
            _send(connection, descriptor, batches[depth], unsent, poller)
        outstanding = sent = depth * len(by_descriptor)
        while outstanding:
            now = clock()
            if now > deadline + PATIENCE:
                raise ServerFault(f"{outstanding} of {sent} replies are missing after {PATIENCE:g} s")
            sending = now < deadline
            for descriptor, events in poller.poll(1.0):
                connection = by_descriptor[descriptor]
                if events & select.EPOLLOUT:
                    _send_rest(connection, descriptor, unsent, poller)
                if not events & ~select.EPOLLOUT:
                    continue
                size = connection.recv_into(buffer)
                if not size:
                    raise ServerFault("it ended a connection")
                if replies := replies_in(descriptor, size):
                    outstanding -= replies
                    if sending:
                        outstanding += replies
                        sent += replies
                        _send(connection, descriptor, batches[replies], unsent, poller)
        return Traffic(sent, clock() - start, time.process_time() - cpu)


def fan_out(members: Sequence[socket.socket], message: Message, *, window: int, seconds: float) -> Traffic:
    """Have the first member broadcast, `window` messages at a time on their way, for `seconds`; every member gets all.

    A message counts for each member that it has been delivered to.

    Raises:
        ServerFault: A connection ends, or a member gets less or more than the others.
    """
    if message.reply_size is None:
        raise ValueError("what a member has got is counted by its size, so the message must not be compressed")
    with _polled(members) as (poller, by_descriptor), _without_collector():
        buffer = bytearray(READ_SIZE)
        received = dict.fromkeys(by_descriptor, 0)
        publisher = members[0]
        clock = time.perf_counter
        cpu = time.process_time()
        start = clock()
        deadline = start + seconds
        broadcast_size = message.reply_size * len(members)
        sent = total = 0
        unsent: dict[int, memoryview] = {}
        while (now := clock()) < deadline or total < sent * broadcast_size:
            if now > deadline + PATIENCE:
                raise ServerFault(f"{sent * broadcast_size - total} bytes of {sent} broadcasts are missing")
            room = window - (sent - total // broadcast_size)
            if now < deadline and room:
                _send(publisher, publisher.fileno(), message.frame * room, unsent, poller)
                sent += room
            for descriptor, events in poller.poll(1.0):
                if events & select.EPOLLOUT:
                    _send_rest(publisher, descriptor, unsent, poller)
                if not events & ~select.EPOLLOUT:
                    continue
                size = by_descriptor[descriptor].recv_into(buffer)
                if not size:
                    raise ServerFault("it ended a connection")
                received[descriptor] += size
                total += size
        if set(received.values()) != {sent * message.reply_size}:
            raise ServerFault("members have got different numbers of messages")
        return Traffic(sent * len(members), clock() - start, time.process_time() - cpu)


def open_loop(
    connections: Sequence[socket.socket], message: Message, *, rate: float, seconds: float, spin: bool
) -> list[float]:
    """Send at a fixed rate, on one connection after the other, and return how long each reply took.

    A reply takes from when its message was due, not from when it could be sent: a server that stalls is not spared
    the messages that should have been sent meanwhile.

    Args:
        connections: Where to send.
        message: What to send.
        rate: Messages per second, over all connections.
        seconds: How long.
        spin: Ask for replies without pause, where the client has a core of its own.

    Raises:
        ServerFault: A connection ends, or replies are missing `PATIENCE` after the last message.
    """
    latencies: list[float] = []
    with _polled(connections) as (poller, by_descriptor), _without_collector():
        replies_in, buffer = make_counter(by_descriptor, message)
        due: dict[int, collections.deque[float]] = {each: collections.deque() for each in by_descriptor}
        senders = list(by_descriptor.items())
        clock = time.perf_counter
        start = clock()
        total = int(rate * seconds)
        sent = 0
        while len(latencies) < total:
            now = clock()
            if now > start + seconds + PATIENCE:
                raise ServerFault(f"{total - len(latencies)} of {total} replies are missing after {PATIENCE:g} s")
            while sent < total and (next_due := start + sent / rate) <= now:
                descriptor, connection = senders[sent % len(senders)]
                if connection.send(message.frame) != len(message.frame):
                    raise ServerFault("it does not read what half of its load brings")
                due[descriptor].append(next_due)
                sent += 1
            for descriptor, _ in poller.poll(0 if spin else 0.001):
                size = by_descriptor[descriptor].recv_into(buffer)
                if not size:
                    raise ServerFault("it ended a connection")
                now = clock()
                times = due[descriptor]
                latencies += [now - times.popleft() for _ in range(replies_in(descriptor, size))]
    return latencies


def make_counter(descriptors: Iterable[int], message: Message) -> tuple[Counter, bytearray]:
    """Return what counts the replies to `message`, and the buffer to read into."""
    buffer = bytearray(READ_SIZE)
    if (reply_size := message.reply_size) is None:
        partial = {descriptor: bytearray() for descriptor in descriptors}

        def count_frames(descriptor: int, size: int) -> int:
            partial[descriptor] += buffer[:size]
            return take_messages(partial[descriptor])

        return count_frames, buffer
    received = dict.fromkeys(descriptors, 0)

    def count_bytes(descriptor: int, size: int) -> int:
        if size == reply_size and not received[descriptor]:
            return 1
        replies, received[descriptor] = divmod(received[descriptor] + size, reply_size)
        return replies

    return count_bytes, buffer


@contextlib.contextmanager
def _polled(connections: Sequence[socket.socket]) -> Generator[tuple[select.epoll, dict[int, socket.socket]]]:
    by_descriptor = {connection.fileno(): connection for connection in connections}
    with select.epoll() as poller:
        for descriptor in by_descriptor:
            poller.register(descriptor, select.EPOLLIN)
        yield poller, by_descriptor


@contextlib.contextmanager
def _without_collector() -> Generator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _send(
    connection: socket.socket, descriptor: int, data: bytes, unsent: dict[int, memoryview], poller: select.epoll
) -> None:
    if descriptor in unsent:
        unsent[descriptor] = memoryview(bytes(unsent[descriptor]) + data)
        return
    try:
        size = connection.send(data)
    except BlockingIOError:
        size = 0
    if size < len(data):
        unsent[descriptor] = memoryview(data)[size:]
        poller.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)


def _send_rest(connection: socket.socket, descriptor: int, unsent: dict[int, memoryview], poller: select.epoll) -> None:
    rest = unsent[descriptor]
    size = connection.send(rest)
    if size < len(rest):
        unsent[descriptor] = rest[size:]
    else:
        del unsent[descriptor]
        poller.modify(descriptor, select.EPOLLIN)


def _connect(port: int, deadline: float, number: int) -> socket.socket:
    # An address has ports for some 28,000 connections to one server, and all of 127.0.0.0/8 is this machine.
    source = None if number < PORTS_OF_AN_ADDRESS else (f"127.0.0.{1 + number // PORTS_OF_AN_ADDRESS}", 0)
    connection = socket.create_connection((HOST, port), timeout=_left(deadline), source_address=source)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _finish_handshake(
    connection: socket.socket, deadline: float, greeting: Greeting | None, *, compression: bool
) -> None:
    response = b""
    while b"\r\n\r\n" not in response:
        response += _receive(connection, deadline)
    head, _, rest = response.partition(b"\r\n\r\n")
    check_upgrade(head, compression=compression)
    if greeting is not None:
        greeting(connection, rest)
    elif rest:
        raise ServerFault("it sends before it is spoken to")
    connection.setblocking(False)


def _receive(connection: socket.socket, deadline: float) -> bytes:
    connection.settimeout(_left(deadline))
    try:
        data = connection.recv(READ_SIZE)
    except TimeoutError:
        raise ServerFault("it does not answer") from None
    if not data:
        raise ServerFault("it ended a connection")
    return data


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)
