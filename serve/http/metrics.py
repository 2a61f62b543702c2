"""The service's measurements as a page for Prometheus. Alone in knowing the collector's library."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cong.service import Family, SampleService

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Page(Collector):
    def __init__(self, service: SampleService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        for family in self._service.measurements():
            yield _converted(family)


def metrics_page(service: SampleService) -> bytes:
    """Every metric as of now; a registry of its own, so that nothing else of the process gets in."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(service))
    return generate_latest(registry)


def _converted(family: Family) -> Metric:
    metric = family.metric
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, bins in family.bins.items():
            total, buckets = 0, []
            for bound, count in zip((*metric.buckets, float("inf")), bins.counts, strict=True):
                total += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
            histogram.add_metric(labels, buckets, bins.total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    plain = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in family.values.items():
        plain.add_metric(labels, value)
    return plain
