"""How each kind of plot looks: one function per kind draws onto matplotlib axes.

Only `drawing` imports this module, after it has made sure that matplotlib is there. Figures are objects of their own:
no pyplot, no state between calls.
"""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cong.report.axes import (
    MUTED,
    SMALL_PT,
    Legend,
    add_legend,
    clean,
    label_at_right,
    label_on_top,
    set_axis,
    set_title,
)
from cong.report.plots import Axis, Bar, BarPlot, Histogram, Line, LinePlot, Panels, Plot, ScatterPlot
from cong.report.tables import Estimate
from cong.report.theme import COLOURS, SERIES
from cong.statistics import pearson, quantile_means

Values = npt.NDArray[np.float64]
Chart = LinePlot | BarPlot | ScatterPlot | Histogram

PAPER, INK, GRID = COLOURS["paper"].light, COLOURS["ink"].light, COLOURS["grid"].light

WIDTH_IN, HEIGHT_IN = 6.2, 3.3
PANEL_WIDTH_IN, PANEL_HEIGHT_IN = 2.9, 2.4
BAR_HEIGHT_IN = 0.3
LINE_HEIGHT_IN = SMALL_PT * 1.3 / 72
# Longer names of bars take several lines, and leave the bars their room.
MOST_LABEL_CHARS = 50
# More points than this make a file heavy and no picture clearer; statistics use all of them.
MAX_POINTS_DRAWN = 2000

STYLE = {
    "svg.hashsalt": "cong",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL_PT,
    "ytick.labelsize": SMALL_PT,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "legend.frameon": False,
    "legend.fontsize": SMALL_PT,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 200,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}


def draw(plot: Plot) -> Figure:
    """A figure of the plot, laid out and ready to be saved."""
    charts = tuple(plot.plots) if isinstance(plot, Panels) else (plot,)
    num_columns = min(plot.num_columns, len(charts)) if isinstance(plot, Panels) else 1
    num_rows = -(-len(charts) // num_columns)
    figure = Figure(figsize=_size(charts, num_rows, num_columns), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        num_rows, num_columns, squeeze=False, sharey=isinstance(plot, Panels) and plot.is_y_shared
    ).ravel()
    legend = Legend(tuple(dict.fromkeys(name for chart in charts for name in _names(chart))))
    for axes, chart in zip(grid, charts, strict=False):
        _draw_chart(axes, chart, legend)
    for axes in grid[len(charts) :]:
        axes.set_visible(False)
    # A lone curve, group or colour is explained by the caption.
    is_scatter = any(isinstance(chart, ScatterPlot) for chart in charts)
    add_legend(figure, list(grid[: len(charts)]), explains_one=is_scatter)
    return figure


def _draw_chart(axes: Axes, chart: Chart, legend: Legend) -> None:
    match chart:
        case LinePlot():
            _draw_lines(axes, chart, legend)
        case BarPlot():
            _draw_bars(axes, chart, legend)
        case ScatterPlot():
            _draw_scatter(axes, chart)
        case Histogram():
            _draw_histogram(axes, chart, legend)
    if chart.title:
        set_title(axes, chart.title)


def _draw_lines(axes: Axes, plot: LinePlot, legend: Legend) -> None:
    for line in plot.lines:
        _draw_line(axes, plot, line, legend)
    set_axis(axes, "x", plot.x)
    set_axis(axes, "y", plot.y)
    for reference in plot.references:
        axes.axhline(reference.value, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)
    label_at_right(axes, plot.references)


def _draw_line(axes: Axes, plot: LinePlot, line: Line, legend: Legend) -> None:
    x, y = _values(line.x, plot.x), _values(line.y, plot.y)
    colour = legend.colour(line.label)
    if line.low is not None and line.high is not None:
        axes.fill_between(
            x, _values(line.low, plot.y), _values(line.high, plot.y), color=colour, alpha=0.18, linewidth=0
        )
    if plot.smoothing > 0:
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
        y = smoothed(y, plot.smoothing)
    marker = legend.marker(line.label) if plot.has_markers else None
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=legend.dashes(line.label),
        label=clean(line.label),
        marker=marker,
        markersize=4.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
    )


def _draw_bars(axes: Axes, plot: BarPlot, legend: Legend) -> None:
    seen: set[str] = set()
    for row, bar in enumerate(plot.bars):
        label = clean(bar.group) if bar.group and bar.group not in seen else None
        seen.add(bar.group)
        axes.barh(row, _mean(bar), height=0.62, color=legend.colour(bar.group), alpha=0.85, label=label)
        text = _number(_mean(bar), plot.format)
        if isinstance(bar.value, Estimate):
            interval = [[bar.value.mean - bar.value.low], [bar.value.high - bar.value.mean]]
            axes.errorbar(bar.value.mean, row, xerr=np.maximum(interval, 0.0), color=INK, linewidth=1.1, capsize=2.5)
            text += f" [{_number(bar.value.low, plot.format)}, {_number(bar.value.high, plot.format)}]"
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL_PT)
    axes.set_yticks(range(len(plot.bars)), [_label(bar) for bar in plot.bars])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(plot.bars) - 0.4, -0.6)
    axes.axvline(0, color=MUTED, linewidth=0.7)
    set_axis(axes, "x", plot.value)
    for reference in plot.references:
        axes.axvline(reference.value, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)
    label_on_top(axes, plot.references)


