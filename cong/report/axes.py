"""What stands around a chart: its axes, the legend of a figure, and names of lines in the margins."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cong.report.plots import Axis, Reference
from cong.report.theme import COLOURS, SERIES

MUTED = COLOURS["muted"].light
SMALL_PT = 8.0
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_DASHES = ("-", "--", ":", "-.")
_TITLE_CHARS_PER_IN = 10
"""In their bold face, with the room beside the axes."""
_LEGEND_ROW_IN = SMALL_PT * 1.5 / 72
# Generous mean width of a character of the small text.
_SMALL_CHARACTER_IN = SMALL_PT * 0.62 / 72


@dataclass(frozen=True)
class Legend:
    """Colour, dashes and marker of each name in a figure: one name looks the same in all its panels."""

    names: tuple[str, ...]

    def colour(self, name: str) -> str:
        """The colour of a name."""
        return SERIES[self.names.index(name) % len(SERIES)]

    def dashes(self, name: str) -> str:
        """How the line of a name is dashed: others than those of the name that has its colour too."""
        return _DASHES[self.names.index(name) // len(SERIES) % len(_DASHES)]

    def marker(self, name: str) -> str:
        """The marker of a name."""
        return _MARKERS[self.names.index(name) % len(_MARKERS)]


def clean(text: str) -> str:
    """Text without characters that XML cannot hold."""
    return "".join(character if character.isprintable() else " " for character in text)


def add_legend(figure: Figure, all_axes: Sequence[Axes], *, explains_one: bool) -> None:
    """Names of everything drawn, above the panels; of a single one only if it `explains_one`.

    All lines of names but the first make the figure higher, so that they take no room of the panels.
    """
    handles: dict[str, Artist] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles or (len(handles) == 1 and not explains_one):
        return
    # Handle and gap take the room of some eight characters.
    widest = max(len(label) for label in handles) + 8
    num_columns = max(1, min(len(handles), int(figure.get_figwidth() / (_SMALL_CHARACTER_IN * widest))))
    num_more_rows = -(-len(handles) // num_columns) - 1
    figure.set_figheight(figure.get_figheight() + num_more_rows * _LEGEND_ROW_IN)
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=num_columns)


def set_axis(axes: Axes, which: Literal["x", "y"], axis: Axis) -> None:
    """Label, scale and limits of one axis."""
    is_x = which == "x"
    label = clean(f"{axis.label} ({axis.unit})" if axis.unit else axis.label)
    (axes.set_xlabel if is_x else axes.set_ylabel)(label)
    ruler = axes.xaxis if is_x else axes.yaxis
    if axis.is_log:
        (axes.set_xscale if is_x else axes.set_yscale)("log", nonpositive="mask")
        ruler.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=9))
        ruler.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ruler.set_minor_formatter(NullFormatter())
    else:
        ruler.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    if axis.limits is not None:
        (axes.set_xlim if is_x else axes.set_ylim)(*axis.limits)


def set_title(axes: Axes, title: str) -> None:
    """A title above the axes, in as many lines as their width asks for."""
    axes.set_title(textwrap.fill(clean(title), int(_panel_size_in(axes)[0] * _TITLE_CHARS_PER_IN)))


def label_at_right(axes: Axes, references: Sequence[Reference]) -> None:
    """Names of horizontal lines in the right margin, moved apart where they would overlap."""
    if not references:
        return
    axes_height_pt = _panel_size_in(axes)[1] * 0.75 * 72
    to_axes = axes.transScale + axes.transLimits
    x = axes.get_xlim()[0]
    ordered = sorted(references, key=lambda reference: reference.value)
    heights_pt = [float(to_axes.transform((x, reference.value))[1]) * axes_height_pt for reference in ordered]
    for reference, height_pt, moved_pt in zip(ordered, heights_pt, spread(heights_pt, SMALL_PT * 1.3), strict=True):
        axes.annotate(
            clean(reference.label),
            (1.0, reference.value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, moved_pt - height_pt),
            textcoords="offset points",
            va="center",
            fontsize=SMALL_PT,
            color=MUTED,
            annotation_clip=False,
        )


def label_on_top(axes: Axes, references: Sequence[Reference]) -> None:
    """Names of vertical lines above the axes, on a higher line where they would overlap."""
    low, high = axes.get_xlim()
    # What remains of the width beside the names on the left and the numbers on the right.
    axes_width_in = _panel_size_in(axes)[0] * 0.55
    ends_in: list[float] = []
    for reference in sorted(references, key=lambda reference: reference.value):
        place_in = (reference.value - low) / (high - low) * axes_width_in
        half_in = 0.5 * len(reference.label) * _SMALL_CHARACTER_IN
        level = next((level for level, end_in in enumerate(ends_in) if place_in - half_in > end_in), len(ends_in))
        ends_in[level : level + 1] = [place_in + half_in]
        axes.annotate(
            clean(reference.label),
            (reference.value, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 2 + level * SMALL_PT * 1.3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=SMALL_PT,
            color=MUTED,
            annotation_clip=False,
        )


def _panel_size_in(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes' part of the figure, labels and margins included."""
    figure, place = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None
    assert place is not None
    grid = place.get_gridspec()
    return figure.get_figwidth() / grid.ncols, figure.get_figheight() / grid.nrows


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved as little as a single sweep allows so that neighbours are at least `gap` apart."""
    blocks: list[list[float]] = []
    for place in places:
        # A block is [centre, number of places]; overlapping blocks merge around their common mean.
        blocks.append([place, 1.0])
        while len(blocks) > 1:
            (above, num_above), (below, num_below) = blocks[-1], blocks[-2]
            if above - below >= gap * (num_above + num_below) / 2:
                break
            num = num_above + num_below
            blocks[-2:] = [[(above * num_above + below * num_below) / num, num]]
    return [centre + gap * (index - (num - 1) / 2) for centre, num in blocks for index in range(int(num))]
