"""The Grafana dashboard, made from the table of metrics: `python -m serve.dashboard > deploy/grafana/dashboard.json`.

Every metric has one panel; a metric that no row names, or a row that names none, is an error.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from cong.service import METRICS, Metric

PREFIX = "ray_"
"""Ray puts it in front of every name that it exports."""

ROWS: Mapping[str, tuple[str, ...]] = {
    "Load": (
        "cong_requests_running",
        "cong_requests_waiting",
        "cong_calls_open",
        "cong_kv_cache_usage_ratio",
        "cong_requests_refused_total",
        "cong_request_finished_total",
    ),
    "Latency": (
        "cong_time_to_first_token_seconds",
        "cong_inter_token_latency_seconds",
        "cong_e2e_request_latency_seconds",
    ),
    "Tokens": (
        "cong_prompt_tokens_total",
        "cong_generation_tokens_total",
        "cong_scored_tokens_total",
        "cong_head_set_size",
    ),
    "Engine": (
        "cong_engine_health",
        "cong_engine_steps_total",
        "cong_engine_seconds_total",
        "cong_engine_bound_seconds_total",
        "cong_preemptions_total",
        "cong_prefix_hits_total",
    ),
    "Stream": (
        "cong_stream_acknowledged_total",
        "cong_stream_append_seconds",
        "cong_stream_failures_total",
        "cong_duplicates_total",
    ),
}

SERVE_PANELS: Mapping[str, tuple[str, str]] = {
    # Title: expression over Ray Serve's own metrics, legend.
    "Replicas that are healthy": ("sum(ray_serve_deployment_replica_healthy)", "replicas"),
    "Requests through the proxies": (
        "sum by (error_code) (rate(ray_serve_num_http_error_requests_total[$__rate_interval]))",
        "status {{error_code}}",
    ),
    "Requests that wait for a replica": ("sum(ray_serve_deployment_queued_queries)", "requests"),
}

_UNITS = {"s": "s", "tokens": "short", "samples": "short", "requests": "short", "": "short"}
_QUANTILES = (0.5, 0.9, 0.99)
_WIDTH, _HEIGHT, _PER_LINE = 8, 8, 3


def queries(metric: Metric) -> list[tuple[str, str]]:
    """Expressions for a metric, each with its legend."""
    name, by = PREFIX + metric.name, ", ".join(metric.labels)
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels) or metric.unit or "value"
    if metric.kind == "histogram":
        rate = f"sum by (le) (rate({name}_bucket[$__rate_interval]))"
        return [(f"histogram_quantile({q:g}, {rate})", f"{q:.0%}") for q in _QUANTILES]
    if metric.kind == "counter":
        inner = f"rate({name}[$__rate_interval])"
        return [(f"sum by ({by}) ({inner})" if by else f"sum({inner})", legend)]
    if by:
        return [(f"sum by ({by}) ({name})", legend)]
    # A level of each replica; a sum of ratios would mean nothing.
    return [(f"max by (replica) ({name})", "{{replica}}")]


def unit(metric: Metric) -> str:
    """Grafana's name for the unit of what is drawn."""
    if metric.name.endswith("_ratio"):
        return "percentunit"
    if metric.kind == "counter":
        return "short" if metric.unit == "s" else "cps"
    return _UNITS[metric.unit]


def panels() -> Iterator[dict[str, Any]]:
    """Rows and panels from top to bottom."""
    by_name = {metric.name: metric for metric in METRICS}
    named = [name for names in ROWS.values() for name in names]
    assert sorted(named) == sorted(by_name), f"rows and table differ: {set(named) ^ set(by_name)}"
    rows: list[tuple[str, list[tuple[str, str, list[tuple[str, str]]]]]] = [
        (row, [(by_name[name].help, unit(by_name[name]), queries(by_name[name])) for name in names])
        for row, names in ROWS.items()
    ]
    rows.append(("Ray Serve", [(title, "short", [query]) for title, query in SERVE_PANELS.items()]))
    top, number = 0, 0
    for row, items in rows:
        number += 1
        yield {"id": number, "type": "row", "title": row, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}, "panels": []}
        top += 1
        for place, (title, measure, shown) in enumerate(items):
            number += 1
            x, y = place % _PER_LINE * _WIDTH, top + place // _PER_LINE * _HEIGHT
            yield _panel(number, title, measure, shown, {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT})
        top += -(-len(items) // _PER_LINE) * _HEIGHT


def _panel(
    number: int, title: str, measure: str, shown: list[tuple[str, str]], place: dict[str, int]
) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": measure, "min": 0}, "overrides": []},
        "options": {"legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(shown)
        ],
    }


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "title": "cong",
        "uid": "cong",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "tags": ["cong", "ray"],
        "templating": {
            "list": [{"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}]
        },
        "panels": list(panels()),
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
