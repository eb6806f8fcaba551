"""Sockets that worker processes have of their own, and clients that wait for a worker that does not take them."""

import asyncio
import errno
import os
import socket
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from typing import Any, cast

import pytest

from wsdeco import ServerError
from wsdeco.server.descriptors import Descriptors
from wsdeco.server.listen import Listeners, listen
from wsdeco.server.neighbours import Neighbours

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux deals clients out to several sockets")

WORKERS = 3


@pytest.fixture
def listeners() -> Generator[Listeners]:
    opened = listen("127.0.0.1", 0, 16, WORKERS)
    with closing(opened):
        yield opened


class Greeting(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(b"welcome")


def connected(listeners: Listeners) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", listeners.port), 5)
    client.setblocking(False)
    return client


def neighbours_of(listeners: Listeners, place: int, **options: Any) -> Neighbours:
    return Neighbours(listeners.of_worker(place).others, Greeting, {}, Descriptors(), **options)


# The sockets.


def test_sockets_that_cannot_all_be_made_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Last(socket.socket):
        def __init__(self, family: socket.AddressFamily) -> None:
            if len(made) == WORKERS - 1:
                raise OSError(errno.EMFILE, "Too many open files")
            super().__init__(family)
            made.append(self)

    def first(*arguments: object, **options: object) -> socket.socket:
        return opened

    made: list[socket.socket] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as opened, monkeypatch.context() as patch:
        patch.setattr(socket, "create_server", first)
        patch.setattr(socket, "socket", Last)
        with pytest.raises(ServerError, match="Too many open files"):
            listen("127.0.0.1", 0, 16, WORKERS)
    assert [each.fileno() for each in made] == [-1] * (WORKERS - 1)


def test_clients_are_dealt_out_to_those_that_listen(listeners: Listeners) -> None:
    own = [listeners.of_worker(place).sockets[0] for place in range(WORKERS)]
    assert len({each.fileno() for each in own}) == WORKERS
    assert {each.getsockname() for each in own} == {("127.0.0.1", listeners.port)}
    own[1].listen(200)
    own[0].listen(200)
    for each in own:
        each.setblocking(False)
    taken: Counter[int] = Counter()
    for _ in range(120):
        with connected(listeners):
            for place in (0, 1):
                try:
                    own[place].accept()[0].close()
                    taken[place] += 1
                except BlockingIOError:
                    pass
    assert taken[0] + taken[1] == 120
    assert min(taken.values()) > 30


def test_a_port_that_workers_share_is_taken_for_all_others(listeners: Listeners) -> None:
    for processes in (1, WORKERS):
        with pytest.raises(ServerError, match=f"port {listeners.port} on 127.0.0.1 is taken"):
            listen("127.0.0.1", listeners.port, 16, processes)


def test_a_port_that_another_program_takes_meanwhile_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:

        class Closed:
            family = taken.family
            getsockname = taken.getsockname

            def close(self) -> None: ...

        def create(*_: object, **__: object) -> Closed:
            return Closed()

        monkeypatch.setattr(socket, "create_server", create)
        with pytest.raises(ServerError, match="is taken"):
            listen("127.0.0.1", 0, 16, WORKERS)


def test_a_name_may_stand_for_addresses_of_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(family, socket.SOCK_STREAM, 0, "", address) for family, address in both_families()]

    def look_up(*_: object, **__: object) -> list[Any]:
        return found

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with closing(listen("localhost", 0, 16, WORKERS)) as opened:
        assert len(opened.sockets) == len(found)
        assert [len(share) for share in opened.others] == [len(found)] * (WORKERS - 1)
        assert {each.getsockname()[1] for each in opened.of_worker(2).sockets} == {opened.port}


def both_families() -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    places: list[tuple[socket.AddressFamily, tuple[Any, ...]]] = [(socket.AF_INET, ("127.0.0.1", 0))]
    if socket.has_ipv6:
        places.append((socket.AF_INET6, ("::1", 0, 0, 0)))
    return places


def test_one_process_has_the_sockets_for_itself() -> None:
    with closing(listen("127.0.0.1", 0, 16)) as opened:
        assert opened.others == []
        assert opened.of_worker(1) is opened


# What waits.


async def test_a_client_is_taken_that_waits_from_one_look_to_the_next(listeners: Listeners) -> None:
    loop = asyncio.get_running_loop()
    neighbours = neighbours_of(listeners, 1)
    neighbours.look()
    with connected(listeners) as client:
        neighbours.look()
        with pytest.raises(BlockingIOError):
            client.recv(64)
        neighbours.look()
        assert await loop.sock_recv(client, 64) == b"welcome"
        neighbours.close()
        neighbours.close()
    neighbours.look()


async def test_of_a_crowd_a_few_are_taken_at_a_look(listeners: Listeners) -> None:
    loop = asyncio.get_running_loop()
    with (
        closing(neighbours_of(listeners, 1, at_once=1)) as neighbours,
        connected(listeners) as first,
        connected(listeners) as last,
    ):
        neighbours.look()
        neighbours.look()
        assert await loop.sock_recv(first, 64) == b"welcome"
        with pytest.raises(BlockingIOError):
            last.recv(64)
        neighbours.look()
        assert await loop.sock_recv(last, 64) == b"welcome"


async def test_one_that_does_not_wait_any_more_is_none(listeners: Listeners) -> None:
    neighbours = neighbours_of(listeners, 1)
    with connected(listeners):
        neighbours.look()
        listeners.sockets[0].accept()[0].close()
        neighbours.look()
        neighbours.look()
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Failing:
    """A socket with a client that cannot be taken."""

    def __init__(self, opened: socket.socket, number: int) -> None:
        self.fileno = opened.fileno
        self.setblocking = opened.setblocking
        self.number = number

    def accept(self) -> tuple[socket.socket, object]:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED, errno.EAGAIN])
def test_what_cannot_be_taken_is_said_if_descriptors_are_wanting(
    number: int, listeners: Listeners, caplog: pytest.LogCaptureFixture
) -> None:
    failing = cast(socket.socket, Failing(listeners.sockets[0], number))
    neighbours = Neighbours([[failing]], Greeting, {}, Descriptors())
    with connected(listeners):
        neighbours.look()
        neighbours.look()
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == (["Too many open files"] if number == errno.EMFILE else [])


async def test_a_client_that_goes_before_its_connection_is_made_is_none(listeners: Listeners) -> None:
    def fail() -> asyncio.Protocol:
        raise ConnectionResetError

    neighbours = Neighbours(listeners.of_worker(1).others, fail, {}, Descriptors())
    with connected(listeners):
        neighbours.look()
        neighbours.look()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
