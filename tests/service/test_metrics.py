"""The table of metrics and the numbers behind it."""

import re

import pytest

from cong.service.metrics import METRICS, Meter


def test_names_say_what_they_are() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"cong_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert metric.help.strip(".") == metric.help != ""


def test_a_histogram_counts_every_value_in_its_bin() -> None:
    meter = Meter()
    meter.observe("cong_head_set_size", [1, 1, 2, 7, 10**9], weight=3)
    (family,) = [family for family in meter.families() if family.metric.name == "cong_head_set_size"]
    bins, bounds = family.bins[()], family.metric.buckets
    assert sum(bins.counts) == 15
    assert bins.total == 3 * (1 + 1 + 2 + 7 + 10**9)
    assert bins.counts[bounds.index(1.0)] == 6
    assert bins.counts[bounds.index(10.0)] == 3
    assert bins.counts[-1] == 3


def test_a_metric_is_used_as_the_table_says() -> None:
    meter = Meter()
    meter.count("cong_request_finished_total", 2, "stop")
    assert meter.value("cong_request_finished_total", "stop") == 2
    with pytest.raises(AssertionError):
        meter.count("cong_request_finished_total", 1)
    with pytest.raises(AssertionError):
        meter.observe("cong_request_finished_total", [1.0])
    with pytest.raises(KeyError):
        meter.count("cong_no_such_total")
