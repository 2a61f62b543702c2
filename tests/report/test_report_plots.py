import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from cong.report import (
    Axis,
    Bar,
    BarPlot,
    Estimate,
    Histogram,
    Line,
    LinePlot,
    Panels,
    Plot,
    Reference,
    ScatterPlot,
    save_plot,
    to_svg,
)
from cong.report.axes import spread
from cong.report.charts import STYLE, bin_edges, draw, smoothed
from cong.report.theme import COLOURS

LINES = LinePlot(
    [
        Line("CD", [0.0, 0.5, 1.0], [0.75, 0.66, 0.48], [0.7, 0.6, 0.4], [0.8, 0.7, 0.5]),
        Line("plain", [0, 1], [0.4, 0.4]),
    ],
    Axis("contrast strength α"),
    Axis("gold reward"),
    references=[Reference("floor <aligned>", 0.46), Reference("ceiling", 0.98)],
    has_markers=True,
)
CURVE = LinePlot(
    [Line("seed 0", range(1, 30), [3 / step for step in range(1, 30)])],
    Axis("step"),
    Axis("loss", "nats per token", is_log=True),
    smoothing=0.9,
)
BARS = BarPlot(
    [Bar("WSPO", -0.12, "rival"), Bar("ConG", Estimate(0.37, 0.34, 0.41), "ours")],
    Axis("performance gap recovered"),
    references=[Reference("floor", 0.0), Reference("ceiling", 1.0)],
)
SCATTER = ScatterPlot(
    [0.0, 1.0, 2.0, 3.0, 4.0], [0.1, 0.3, 0.2, 0.6, 0.9], Axis("implicit reward"), Axis("gold reward")
)
HISTOGRAM = Histogram({"aligned": [5, 6, 6, 7, 9], "CD": [4, 5, 5, 6]}, Axis("length", "tokens"))
PANELS = Panels([CURVE, HISTOGRAM, SCATTER, BARS], num_columns=2)
ALL = {"lines": LINES, "curve": CURVE, "bars": BARS, "scatter": SCATTER, "histogram": HISTOGRAM, "panels": PANELS}


@pytest.fixture(params=list(ALL.values()), ids=list(ALL))
def plot(request: pytest.FixtureRequest) -> Plot:
    chosen: Plot = request.param
    return chosen


def texts(svg: str) -> str:
    return "\n".join(node.text or "" for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text"))


def test_the_svg_is_well_formed_and_scales(plot: Plot) -> None:
    root = ElementTree.fromstring(to_svg(plot))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("viewBox")


def test_the_same_plot_gives_the_same_bytes(plot: Plot) -> None:
    assert to_svg(plot) == to_svg(plot)


def test_the_svg_tells_neither_time_nor_maker(plot: Plot) -> None:
    svg = to_svg(plot, is_themed=False)
    assert "metadata" not in svg
    assert not re.search(r"\b20\d\d-\d\d-\d\d|matplotlib", svg)


def test_inside_a_page_every_colour_follows_the_page(plot: Plot) -> None:
    assert set(re.findall(r"#[0-9a-f]{6}\b", to_svg(plot))) == set()
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", to_svg(plot)))
    assert used <= COLOURS.keys()
    assert "ink" in used


def test_a_file_of_its_own_has_fixed_colours(plot: Plot) -> None:
    assert "var(--" not in to_svg(plot, is_themed=False)


def test_two_figures_on_one_page_share_no_ids() -> None:
    ids = [set(re.findall(r' id="([^"]+)"', to_svg(one))) for one in (LINES, HISTOGRAM)]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])


def test_every_reference_to_an_id_resolves(plot: Plot) -> None:
    svg = to_svg(plot)
    wanted = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    assert {first or second for first, second in wanted} <= set(re.findall(r' id="([^"]+)"', svg))


def test_axes_carry_label_and_unit_and_references_their_names() -> None:
    shown = texts(to_svg(CURVE))
    assert "loss (nats per token)" in shown
    assert "step" in shown
    assert "floor <aligned>" in texts(to_svg(LINES))


