"""The pages for those who operate an app: its numbers for Prometheus, and its health."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from starlette.responses import PlainTextResponse, Response

from wsdeco.observe.numbers import numbers_of
from wsdeco.routing.endpoints import Context

__all__ = ["pages"]


def pages(context: Context, metrics: str | None, health: str | None) -> Iterator[tuple[str, Callable[..., Response]]]:
    """Yield the path and the endpoint of each page that is asked for.

    Args:
        context: What the endpoints of the app share.
        metrics: Path of the numbers as Prometheus text; `None` for no such page.
        health: Path of the health; `None` for no such page.

    Raises:
        ImportError: prometheus-client is not installed.
    """
    if metrics is not None:
        from wsdeco.observe.metrics import metrics_endpoint  # noqa: PLC0415 - it needs an extra

        numbers = numbers_of(context)
        numbers.is_detailed = True
        yield metrics, metrics_endpoint(numbers.taken)
    if health is not None:
        yield health, _health_endpoint(context)


def _health_endpoint(context: Context) -> Callable[[], Response]:
    def health() -> Response:
        if context.connections.closing:
            headers = {"Retry-After": str(context.connections.retry_after)}
            return PlainTextResponse("closing\n", 503, headers=headers)
        return PlainTextResponse("ok\n")

    return health