def _draw_scatter(axes: Axes, plot: ScatterPlot) -> None:
    x, y = _values(plot.points_x, plot.x), _values(plot.points_y, plot.y)
    is_measured = np.isfinite(x) & np.isfinite(y)
    x, y = x[is_measured], y[is_measured]
    shown = np.linspace(0, max(len(x) - 1, 0), min(len(x), MAX_POINTS_DRAWN)).astype(np.int64)
    axes.plot(x[shown], y[shown], ".", color=SERIES[0], markersize=4.0, alpha=0.3, markeredgewidth=0)
    set_axis(axes, "x", plot.x)
    set_axis(axes, "y", plot.y)
    facts = [f"n = {len(x):,}"]
    if not len(x):
        _say_empty(axes)
    correlation = pearson(x.tolist(), y.tolist()) if len(x) > 1 else math.nan
    if not math.isnan(correlation):
        facts.insert(0, f"Pearson r = {_number(correlation, '.2f')}")
    if plot.num_quantiles > 0 and len(x) >= plot.num_quantiles:
        means_x, means_y = (quantile_means(x.tolist(), of.tolist(), plot.num_quantiles) for of in (x, y))
        name = "quartile" if plot.num_quantiles == 4 else f"{plot.num_quantiles}-quantile"
        axes.plot(
            means_x,
            means_y,
            color=SERIES[1],
            marker="D",
            markersize=6,
            markeredgecolor=PAPER,
            label=clean(f"mean by {name} of {plot.x.label}"),
        )
    # A rising cloud leaves the lower right corner free, a falling one the upper right.
    height, side = (0.97, "top") if correlation < 0 else (0.03, "bottom")
    axes.text(
        0.99,
        height,
        "\n".join(facts),
        transform=axes.transAxes,
        ha="right",
        va=side,
        fontsize=SMALL_PT,
        color=MUTED,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )


def _draw_histogram(axes: Axes, plot: Histogram, legend: Legend) -> None:
    groups = {name: _values(values, plot.x) for name, values in plot.groups.items()}
    groups = {name: values[np.isfinite(values)] for name, values in groups.items()}
    groups = {name: values for name, values in groups.items() if len(values)}
    edges = bin_edges(list(groups.values()), plot.num_bins, is_log=plot.x.is_log)
    for name, values in groups.items():
        share = 100 * np.histogram(values, edges)[0] / len(values)
        axes.stairs(share, edges, fill=True, color=legend.colour(name), alpha=0.15)
        dashes = legend.dashes(name)
        axes.stairs(share, edges, color=legend.colour(name), linestyle=dashes, linewidth=1.4, label=clean(name))
    set_axis(axes, "x", plot.x)
    set_axis(axes, "y", Axis("share of group", "%"))
    axes.set_ylim(bottom=0)
    if not groups:
        _say_empty(axes)


def smoothed(values: Values, weight: float) -> Values:
    """Exponential average whose first values are not drawn toward zero and which leaves out missing ones.

    `weight` is that of the past.
    """
    out = np.empty_like(values)
    total = norm = 0.0
    for index, value in enumerate(values):
        if np.isfinite(value):
            total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        out[index] = total / norm if norm else np.nan
    return out


def bin_edges(groups: Sequence[Values], num_bins: int, *, is_log: bool = False) -> Values:
    """Common bins; those of whole numbers are whole and centred on them."""
    if not groups:
        return np.array([0.0, 1.0])
    values = np.concatenate(groups)
    low, high = float(values.min()), float(values.max())
    if is_log and low < high:
        return np.geomspace(low, high, num_bins + 1)
    if np.all(values == np.round(values)):
        width = max(1, int(np.ceil((high - low + 1) / num_bins)))
        return np.arange(low - 0.5, high + width, width, dtype=np.float64)
    return np.linspace(low, high, num_bins + 1)


def _values(values: Sequence[float], axis: Axis) -> Values:
    """The values as an array; what a logarithmic axis cannot show is missing rather than clipped."""
    array = np.array(values, dtype=np.float64)
    if axis.is_log:
        array[array <= 0] = np.nan
    return array


def _names(chart: Chart) -> list[str]:
    match chart:
        case LinePlot():
            return [line.label for line in chart.lines]
        case BarPlot():
            return [bar.group for bar in chart.bars]
        case Histogram():
            return list(chart.groups)
        case ScatterPlot():
            return []


def _say_empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color=MUTED)


def _number(value: float, spec: str) -> str:
    # With the minus sign that matplotlib puts on the axes.
    return f"{value:{spec}}".replace("-", "−")


def _label(bar: Bar) -> str:
    return textwrap.fill(clean(bar.label), MOST_LABEL_CHARS)


def _mean(bar: Bar) -> float:
    return bar.value.mean if isinstance(bar.value, Estimate) else bar.value


def _size(charts: Sequence[Chart], num_rows: int, num_columns: int) -> tuple[float, float]:
    if num_columns == 1 and num_rows == 1:
        chart = charts[0]
        if not isinstance(chart, BarPlot):
            return WIDTH_IN, HEIGHT_IN
        num_lines = max((_label(bar).count("\n") + 1 for bar in chart.bars), default=1)
        return WIDTH_IN, 1.0 + max(BAR_HEIGHT_IN, num_lines * LINE_HEIGHT_IN) * len(chart.bars)
    return PANEL_WIDTH_IN * num_columns, PANEL_HEIGHT_IN * num_rows
