"""A handler class that is defined anew while connections of it live, as a cell of a notebook does that runs again."""

import asyncio
import builtins
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from tests.support.recording import Journal
from tests.support.stacks import Stack, soon, until
from tests.support.wire import Logged
from wsdeco import App, DisconnectReason, Sink
from wsdeco.routing.application import registry_of
from wsdeco.testing import HandshakeRefused, ManualClock, connect


def run_cell(
    app: App, cls: type, path: str = "/ws", factory: Callable[[Any], object] | None = None, **limits: Any
) -> None:
    """Register a class under the name that it would have in a cell, whichever function of a test it stands in."""
    cls.__qualname__ = cls.__name__
    app.add(path, cls, factory=factory, **limits)


@pytest.fixture
def in_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)


async def test_the_next_message_of_a_client_runs_the_new_code_and_finds_the_old_state(stack: Stack) -> None:
    app, journal = App(), Journal()

    def before() -> type:
        class Counter:
            def __init__(self, name: str) -> None:
                self.name = name
                self.count = 0

            async def on_message(self, text: str) -> str:
                self.count += 1
                return f"{self.name} {self.count}"

        return Counter

    class Counter:
        name: str
        count: int

        async def on_message(self, text: str) -> str:
            return f"{self.name} {self.count}, in new code"

        async def on_disconnect(self, reason: DisconnectReason) -> None:
            journal.add(f"new on_disconnect of {self.name}")

    run_cell(app, before(), "/ws/{name}", max_connections=3)
    async with stack.serve(app) as server:
        async with server.connect("/ws/ann") as ann, server.connect("/ws/bob") as bob:
            await ann.send("x")
            assert await soon(ann.receive()) == "ann 1"
            run_cell(app, Counter, "/ws/{name}", max_connections=2)
            for peer, expected in ((ann, "ann 1, in new code"), (bob, "bob 0, in new code")):
                await peer.send("x")
                assert await soon(peer.receive()) == expected
            # They count among those of the new class, and its limit is that of the next who comes.
            assert registry_of(app).counts() == {"/ws/{name}": 2}
            with pytest.raises(HandshakeRefused) as refused:
                async with server.connect("/ws/eve"):
                    pass
            assert refused.value.status == 503
        assert sorted(await journal.take(2)) == ["new on_disconnect of ann", "new on_disconnect of bob"]
        await until(lambda: registry_of(app).counts() == {"/ws/{name}": 0})


def slow(begun: Journal, go_on: asyncio.Event) -> type:
    """Return a class whose calls wait until they may go on."""

    class Slow:
        async def on_message(self, text: str) -> str:
            begun.add(text)
            await go_on.wait()
            return f"old {text}"

    return Slow


@pytest.mark.parametrize("limits", [{}, {"parallel": 2}, {"idle_timeout": 60}], ids=["", "parallel", "idle_timeout"])
async def test_a_call_that_runs_ends_with_the_old_code_and_what_waits_behind_it_gets_the_new(
    limits: dict[str, Any],
) -> None:
    app, begun, go_on = App(clock=ManualClock()), Journal(), asyncio.Event()

    class Slow:
        async def on_message(self, text: str) -> AsyncIterator[str]:
            yield f"new {text}"
            yield "and more"

    run_cell(app, slow(begun, go_on), **limits)
    async with connect(app, "/ws") as client:
        for text in "012":
            await client.send(text)
        running = await begun.take(limits.get("parallel", 1))
        run_cell(app, Slow, **limits)
        go_on.set()
        for text in running:
            await client.expect(f"old {text}")
        for text in "012"[len(running) :]:
            await client.expect(f"new {text}")
            await client.expect("and more")


async def test_a_client_that_is_idle_gets_the_new_code_of_a_handler_with_parallel_calls() -> None:
    app, begun, go_on = App(), Journal(), asyncio.Event()

    class Slow:
        async def on_message(self, text: str) -> str:
            return f"new {text}"

    run_cell(app, slow(begun, go_on), parallel=3)
    async with connect(app, "/ws") as client:
        idle = len(asyncio.all_tasks())
        await client.send("0")
        assert await begun.next() == "0"
        run_cell(app, Slow, parallel=3)
        await client.send("1")
        await client.expect("new 1")
        go_on.set()
        await client.expect("old 0")
        await until(lambda: len(asyncio.all_tasks()) == idle)
        run_cell(app, slow(begun, go_on), parallel=3)
        await client.send("1")
        await client.expect("old 1")
        run_cell(app, Slow, parallel=3)
        await client.send("2")
        await client.expect("new 2")


async def test_calls_that_run_end_with_the_connection_if_the_new_code_cannot_be_looked_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, begun, go_on = App(), Journal(), asyncio.Event()

    class Slow:
        def __getattribute__(self, name: str) -> Any:
            if name == "on_message":
                raise RuntimeError("no such service")
            return super().__getattribute__(name)

        async def on_message(self, text: str) -> str:
            raise NotImplementedError

    logged = Logged(caplog)
    run_cell(app, slow(begun, go_on), parallel=3)
    async with connect(app, "/ws") as client:
        idle = len(asyncio.all_tasks())
        await client.send("0")
        await begun.next()
        assert len(asyncio.all_tasks()) > idle
        run_cell(app, Slow, parallel=3)
        await client.expect_close(1011)
        await until(lambda: len(asyncio.all_tasks()) <= idle)
    assert logged.lines() == ["ERROR Slow.on_message failed for 127.0.0.1:50000"]


