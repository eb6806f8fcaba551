"""Traces, read by the in-memory exporter of the SDK."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.exceptions import HTTPException

from tests.support.programs import PATIENCE
from tests.support.recording import take_errors
from wsdeco import App
from wsdeco.testing import HandshakeRefused, connect


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
