"""One line when no descriptor is left, and one when there are some again."""

import asyncio
import errno
import logging
import os
import socket
import sys
from typing import Any

import pytest

from wsdeco.server.descriptors import Descriptors


class World:
    """A process whose descriptors the test takes away, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.number: int | None = None
        self.open = os.open
        self.descriptors = Descriptors(lambda: self.now)
        monkeypatch.setattr(os, "open", self._open)

    def _open(self, path: str, flags: int) -> int:
        if self.number is not None:
            raise OSError(self.number, os.strerror(self.number))
        return self.open(path, flags)

    def look(self, number: int | None, after: float = 0.1) -> None:
        self.now += after
        self.number = number
        self.descriptors.look()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    found = [(record.levelno, record.getMessage()) for record in caplog.records]
    caplog.clear()
    return found


def test_the_want_of_descriptors_and_its_end_are_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.look(None)
    assert lines(caplog) == []
    for _ in range(20):
        world.look(errno.EMFILE)
    ((level, line),) = lines(caplog)
    assert level == logging.ERROR
    assert line.startswith("Too many open files: new clients wait or are turned away until others leave")
    world.look(None, after=0.5)
    assert lines(caplog) == []
    world.look(None, after=0.5)
    assert lines(caplog) == [(logging.WARNING, "there are file descriptors again: new clients get in")]
    world.look(None)
    assert lines(caplog) == []


def test_descriptors_that_come_and_go_are_no_flood(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        world.look(errno.ENFILE)
        world.look(None, after=1.5)
    assert len(lines(caplog)) == 2
    world.look(errno.EMFILE, after=60)
    assert len(lines(caplog)) == 1


def test_other_errors_are_no_want_of_descriptors(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.look(errno.EACCES)
    assert lines(caplog) == []


async def test_what_asyncio_reports_for_each_client_is_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(64):
        exc = OSError(errno.EMFILE, "Too many open files")
        world.descriptors.take_exception(
            loop, {"message": "socket.accept() out of system resource", "exception": exc, "socket": object()}
        )
    assert len(lines(caplog)) == 1


async def test_other_reports_are_those_of_the_event_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    seen: list[object] = []

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        seen.append(context)

    monkeypatch.setattr(type(loop), "default_exception_handler", handle)
    world.descriptors.take_exception(loop, {"message": "something else"})
    assert seen == [{"message": "something else"}]


def test_where_there_are_no_limits_none_is_named(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    world.look(errno.EMFILE)
    ((_, line),) = lines(caplog)
    assert "until others leave; raise" in line


class Reports:
    """What an event loop reports to a program in it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.seen.append(context["message"])


def want(listener: socket.socket, message: str = "socket.accept() out of system resource") -> dict[str, Any]:
    return {"message": message, "exception": OSError(errno.EMFILE, "Too many open files"), "socket": listener}


@pytest.mark.parametrize("has_handler", [False, True])
async def test_in_a_loop_of_a_program_only_the_want_for_our_clients_is_said_by_us(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, has_handler: bool
) -> None:
    loop = asyncio.get_running_loop()
    reports = Reports()
    of_the_tests = loop.get_exception_handler()
    loop.set_exception_handler(reports if has_handler else None)

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        reports(loop, context)

    monkeypatch.setattr(type(loop), "default_exception_handler", handle)
    with socket.socket() as ours, socket.socket() as other:
        with world.descriptors.heard_in(loop, [ours]):
            for _ in range(64):
                loop.call_exception_handler(want(ours))
            assert len(lines(caplog)) == 1
            assert reports.seen == []
            loop.call_exception_handler(want(other))
            loop.call_exception_handler(want(ours, "another"))
            ours.close()
            loop.call_exception_handler(want(ours, "socket.accept() out of system resource"))
        loop.call_exception_handler(want(other, "after"))
    asked = "socket.accept() out of system resource"
    assert reports.seen == [asked, "another", asked, "after"]
    assert lines(caplog) == []
    assert loop.get_exception_handler() is (reports if has_handler else None)
    loop.set_exception_handler(of_the_tests)


async def test_a_handler_that_the_program_sets_meanwhile_stays(world: World) -> None:
    loop = asyncio.get_running_loop()
    reports = Reports()
    of_the_tests = loop.get_exception_handler()
    with world.descriptors.heard_in(loop, []):
        loop.set_exception_handler(reports)
    assert loop.get_exception_handler() is reports
    loop.set_exception_handler(of_the_tests)
