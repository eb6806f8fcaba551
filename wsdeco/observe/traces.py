"""Traces through the OpenTelemetry API (extra `otel`): spans of handshakes, calls of hooks, and what others broadcast.

A span of a connection would be as long as the connection, and no backend shows one before it has ended. So each call of
a hook is a trace of its own with a link to the handshake. A broadcast takes the context of its caller along, and a span
in each other process that delivers it has a link to that. The SDK says which spans are kept, and where they go.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar, Token
from typing import Any, Final, cast

from starlette.types import Scope

from wsdeco.backplanes.interface import CONTROL, MAX_CONTEXT, ROUTE, Propagator
from wsdeco.channels.base import Channel, RouteRoom
from wsdeco.channels.observer import Observer
from wsdeco.routing.endpoints import Context as AppContext

try:
    from opentelemetry import context, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
except ImportError as _error:
    raise ImportError("App(traces=True) needs the API of OpenTelemetry: pip install 'wsdeco[otel]'") from _error

__all__ = ["trace_connections"]

logger: Final = logging.getLogger("wsdeco")

_call: Final[ContextVar[tuple[Span, Token[Context]] | None]] = ContextVar("wsdeco_traced_call", default=None)
"""The span of the hook that this task is calling; hooks of one connection may run side by side."""


def trace_connections(app: AppContext) -> Propagator:
    """Trace the connections of an app that begin from now on, and return what lets broadcasts carry the traces."""
    tracer = trace.get_tracer("wsdeco")
    app.observe(_Tracing(tracer))
    return _Propagator(tracer)


class _Propagator:
    """Writes and reads the context of broadcasts: the fields of the propagators of the API, a line each."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def inject(self, key: str, /) -> bytes:
        """Return the context of the caller, as far as there is room for it."""
        if key == CONTROL or not trace.get_current_span().get_span_context().is_valid:
            return b""
        fields: dict[str, str] = {}
        try:
            propagate.inject(fields)
        except Exception:
            logger.exception("a propagator of traces failed: a broadcast carries no context")
            return b""
        # No code of the user runs when a broadcast is delivered, so nobody would read the baggage.
        fields.pop("baggage", None)
        context = b""
        for name, value in fields.items():
            line = f"{name}: {value}\n".encode()
            # The field of the trace comes first, and is short.
            if len(context) + len(line) <= MAX_CONTEXT:
                context += line
        return context

    def delivering(self, key: str, context: bytes, /) -> AbstractContextManager[object]:
        """Return a span with a link to who has broadcast, or nothing to enter if that is not known."""
        if not context:
            return nullcontext()
        lines = (line.partition(": ") for line in context.decode("ascii", "replace").splitlines())
        carried = _extracted({name: value for name, _, value in lines}, Context())
        publisher = trace.get_current_span(carried).get_span_context()
        if not publisher.is_valid:
            return nullcontext()
        attributes = {
            "messaging.system": "wsdeco",
            "messaging.operation.name": "deliver",
            "messaging.operation.type": "process",
            "messaging.destination.name": key.partition(":")[2],
        }
        # The room is no part of the name: there may be one for each user.
        return self._tracer.start_as_current_span(
            "deliver", context=Context(), kind=SpanKind.CONSUMER, links=[Link(publisher)], attributes=attributes
        )


def _extracted(fields: dict[str, str], beside: Context | None) -> Context | None:
    try:
        return propagate.extract(fields, beside)
    except Exception:
        # A propagator may be the user's, and its failure must cost a trace, not a connection or a broadcast.
        logger.exception("a propagator of traces failed: what comes begins a trace of its own")
        return beside


class _Tracing(Observer):
    """Begins with the connections of an app."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, channel: Channel) -> Observer:
        """Return what traces one connection, whose handshake has arrived."""
        return _Traced(self._tracer, channel)


class _Traced(Observer):
    """Traces one connection."""

    __slots__ = ("_attributes", "_handshake", "_link", "_tracer")

    def __init__(self, tracer: Tracer, channel: Channel) -> None:
        scope = channel.request.scope
        self._tracer = tracer
        # Only connections of a route are watched.
        route = cast("RouteRoom", channel.route_room).key.removeprefix(ROUTE)
        self._attributes: dict[str, Any] = {"url.path": scope["path"], "http.route": route}
        attributes = self._attributes | {
            "http.request.method": "GET",
            "url.scheme": scope["scheme"],
            "network.protocol.name": "websocket",
            "client.address": channel.addr.host,
            "client.port": channel.addr.port,
        }
        # The path is not part of the name: each user of `/users/{id}` would have a name of their own.
        self._handshake: Span | None = tracer.start_span(
            f"GET {route}",
            context=_extracted(dict(channel.request.headers), None),
            kind=SpanKind.SERVER,
            attributes=attributes,
        )
        self._link = Link(self._handshake.get_span_context())

    def refused(self, scope: Scope, status: int, cause: str) -> None:
        """End the span of the handshake."""
        self._answered(status, cause)

    def accepted(self, channel: Channel) -> None:
        """End the span of the handshake."""
        self._answered(101, None)

    def hook_started(self, channel: Channel, hook: str) -> None:
        """Begin a span, which is the parent of those that the hook begins."""
        span = self._tracer.start_span(
            hook, context=Context(), links=[self._link], attributes=self._attributes | {"code.function.name": hook}
        )
        _call.set((span, context.attach(trace.set_span_in_context(span))))

    def hook_ended(self, channel: Channel, hook: str, exception: BaseException | None) -> None:
        """End the span of the call."""
        # Each call that has ended has begun, in the same context.
        span, token = cast("tuple[Span, Token[Context]]", _call.get())
        _call.set(None)
        context.detach(token)
        if exception is not None:
            # It may be one that cannot be shown.
            with suppress(Exception):
                span.record_exception(exception)
            span.set_attribute("error.type", type(exception).__qualname__)
            span.set_status(StatusCode.ERROR)
        span.end()

    def _answered(self, status: int, cause: str | None) -> None:
        # It is answered once.
        span, self._handshake = cast("Span", self._handshake), None
        if status:
            span.set_attribute("http.response.status_code", status)
        if cause is not None:
            span.set_attribute("error.type", cause)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()