async def test_messages_with_types_become_others() -> None:
    app, answers = App(), Journal()

    def before() -> type:
        class Asks:
            sink: Sink
            asking: asyncio.Task[None]

            async def ask(self) -> None:
                answers.add(await self.sink.ask({"sure": True}, dict[str, Any]))

            async def on_message(self, numbers: list[int]) -> dict[str, int]:
                self.asking = self.sink.create_task(self.ask())
                return {"sum": sum(numbers)}

        return Asks

    def with_words() -> type:
        class Asks:
            async def on_message(self, words: dict[str, str]) -> list[str]:
                return list(words)

        return Asks

    def plain() -> type:
        class Asks:
            async def on_message(self, text: str) -> str:
                return f"text {text}"

        return Asks

    run_cell(app, before())
    async with connect(app, "/ws") as client:
        await client.send_json([1, 2])
        assert await client.receive_json() == {"sum": 3}
        question = await client.receive_json()
        run_cell(app, with_words())
        # The answer that the old code waits for still comes.
        await client.send_json({"id": question["id"], "yes": 1})
        assert await answers.next() == {"id": question["id"], "yes": 1}
        await client.send_json({"a": "b"})
        assert await client.receive_json() == ["a"]
        run_cell(app, plain())
        await client.send("x")
        await client.expect("text x")
        run_cell(app, with_words())
        await client.send_json({"c": "d"})
        assert await client.receive_json() == ["c"]


async def test_a_line_says_how_many_have_the_new_code_and_how_many_cannot(
    in_notebook: None, capsys: pytest.CaptureFixture[str]
) -> None:
    app = App()

    def defined(slots: tuple[str, ...]) -> type:
        class Small:
            __slots__ = slots

            async def on_message(self, text: str) -> str:
                return f"{text} {len(slots)}"

        return Small

    def shown() -> str:
        return capsys.readouterr().out

    run_cell(app, defined(()))
    run_cell(app, defined(()))
    assert shown() == "", "nobody was there"
    async with connect(app, "/ws") as first:
        run_cell(app, defined(()))
        assert shown() == "Small: 1 connection runs the new code\n"
        run_cell(app, defined(("addr", "sink", "one")))
        assert shown() == (
            "Small: 0 connections run the new code, "
            "1 connection keeps the old: __class__ assignment: 'Small' object layout differs from 'Small'\n"
        )
        await first.send("x")
        await first.expect("x 0")
        async with connect(app, "/ws") as second, connect(app, "/ws") as third:
            run_cell(app, defined(("addr", "sink", "one")))
            assert shown() == "Small: 2 connections run the new code\n"
            for client in (second, third):
                await client.send("x")
                await client.expect("x 3")


async def test_instances_of_a_factory_and_of_frozen_dataclasses_become_instances_of_the_new_class() -> None:
    app = App()

    def defined(reply: str) -> type:
        @dataclass(frozen=True)
        class Replies:
            user: str = "nobody"
            said: ClassVar[str] = reply

            async def on_message(self, text: str) -> str:
                return f"{self.said}, {self.user}"

        return Replies

    def run(reply: str, **options: Any) -> None:
        made = defined(reply)
        run_cell(app, made, factory=lambda headers: made("ann"), **options)
        run_cell(app, made, "/plain", **options)

    run("old")
    async with connect(app, "/ws") as of_factory, connect(app, "/plain") as plain:
        run("new", max_connections=5)
        for client, expected in ((of_factory, "new, ann"), (plain, "new, nobody")):
            await client.send("x")
            await client.expect(expected)


async def test_an_instance_never_becomes_one_of_an_abstract_class(caplog: pytest.LogCaptureFixture) -> None:
    app, log = App(), Logged(caplog)

    def before() -> type:
        class Handler:
            async def on_message(self, text: str) -> str:
                return f"old {text}"

        return Handler

    class Handler(ABC):
        @abstractmethod
        async def on_message(self, text: str) -> str: ...

    old = before()
    run_cell(app, old, factory=lambda headers: old())
    async with connect(app, "/ws") as client:
        run_cell(app, Handler, factory=lambda headers: old())
        await client.send("x")
        await client.expect("old x")
    assert log.lines(logging.INFO)[-1].startswith("INFO Handler: 0 connections run the new code, 1 connection keeps")


async def test_other_routes_and_connections_of_other_classes_are_left_alone() -> None:
    app = App()

    def before() -> type:
        class Handler:
            async def on_message(self, text: str) -> str:
                return "old"

        return Handler

    class Handler:
        async def on_message(self, text: str) -> str:
            return "new"

    class Other:
        async def on_message(self, text: str) -> str:
            return "other"

    old = before()
    run_cell(app, old)
    run_cell(app, old, "/not/run/again")
    run_cell(app, old, "/other", factory=lambda headers: Other())
    async with connect(app, "/ws") as client, connect(app, "/not/run/again") as second, connect(app, "/other") as other:
        run_cell(app, Handler)
        run_cell(app, Handler, "/other", factory=lambda headers: Other())
        for each, expected in ((client, "new"), (second, "old"), (other, "other")):
            await each.send("x")
            await each.expect(expected)
