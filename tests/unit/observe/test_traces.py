"""Traces, read by the in-memory exporter of the SDK."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.exceptions import HTTPException

from tests.support.brokers import BrokerProcess
from tests.support.programs import PATIENCE
from tests.support.recording import take_errors
from tests.support.stacks import soon, until
from tests.support.wire import Wire, websocket_scope
from wsdeco import Address, App, Backplane, Sink
from wsdeco.backplanes.interface import Propagator
from wsdeco.observe.traces import trace_connections
from wsdeco.routing.application import context_of
from wsdeco.testing import Client, HandshakeRefused, MemoryBroker, connect


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


async def test_a_handshake_and_each_call_of_a_hook_are_spans_of_their_own(
    exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(traces=True)
    inside: list[int] = []

    @app.handler("/{room}")
    class Echo:
        async def on_message(self, text: str) -> str:
            inside.append(trace.get_current_span().get_span_context().span_id)
            if text == "fail":
                raise ValueError(text)
            return text

    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with connect(app, "/ws", headers={"traceparent": parent}) as peer:
        await peer.send("a")
        assert await peer.receive() == "a"
        await peer.send("fail")
        await peer.expect_close(1011)
    take_errors(caplog)
    spans = exporter.get_finished_spans()
    (handshake,) = (each for each in spans if each.name == "GET /{room}")
    assert handshake.parent is not None
    assert handshake.context is not None
    assert (handshake.parent.span_id, handshake.context.trace_id) == (0xB7AD6B7169203331, int(parent[3:35], 16))
    assert handshake.attributes is not None
    assert handshake.attributes["http.response.status_code"] == 101
    assert handshake.attributes["url.path"] == "/ws"
    assert {str(each.attributes["http.route"]) for each in spans if each.attributes is not None} == {"/{room}"}
    calls = [each for each in spans if each is not handshake]
    assert [each.name for each in calls] == ["on_connect", "on_message", "on_message", "on_disconnect"]
    assert {link.context.span_id for each in calls for link in each.links} == {handshake.context.span_id}
    assert [each.context and each.context.span_id for each in calls if each.name == "on_message"] == inside
    assert [each.status.is_ok for each in calls] == [True, True, False, True]
    assert calls[2].attributes is not None
    assert calls[2].attributes["error.type"] == "ValueError"


async def test_a_refused_handshake_is_one_span(exporter: InMemorySpanExporter) -> None:
    app = App(traces=True)

    @app.handler("/ws")
    class Closed:
        def __init__(self) -> None:
            raise HTTPException(503)

        async def on_message(self, text: str) -> None:
            """Never called."""

    with pytest.raises(HandshakeRefused):
        async with connect(app, "/ws"):
            pass
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (503, "handler")
    assert not span.status.is_ok


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this works")


async def test_an_exception_that_cannot_be_shown_is_an_error_in_the_span(
    exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(traces=True)

    @app.handler("/ws")
    class Fails:
        async def on_message(self, text: str) -> None:
            raise UnprintableError

    async with connect(app, "/ws") as peer:
        await peer.send("a")
        await peer.expect_close(1011)
    take_errors(caplog)
    (call,) = named(exporter, "on_message")
    assert call.attributes is not None
    assert (call.attributes["error.type"], call.status.is_ok) == ("UnprintableError", False)
    assert len(named(exporter, "on_disconnect")) == 1


def test_a_missing_api_is_named_with_its_extra() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\nfrom wsdeco import App\n"
        "try: App(traces=True)\nexcept ImportError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "pip install 'wsdeco[otel]'" in done.stdout


async def test_each_of_several_calls_side_by_side_has_a_span_that_ends(exporter: InMemorySpanExporter) -> None:
    app = App(traces=True)

    @app.handler("/ws", parallel=2)
    class Slow:
        async def on_message(self, text: str) -> str:
            await asyncio.sleep(0)
            return text

    async with connect(app, "/ws") as peer:
        await peer.send("a")
        await peer.send("b")
        assert {await peer.receive(), await peer.receive()} == {"a", "b"}
    assert [each.name for each in exporter.get_finished_spans()].count("on_message") == 2


# Over the backplane.


@asynccontextmanager
async def members(*backplanes: str | Backplane, traces: bool = True) -> AsyncGenerator[list[tuple[App, Client]]]:
    """Run apps, so to speak processes, each with a client in the room `lobby` that broadcasts what it says.

    Args:
        backplanes: That of each.
        traces: Whether those behind the first one trace; that does.
    """
    async with AsyncExitStack() as stack:
        running: list[tuple[App, Client]] = []
        for backplane in backplanes:
            app = App(backplane=backplane, traces=traces or not running)
            stack.push_async_callback(app.shut_down)
            app.handler("/ws")(member_of(app))
            running.append((app, await stack.enter_async_context(connect(app, "/ws"))))
        for here, _ in running:
            for there, client in running:
                if there is not here:
                    await meet(here, there, client)
        yield running


def member_of(app: App) -> type:
    class Member:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            self.sink = sink
            app.room("lobby").join(sink)

        async def on_message(self, text: str) -> None:
            await app.room("lobby").broadcast(text, exclude=self.sink)

    return Member


async def meet(here: App, there: App, client: Client) -> None:
    """Wait until what one app broadcasts reaches the client of the other."""
    assert there.backplane is not None
    before = there.backplane.counters.received
    while there.backplane.counters.received == before:
        await here.room("lobby").broadcast("probe")
        await asyncio.sleep(0.005)
    await here.room("lobby").broadcast("met")
    await hear(client, "met")


async def hear(client: Client, text: str) -> None:
    """Wait for a broadcast, behind the probes of the beginning."""
    while await client.receive() != text:
        pass


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [each for each in exporter.get_finished_spans() if each.name == name]


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


@pytest.fixture(params=["memory", "nats", "redis"])
def backplanes(request: pytest.FixtureRequest) -> list[str | Backplane]:
    """Two of each kind."""
    if request.param == "memory":
        broker = MemoryBroker()
        return [broker.backplane(), broker.backplane()]
    process: BrokerProcess = request.getfixturevalue(request.param)
    return [process.url, process.url]


async def test_a_broadcast_carries_its_trace_to_other_processes(
    exporter: InMemorySpanExporter, backplanes: list[str | Backplane]
) -> None:
    async with members(*backplanes) as ((_, here), (_, there)):
        # What belongs to no trace carries none.
        assert named(exporter, "deliver") == []
        await here.send("hello")
        await hear(there, "hello")
        await until(lambda: bool(named(exporter, "on_message")))
    (delivered,), (call,) = named(exporter, "deliver"), named(exporter, "on_message")
    assert call.context is not None
    assert linked(delivered) == [(call.context.trace_id, call.context.span_id)]
    assert (delivered.kind, delivered.parent) == (SpanKind.CONSUMER, None)
    assert delivered.attributes == {
        "messaging.system": "wsdeco",
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "process",
        "messaging.destination.name": "lobby",
    }


async def test_who_does_not_trace_gets_the_broadcasts_of_who_does(
    exporter: InMemorySpanExporter, nats: BrokerProcess
) -> None:
    async with members(nats.url, nats.url, traces=False) as ((_, here), (_, there)):
        await here.send("hello")
        await hear(there, "hello")
        await there.send("back")
        await hear(here, "back")
    assert named(exporter, "deliver") == []


async def test_a_broadcast_from_another_thread_carries_the_trace_of_its_caller(exporter: InMemorySpanExporter) -> None:
    broker = MemoryBroker()
    async with members(broker.backplane(), broker.backplane()) as ((app, _), (_, there)):
        with trace.get_tracer("test").start_as_current_span("job") as job:
            await asyncio.to_thread(app.room("lobby").broadcast_nowait, "hello")
            await app.room("lobby").count()
        await hear(there, "hello")
    (delivered,) = named(exporter, "deliver")
    context = job.get_span_context()
    assert linked(delivered) == [(context.trace_id, context.span_id)]


class BrokenPropagator(TraceContextTextMapPropagator):
    """Fails in one direction."""

    def __init__(self, broken: str) -> None:
        self._broken = broken

    def inject(self, *args: Any, **keywords: Any) -> None:
        if self._broken == "inject":
            raise RuntimeError("cannot write")
        super().inject(*args, **keywords)

    def extract(self, *args: Any, **keywords: Any) -> Context:
        if self._broken == "extract":
            raise RuntimeError("cannot read")
        return super().extract(*args, **keywords)


@pytest.fixture
def break_propagator() -> Iterator[Callable[[str], None]]:
    before = propagate.get_global_textmap()
    yield lambda broken: propagate.set_global_textmap(BrokenPropagator(broken))
    propagate.set_global_textmap(before)


@pytest.mark.parametrize(("broken", "failures"), [("inject", 1), ("extract", 3)])
async def test_a_propagator_that_fails_costs_no_connection_and_no_broadcast(
    exporter: InMemorySpanExporter,
    break_propagator: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    broken: str,
    failures: int,
) -> None:
    break_propagator(broken)
    broker = MemoryBroker()
    async with members(broker.backplane(), broker.backplane()) as ((_, here), (_, there)):
        await here.send("hello")
        await hear(there, "hello")
        await until(lambda: len(named(exporter, "on_message")) == 1)
    assert named(exporter, "deliver") == []
    errors = [message for _, message in take_errors(caplog)]
    assert [each.startswith("a propagator of traces failed") for each in errors] == [True] * failures


def propagator() -> Propagator:
    return trace_connections(context_of(App()))


def in_span(state: TraceState) -> Context:
    context = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1), trace_state=state)
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def test_what_of_a_context_has_no_room_stays_behind(exporter: InMemorySpanExporter) -> None:
    parent = f"traceparent: 00-{1:032x}-{2:016x}-01\n"
    expected = {
        "room:a": (f"{parent}tracestate: a=b\n", [("a", "b")]),
        "room:b": (parent, [("a", "b" * 200)]),
        "control:": ("", [("a", "b")]),
    }
    for key, (injected, state) in expected.items():
        token = context.attach(baggage.set_baggage("user", "7", in_span(TraceState(state))))
        try:
            assert propagator().inject(key).decode() == injected
        finally:
            context.detach(token)


@pytest.mark.parametrize(
    "carried", [b"", b"\xff\0\n\n: :", b"traceparent: 00-0-0-01\n", b"traceparent", b"tracestate: a=b\n" * 15]
)
def test_a_context_that_is_none_makes_no_span(exporter: InMemorySpanExporter, carried: bytes) -> None:
    with propagator().delivering("room:a", carried):
        assert not trace.get_current_span().get_span_context().is_valid
    assert exporter.get_finished_spans() == ()


async def test_a_handshake_whose_peer_has_gone_has_no_status(exporter: InMemorySpanExporter) -> None:
    app = App(traces=True)
    begun = asyncio.Event()

    @app.handler("/ws", disconnect_grace=0)
    class Slow:
        async def on_connect(self, addr: Address, sink: Sink) -> None:
            begun.set()
            await asyncio.Event().wait()

        async def on_message(self, text: str) -> None:
            """Never called."""

    wire = Wire(app, websocket_scope())
    wire.connect()
    await soon(begun.wait())
    wire.lose()
    await wire.done()
    (handshake,) = named(exporter, "GET /ws")
    assert handshake.attributes is not None
    assert "http.response.status_code" not in handshake.attributes
    assert handshake.attributes["error.type"] == "gone"
