"""The curves of a run as figures, drawn from its metrics file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cong.report import Axis, Line, LinePlot, Panels, save_plot
from cong.train.metrics import read_metrics

_CURVES = (
    ("loss", "loss", ""),
    ("grad_norm", "gradient norm", ""),
    ("learning_rate", "learning rate", ""),
    ("tokens_per_s", "speed", "tokens/s"),
    ("reward_margin", "reward margin", "nats"),
    ("accuracy", "accuracy", ""),
)


def draw_curves(metrics: Path, target: Path) -> None:
    """One panel per number that the run has; evaluations are drawn over the loss."""
    lines = list(read_metrics(metrics))
    plots = []
    for name, label, unit in _CURVES:
        curves = [
            curve for curve in (_line(lines, name, "training"), _line(lines, f"eval/{name}", "held out")) if curve
        ]
        if curves:
            plots.append(LinePlot(curves, Axis("step"), Axis(label, unit), title=label, smoothing=0.0))
    if plots:
        save_plot(Panels(plots, num_columns=2), target)


def _line(lines: Sequence[dict[str, Any]], name: str, label: str) -> Line | None:
    points = [(float(line["step"]), float(line[name])) for line in lines if line.get(name) is not None]
    return Line(label, [x for x, _ in points], [y for _, y in points]) if points else None
