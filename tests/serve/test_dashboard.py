"""The dashboard draws every metric of the table and nothing that does not exist."""

import json
import re
from pathlib import Path

import pytest

from cong.service import METRICS, Metric
from serve import dashboard

FILE = Path(__file__).parent.parent.parent / "deploy" / "grafana" / "dashboard.json"


def drawn() -> dict[str, str]:
    """Every metric that a panel asks for, with one of the expressions that do."""
    panels = json.loads(FILE.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return {name: text for text in expressions for name in re.findall(r"\bray_\w+", text)}


def test_the_shipped_dashboard_is_the_one_that_is_made() -> None:
    assert FILE.read_text() == dashboard.text(), "run: python -m serve.dashboard > deploy/grafana/dashboard.json"


def test_every_metric_is_drawn_and_nothing_else_of_ours() -> None:
    known = {
        f"{dashboard.PREFIX}{metric.name}" + ("_bucket" if metric.kind == "histogram" else "") for metric in METRICS
    }
    assert {name for name in drawn() if name.startswith("ray_cong_")} == known


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_labels_that_are_asked_for_exist(metric: Metric) -> None:
    for expression, legend in dashboard.queries(metric):
        asked = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
        assert asked <= {*metric.labels, "le", "replica"}
        assert set(re.findall(r"{{(\w+)}}", legend)) <= asked


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.panels():
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