def test_labels_are_not_read_as_mathematics_or_markup() -> None:
    odd = LinePlot([Line("$x_1$ & <b>", [0, 1], [0, 1]), Line("\x1b[31m", [0, 1], [1, 0])], Axis("$"), Axis("a\x00b"))
    shown = texts(to_svg(odd))
    assert "$x_1$ & <b>" in shown
    assert "\x1b" not in shown


def test_a_name_has_one_colour_in_all_panels() -> None:
    panels = Panels(
        [LinePlot([Line(name, [0, 1], [0, 1]) for name in names], Axis("x"), Axis("y")) for names in ("ab", "ba")]
    )
    first, second = draw(panels).axes
    colours = [{line.get_label(): line.get_color() for line in axes.get_lines()} for axes in (first, second)]
    assert colours[0] == colours[1]
    assert colours[0]["a"] != colours[0]["b"]


def test_a_band_is_drawn_between_its_ends() -> None:
    (band,) = draw(LINES).axes[0].collections
    heights = np.asarray(band.get_paths()[0].vertices, dtype=np.float64)[:, 1]
    assert (heights.min(), heights.max()) == (0.4, 0.8)


def test_the_log_scale_is_a_switch() -> None:
    assert draw(CURVE).axes[0].get_yscale() == "log"
    assert draw(LINES).axes[0].get_yscale() == "linear"


def test_bars_stand_from_top_to_bottom_in_the_given_order() -> None:
    axes = draw(BARS).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["WSPO", "ConG"]
    assert axes.yaxis_inverted()
    assert "0.37 [0.34, 0.41]" in texts(to_svg(BARS))


@pytest.mark.parametrize(
    "empty",
    [
        LinePlot([], Axis("x", is_log=True), Axis("y")),
        LinePlot([Line("a", [1, 2], [0.0, -1.0])], Axis("x"), Axis("y", is_log=True), smoothing=0.5),
        ScatterPlot([], [], Axis("x"), Axis("y")),
        ScatterPlot([1.0, float("nan")], [1.0, 2.0], Axis("x"), Axis("y")),
        Histogram({"none": []}, Axis("x")),
        Histogram({"one": [3.0]}, Axis("x", is_log=True)),
        BarPlot([], Axis("x")),
    ],
)
def test_missing_data_leave_a_gap_and_raise_nothing(empty: Plot) -> None:
    assert "x" in texts(to_svg(empty)), "the axes are there"


def test_a_cloud_tells_its_correlation_where_it_has_one() -> None:
    x, y = np.array([0.0, 1.0, 2.0, 4.0]), np.array([1.0, 0.0, 2.0, 3.0])
    by_hand = np.mean((x - x.mean()) * (y - y.mean())) / (x.std() * y.std())
    assert f"Pearson r = {by_hand:.2f}" in texts(to_svg(ScatterPlot(list(x), list(y), Axis("x"), Axis("y"))))
    assert "Pearson" not in texts(to_svg(ScatterPlot(list(x), [1.0] * 4, Axis("x"), Axis("y"))))


def test_quartile_means_are_drawn_over_the_cloud() -> None:
    x = [7.0, 0, 1, 2, 3, 4, 5, 6]
    _, means = draw(ScatterPlot(x, [10 * each for each in x], Axis("x"), Axis("y"))).axes[0].lines
    assert means.get_xydata().tolist() == [[0.5, 5.0], [2.5, 25.0], [4.5, 45.0], [6.5, 65.0]]  # type: ignore[union-attr]


def test_smoothing_keeps_a_constant_and_leaves_out_what_is_missing() -> None:
    assert smoothed(np.full(5, 2.0), 0.9).tolist() == pytest.approx([2.0] * 5)
    assert smoothed(np.array([1.0, np.nan, 1.0]), 0.5).tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert smoothed(np.array([0.0, 3.0]), 0.5).tolist() == pytest.approx([0.0, 2.0])


def test_bins_of_whole_numbers_are_centred_on_them() -> None:
    assert bin_edges([np.array([2.0, 5.0]), np.array([3.0])], 30).tolist() == [1.5, 2.5, 3.5, 4.5, 5.5]


