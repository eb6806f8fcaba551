"""What TCP says of a peer; peers that vanish are in `rules/test_departures.py`."""

import asyncio
import socket
from typing import Any, Final

import pytest

from wsdeco.transport.departures import Departures, has_vanished


class Transport:
    def __init__(self, opened: socket.socket | None) -> None:
        self._opened: Final = opened

    def get_extra_info(self, name: str) -> Any:
        return self._opened if name == "socket" else None


def asked(opened: socket.socket | None) -> bool:
    transport: Any = Transport(opened)
    return has_vanished(transport, 0.0)


class Watched:
    """A connection that is not read."""

    def __init__(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport

    def peer_left(self) -> None:
        pytest.fail("nobody has left")


async def test_a_transport_without_a_socket_says_nothing() -> None:
    assert not asked(None)
    departures = Departures(asyncio.get_running_loop())
    connection = Watched(Transport(None))
    departures.watch(connection)
    departures.discard(connection)


def test_a_socket_that_is_not_of_tcp_says_nothing() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert not asked(one)


def test_a_peer_that_answers_is_there() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as peer,
        listener.accept()[0] as opened,
    ):
        opened.sendall(b"x")
        assert peer.recv(1) == b"x"
        assert not asked(opened)


def test_a_unix_socket_has_no_peer_that_could_vanish() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not asked(ours)
