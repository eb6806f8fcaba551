"""The pages for those who operate an app: its numbers for Prometheus, and its health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import PlainTextResponse, Response

from wsdeco.definition.paths import check_path
from wsdeco.observe.numbers import numbers_of
from wsdeco.routing.application import Application, context_of, registry_of, rooms_of
from wsdeco.routing.functions import endpoint_routes
from wsdeco.routing.registry import Registered, RouteInfo, kind_of

__all__ = ["add_pages"]


def add_pages(app: Application, metrics: str | None, health: str | None) -> None:
    """Register the pages that are asked for by a path.

    Raises:
        ImportError: prometheus-client is not installed.
        RouteError: A path cannot be routed, or something else is registered there.
    """
    if metrics is not None:
        from wsdeco.observe.metrics import metrics_endpoint  # noqa: PLC0415 - it needs an extra

        _register(app, metrics, metrics_endpoint(numbers_of(app).taken))
    if health is not None:
        _register(app, health, _health_endpoint(app))


def _health_endpoint(app: Application) -> Callable[[], Response]:
    def health() -> Response:
        if app.is_closing:
            retry_after = str(context_of(app).connections.retry_after)
            return PlainTextResponse("closing\n", 503, headers={"Retry-After": retry_after})
        return PlainTextResponse("ok\n")

    return health


def _register(app: Application, path: str, endpoint: Callable[..., Any]) -> None:
    check_path(path)
    routes = endpoint_routes(path, endpoint, None, None, context_of(app), rooms_of(app).of_route(path))
    registry_of(app).register(Registered(RouteInfo(path, kind_of(routes), endpoint.__name__, None), endpoint, routes))
