"""Tables, plots and one self-contained page for results; generic: knows no lab, no engine, no training.

Everything named here is plain data and free of optional packages. `cong.report.drawing` (matplotlib) and
`cong.report.rendering` (jinja2) need the extra `report` when something is drawn or written.
"""

from cong.report.drawing import save_plot, to_svg
from cong.report.page import (
    Block,
    Comparison,
    Details,
    Figure,
    Page,
    Prose,
    Response,
    Samples,
    Section,
    Token,
)
from cong.report.plots import (
    Axis,
    Bar,
    BarPlot,
    Histogram,
    Line,
    LinePlot,
    Panels,
    Plot,
    Reference,
    ScatterPlot,
)
from cong.report.rendering import visible, write_html, write_markdown
from cong.report.tables import Cell, Column, Estimate, Table, to_html, to_markdown, to_rich
from cong.report.terminal import samples_to_rich

__all__ = [
    "Axis",
    "Bar",
    "BarPlot",
    "Block",
    "Cell",
    "Column",
    "Comparison",
    "Details",
    "Estimate",
    "Figure",
    "Histogram",
    "Line",
    "LinePlot",
    "Page",
    "Panels",
    "Plot",
    "Prose",
    "Reference",
    "Response",
    "Samples",
    "ScatterPlot",
    "Section",
    "Table",
    "Token",
    "samples_to_rich",
    "save_plot",
    "to_html",
    "to_markdown",
    "to_rich",
    "to_svg",
    "visible",
    "write_html",
    "write_markdown",
]
