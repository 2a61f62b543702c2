"""Plots to SVG and PNG: the same input gives the same bytes on every machine with the same matplotlib.

Text in an SVG stays text (searchable, small, in the reader's font); matplotlib lays it out in its own wide font, so
other fonts do not overflow. It does not know what a chart looks like: see `charts`. matplotlib keeps its settings per
process, so one thread draws at a time.
"""

import hashlib
import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cong.files import write_file
from cong.report.plots import Plot
from cong.report.theme import COLOURS
from cong.wording import brought_by

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

# CSS pixels per point when a figure is as wide as it wants to be: its 9 point text is then as large as the page's.
PIXELS_PER_POINT = 1.5


def to_svg(plot: Plot, *, is_themed: bool = True) -> str:
    """The plot as an `svg` element.

    Themed, its colours are the page's CSS variables, to stand inside a page; otherwise it is a file of its own with
    fixed colours on white.
    """
    content = _tidy_svg(_savefig(plot, "svg").decode(), is_themed=is_themed)
    return content if is_themed else f'<?xml version="1.0" encoding="utf-8"?>\n{content}'


def save_plot(plot: Plot, path: Path) -> None:
    """Write the plot to a `.svg` or `.png` file."""
    assert path.suffix in (".svg", ".png"), f"plots are saved as .svg or .png, not {path.suffix!r}"
    write_file(path, to_svg(plot, is_themed=False).encode() if path.suffix == ".svg" else _savefig(plot, "png"))


def _savefig(plot: Plot, kind: Literal["svg", "png"]) -> bytes:
    with brought_by("report"):
        import matplotlib.style

    from cong.report import charts

    # Nothing of a reader's own matplotlibrc may change the bytes.
    with matplotlib.style.context(["default", charts.STYLE]):
        figure: Figure = charts.draw(plot)
        content = BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(content, format=kind, metadata=metadata, transparent=kind == "svg")
    return content.getvalue()


def _tidy_svg(svg: str, *, is_themed: bool) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans'", FONTS)
    svg = _unique_ids(svg)
    width, height = (float(number) for number in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    size = f'width="{width * PIXELS_PER_POINT:.0f}" height="{height * PIXELS_PER_POINT:.0f}"'
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', rf"\1 {size}", svg, count=1)
    if not is_themed:
        backdrop = f'<rect width="100%" height="100%" fill="{COLOURS["paper"].light}"/>'
        return re.sub(r"(<svg[^>]*>)", rf"\1\n {backdrop}", svg, count=1)
    for role, colour in COLOURS.items():
        svg = svg.replace(colour.light, f"var(--{role})")
    return svg


def _unique_ids(svg: str) -> str:
    """Ids nobody refers to are dropped, the others start with a digest of the figure: many figures share one page."""
    digest = hashlib.sha256(svg.encode()).hexdigest()[:8]
    used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{digest}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{digest}-\1"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{digest}-\1)", svg)
