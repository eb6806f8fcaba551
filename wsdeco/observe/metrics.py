"""The numbers as Prometheus text, through the collector interface of prometheus-client (extra `metrics`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from starlette.requests import Request
from starlette.responses import Response

from wsdeco.observe.numbers import Histogram, Stats

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError("App(metrics=...) needs prometheus-client: pip install 'wsdeco[metrics]'") from _error

__all__ = ["StatsCollector", "metrics_endpoint"]


class StatsCollector(Collector):
    """Reads the numbers of an app when Prometheus asks; register it in a registry of your own to add others.

    Args:
        read: Returns the numbers of the moment.
    """

    def __init__(self, read: Callable[[], Stats]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        return _metrics(self._read())


def _metrics(stats: Stats) -> Iterator[Metric]:
    yield GaugeMetricFamily("wsdeco_connections_open", "Connections that are open.", stats.open)
    yield GaugeMetricFamily("wsdeco_rooms", "Rooms that have members, of each process.", stats.rooms)
    yield GaugeMetricFamily("wsdeco_room_members", "Members of rooms.", stats.members)
    yield GaugeMetricFamily("wsdeco_loop_lag_seconds", "How late the event loop ran a timer.", stats.lag)
    yield CounterMetricFamily("wsdeco_connections_accepted", "Upgrades that were accepted.", stats.accepted)
    yield _labelled("wsdeco_handshakes_refused", "Handshakes that were refused.", "cause", stats.refused)
    ended = CounterMetricFamily("wsdeco_connections_ended", "Connections that ended.", labels=["code", "by"])
    for kind, count in sorted(stats.ended.items()):
        code, _, by = kind.partition(" ")
        ended.add_metric([code, by or "network"], count)
    yield ended
    for name, text, value in (
        ("wsdeco_messages_received", "Messages that arrived.", stats.messages_received),
        ("wsdeco_received_bytes", "Payload of the messages that arrived.", stats.bytes_received),
        ("wsdeco_messages_sent", "Messages that were sent.", stats.messages_sent),
        ("wsdeco_sent_bytes", "Payload of the messages that were sent.", stats.bytes_sent),
        ("wsdeco_messages_dropped", "Outgoing messages dropped for slow consumers.", stats.dropped),
        ("wsdeco_messages_over_rate", "Messages over a rate of the connection.", stats.over_rate),
        ("wsdeco_messages_invalid", "Messages of another type than on_message takes.", stats.invalid),
        ("wsdeco_messages_undelivered", "Incoming messages that reached no hook.", stats.undelivered),
        ("wsdeco_slow_consumers", "Connections closed because their peer read too slowly.", stats.slow_consumers),
    ):
        yield CounterMetricFamily(name, text, value)
    yield _labelled("wsdeco_hook_failures", "Exceptions of hooks.", "hook", stats.hook_failures)
    for name, text, value in (
        ("wsdeco_inbox_high_water_bytes", "Memory of messages of one connection that waited.", stats.inbox_high_water),
        ("wsdeco_outbox_high_water_bytes", "What one peer had yet to make room for.", stats.outbox_high_water),
    ):
        yield GaugeMetricFamily(name, text, value)
    hooks = HistogramMetricFamily("wsdeco_hook_seconds", "Time that hooks took.", labels=["hook"])
    for hook, histogram in sorted(stats.hooks.items()):
        hooks.add_metric([hook], buckets=_buckets(histogram), sum_value=histogram.total)
    yield hooks
    yield _histogram("wsdeco_handshake_seconds", "Time from the handshake to the upgrade.", stats.handshakes)
    yield _histogram("wsdeco_connection_seconds", "Lives of connections that have ended.", stats.lives)


def _labelled(name: str, text: str, label: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=_buckets(histogram), sum_value=histogram.total)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        below += count
        buckets.append((bound, below))
    return buckets


def metrics_endpoint(read: Callable[[], Stats]) -> Callable[[Request], Response]:
    """Return the endpoint that answers with the numbers, in the format that the scraper accepts."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatsCollector(read))

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return metrics