@pytest.mark.parametrize("high", [29.0, 30.0, 100.0, 12345.0])
def test_bins_hold_every_value_in_no_more_than_asked(high: float) -> None:
    edges = bin_edges([np.array([0.0, high])], 30)
    assert edges[0] <= 0.0
    assert edges[-1] >= high
    assert len(edges) <= 31


def test_shares_of_a_group_sum_to_a_hundred() -> None:
    patches = [patch for patch in draw(HISTOGRAM).axes[0].patches if patch.get_label() in HISTOGRAM.groups]
    assert len(patches) == 2
    for patch in patches:
        values, edges, _ = patch.get_data()  # type: ignore[attr-defined]
        assert values.sum() == pytest.approx(100.0)
        assert len(edges) == len(values) + 1


def test_labels_that_overlap_are_moved_apart_and_others_stay() -> None:
    assert spread([0.0, 10.0, 11.0, 30.0], 4.0) == pytest.approx([0.0, 8.5, 12.5, 30.0])
    moved = spread([1.0, 1.0, 2.0, 3.0], 2.0)
    assert all(after - before >= 2.0 - 1e-9 for before, after in pairwise(moved))


LONG = "a name of as many characters as a candidate may have: all of 64!"


def laid_out(plot: Plot) -> Figure:
    with matplotlib.style.context(["default", STYLE]):
        figure = draw(plot)
        figure.draw_without_rendering()
    return figure


def test_long_names_leave_bars_their_room() -> None:
    names = [f"{LONG}, given / {LONG}, T=0.8, at equal length", "short"]
    figure = laid_out(BarPlot([Bar(name, Estimate(0.5, 0.4, 0.6)) for name in names], Axis("win rate")))
    (axes,) = figure.axes
    assert axes.get_window_extent().width / figure.dpi > 1.5
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()] == names
    assert min(label.x0 for label in labels) >= 0.0
    assert labels[1].y1 < labels[0].y0


def test_titles_stay_within_their_panels() -> None:
    plot = Panels([LinePlot([Line("a", [0, 1], [0, 1])], Axis("x"), Axis("y"), title=LONG) for _ in range(3)])
    figure = laid_out(plot)
    found = [each for axes in figure.axes for each in axes.get_children() if isinstance(each, Text)]
    places = [each.get_window_extent() for each in found if each.get_text()]
    assert len(places) == 3
    assert all(one.x1 < other.x0 for one, other in pairwise(places))
    assert places[-1].x1 <= figure.bbox.x1


def test_more_names_than_colours_are_told_apart() -> None:
    groups = {f"candidate {number}": [0.1, 0.2 + number / 100] for number in range(20)}
    patches = draw(Histogram(groups, Axis("reward"))).axes[0].patches
    lines = {(patch.get_edgecolor(), patch.get_linestyle()) for patch in patches if patch.get_label() in groups}
    assert len(lines) == 20
    curves = draw(LinePlot([Line(name, [0, 1], [0, 1]) for name in groups], Axis("x"), Axis("y"))).axes[0].lines
    assert len({(curve.get_color(), curve.get_linestyle()) for curve in curves}) == 20


def test_a_long_legend_takes_no_room_of_the_panels() -> None:
    few, many = (
        laid_out(Panels([Histogram({f"{LONG}{each}": [0.1, 0.2] for each in range(number)}, Axis("reward"))] * 2))
        for number in (1, 12)
    )
    heights = [figure.axes[0].get_window_extent().height / figure.dpi for figure in (few, many)]
    assert heights[1] > 0.8 * heights[0]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_a_plot_is_saved_whole_and_alone(suffix: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "made" / f"plot{suffix}"
    save_plot(LINES, path)
    first = path.read_bytes()
    save_plot(LINES, path)
    assert first.startswith(start)
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [path]


def test_a_plot_in_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"\.jpg"):
        save_plot(LINES, tmp_path / "plot.jpg")


def test_a_readers_own_settings_do_not_change_the_picture() -> None:
    plain = to_svg(LINES)
    with matplotlib.rc_context({"font.size": 20.0, "axes.grid": False}):
        assert to_svg(LINES) == plain
