"""What is counted and measured, in one table, and the numbers themselves. Knows no collector and no text format.

The table is the only place where a metric has a name: the page for collectors and dashboards are made from it.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

MetricKind = Literal["counter", "gauge", "histogram"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SIZES = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0, 20_000.0, 100_000.0)


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    kind: MetricKind
    help: str
    unit: str = ""
    """For axes: s, tokens, samples, requests; empty = a plain number."""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, ascending; the last, infinity, goes without saying."""


METRICS: tuple[Metric, ...] = (
    Metric("cong_requests_running", "gauge", "Samples that have a seat in the engine", "samples"),
    Metric("cong_requests_waiting", "gauge", "Samples that wait for a seat in the engine", "samples"),
    Metric("cong_calls_open", "gauge", "HTTP requests that are being served", "requests"),
    Metric("cong_kv_cache_usage_ratio", "gauge", "Share of the blocks of keys and values that is in use"),
    Metric("cong_engine_health", "gauge", "1 for the state the service is in, 0 for the others", labels=("status",)),
    Metric("cong_engine_steps_total", "counter", "Steps of the engine"),
    Metric("cong_engine_seconds_total", "counter", "Seconds of the engine's steps, by phase", "s", ("phase",)),
    Metric("cong_engine_bound_seconds_total", "counter", "Seconds that the engine's steps would take at least", "s"),
    Metric("cong_preemptions_total", "counter", "Samples that gave up their blocks and were computed again", "samples"),
    Metric("cong_prefix_hits_total", "counter", "Blocks that were shared instead of computed"),
    Metric("cong_prompt_tokens_total", "counter", "Tokens of the prompts that were taken in", "tokens"),
    Metric("cong_generation_tokens_total", "counter", "Tokens that were drawn", "tokens"),
    Metric("cong_scored_tokens_total", "counter", "Tokens of given texts that were scored", "tokens"),
    Metric(
        "cong_time_to_first_token_seconds",
        "histogram",
        "From submission to a sample's first token",
        "s",
        buckets=_SECONDS,
    ),
    Metric(
        "cong_inter_token_latency_seconds",
        "histogram",
        "Between a sample's tokens: its mean, counted once for each of them",
        "s",
        buckets=_SECONDS,
    ),
    Metric(
        "cong_e2e_request_latency_seconds",
        "histogram",
        "From taking a request in to the end of its answer",
        "s",
        buckets=_SECONDS,
    ),
    Metric("cong_request_finished_total", "counter", "Samples that ended, by reason", "samples", ("reason",)),
    Metric("cong_requests_refused_total", "counter", "Requests that were refused or failed", "requests", ("reason",)),
    Metric("cong_head_set_size", "histogram", "Tokens in the head set at each drawn token", "tokens", buckets=_SIZES),
    Metric("cong_stream_acknowledged_total", "counter", "Samples acknowledged, by level", "samples", ("level",)),
    Metric(
        "cong_stream_append_seconds",
        "histogram",
        "From handing a sample in to its acknowledgement",
        "s",
        buckets=_SECONDS,
    ),
    Metric("cong_stream_failures_total", "counter", "Samples that could not be stored", "samples"),
    Metric("cong_duplicates_total", "counter", "Samples that were answered without being made again", "samples"),
)
"""Everything that is measured."""


@dataclass
class Bins:
    """A histogram's state for one set of labels."""

    counts: list[int]
    total: float = 0.0


@dataclass
class Family:
    """A metric with its numbers, by the values of its labels."""

    metric: Metric
    values: dict[tuple[str, ...], float] = field(default_factory=dict)
    bins: dict[tuple[str, ...], Bins] = field(default_factory=dict)


class Meter:
    """The numbers of one service; used on one event loop only."""

    def __init__(self) -> None:
        self._families = {metric.name: Family(metric) for metric in METRICS}
        for family in self._families.values():
            if not family.metric.labels and family.metric.kind == "histogram":
                family.bins[()] = Bins([0] * (len(family.metric.buckets) + 1))
            elif not family.metric.labels:
                family.values[()] = 0.0

    def count(self, name: str, amount: float = 1.0, *labels: str) -> None:
        """Add to a counter."""
        values = self._family(name, "counter", labels).values
        values[labels] = values.get(labels, 0.0) + amount

    def show(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge, or a counter that is counted elsewhere."""
        self._families[name].values[labels] = value

    def observe(self, name: str, values: Iterable[float], weight: int = 1) -> None:
        """Put values into a histogram, each `weight` times."""
        family = self._family(name, "histogram", ())
        bounds, bins = family.metric.buckets, family.bins[()]
        for value in values:
            bins.counts[bisect_left(bounds, value)] += weight
            bins.total += value * weight

    def families(self) -> tuple[Family, ...]:
        """Everything, in the order of the table."""
        return tuple(self._families.values())

    def value(self, name: str, *labels: str) -> float:
        """A counter or a gauge."""
        return self._families[name].values.get(labels, 0.0)

    def _family(self, name: str, kind: MetricKind, labels: tuple[str, ...]) -> Family:
        family = self._families[name]
        assert family.metric.kind == kind, f"{name} is a {family.metric.kind}, not a {kind}"
        assert len(labels) == len(family.metric.labels), f"{name} has the labels {family.metric.labels}, not {labels}"
        return family
