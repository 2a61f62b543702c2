"""The service's measurements as Ray's metrics, so that those of every replica lie on its node's one metrics page.

`/metrics` behind a proxy answers for whichever replica the request came to. Ray adds `ray_` in front of each name and
tells replicas apart by labels.
"""

import itertools
from collections.abc import Iterable

from ray.serve.metrics import Counter, Gauge

from cong.service import Family, Metric


class Mirror:
    """Shows measurements of one process; used in one thread."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._shown: dict[tuple[str, tuple[str, ...]], float] = {}

    def show(self, families: Iterable[Family]) -> None:
        """Bring Ray's metrics to where the measurements are."""
        for family in families:
            metric = family.metric
            for labels, value in family.values.items():
                if metric.kind == "counter":
                    self._count(metric, labels, value)
                else:
                    self._set(metric.name, metric.help, metric.labels, labels, value)
            for bins in family.bins.values():
                # Ray's own histograms take one value at a time and keep no exact sum. A histogram is a set of numbers
                # with agreed names; queries do not ask of which kind they are.
                bounds = [*(f"{bound:g}" for bound in metric.buckets), "+Inf"]
                for bound, count in zip(bounds, itertools.accumulate(bins.counts), strict=True):
                    self._set(f"{metric.name}_bucket", metric.help, ("le",), (bound,), count)
                self._set(f"{metric.name}_count", metric.help, (), (), sum(bins.counts))
                self._set(f"{metric.name}_sum", metric.help, (), (), bins.total)

    def _count(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        if metric.name not in self._counters:
            # Ray's annotation means any number of keys and says one.
            self._counters[metric.name] = Counter(metric.name, metric.help, metric.labels)  # type: ignore[arg-type]
        more = value - self._shown.get((metric.name, labels), 0.0)
        if more > 0:
            self._counters[metric.name].inc(more, dict(zip(metric.labels, labels, strict=True)))
            self._shown[metric.name, labels] = value

    def _set(self, name: str, help_text: str, keys: tuple[str, ...], labels: tuple[str, ...], value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, help_text, keys)  # type: ignore[arg-type]
        self._gauges[name].set(value, dict(zip(keys, labels, strict=True)))
