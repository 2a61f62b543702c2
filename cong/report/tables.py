"""A table of results as data, and its three forms: terminal (rich), Markdown and HTML.

Every form shows the same text for the same cell. It does not know what the rows are about, and needs no optional
package.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

Alignment = Literal["left", "center", "right"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


# A bool is a claim that holds or does not, shown as a yes/no badge; None is "not measured".
Cell = str | float | int | bool | None | Estimate


@dataclass(frozen=True)
class Column:
    """How the cells below one heading are shown."""

    name: str
    align: Alignment = "right"
    # Format of floats and of an Estimate's mean; the interval's ends are shown with one decimal less,
    # unless that makes them the same.
    format: str = ".3f"
    # The best cell of the column is emphasised: the largest, the smallest, or none.
    best: Literal["max", "min"] | None = None


@dataclass(frozen=True)
class Table:
    """A titled table; every row has one cell per column."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    # Indices of rows that are the point of the table.
    highlighted: Sequence[int] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), f"{len(row)} cells for {len(self.columns)} columns: {row!r}"
        assert all(0 <= index < len(self.rows) for index in self.highlighted), "highlighted rows must exist"


def cell_text(cell: Cell, column: Column) -> str:
    """The text of a cell, the same in every form of the table."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Estimate):
        return f"{cell.mean:{column.format}} [{', '.join(_ends(cell, column.format))}]"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:{column.format}}"
    return cell


def to_rich(table: Table) -> RichTable:
    """The table for a terminal."""
    shown = RichTable(
        title=Text(table.title, style="bold") if table.title else None,
        caption=Text(table.caption, style="dim") if table.caption else None,
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in table.columns:
        # What is wider than its column is broken, not cut: names of settings are read here, and a number that is cut is
        # another one.
        shown.add_column(Text(column.name), justify=column.align, overflow="fold")
    best = _best_cells(table)
    for row_index, row in enumerate(table.rows):
        cells = []
        for column_index, (cell, column) in enumerate(zip(row, table.columns, strict=True)):
            style = {True: "bold green", False: "bold red"}[cell] if isinstance(cell, bool) else ""
            cells.append(
                Text(cell_text(cell, column), style="bold cyan" if (row_index, column_index) in best else style)
            )
        shown.add_row(*cells, style="bold" if row_index in table.highlighted else None)
    return shown


def to_markdown(table: Table) -> str:
    """The table as a Markdown pipe table, without its title and caption."""
    rule = {"left": ":--", "center": ":-:", "right": "--:"}
    lines = [
        _markdown_row(markdown_escape(column.name) for column in table.columns),
        _markdown_row(rule[column.align] for column in table.columns),
    ]
    best = _best_cells(table)
    for row_index, row in enumerate(table.rows):
        cells = []
        for column_index, (cell, column) in enumerate(zip(row, table.columns, strict=True)):
            text = cell_text(cell, column)
            text = markdown_escape(text) if isinstance(cell, str) else text
            is_bold = text and ((row_index, column_index) in best or row_index in table.highlighted)
            cells.append(f"**{text}**" if is_bold else text)
        lines.append(_markdown_row(cells))
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """The table as an HTML `table` element, without its title and caption; all text is escaped."""
    heads = "".join(
        f'<th scope="col" class="align-{column.align}">{escape(column.name)}</th>' for column in table.columns
    )
    best = _best_cells(table)
    rows = []
    for row_index, row in enumerate(table.rows):
        cells = []
        for column_index, (cell, column) in enumerate(zip(row, table.columns, strict=True)):
            classes = f"align-{column.align}" + (" best" if (row_index, column_index) in best else "")
            cells.append(f'<td class="{classes}">{_html_cell(cell, column)}</td>')
        highlight = ' class="highlighted"' if row_index in table.highlighted else ""
        rows.append(f"<tr{highlight}>{''.join(cells)}</tr>")
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"


def markdown_escape(text: str) -> str:
    """Plain text as Markdown that shows exactly it, on one line."""
    one_line = re.sub(r"([\\`*_\[\]|#])", r"\\\1", re.sub(r"\s+", " ", text))
    return one_line.replace("<", "&lt;").replace(">", "&gt;")


def _html_cell(cell: Cell, column: Column) -> str:
    text = escape(cell_text(cell, column))
    if isinstance(cell, bool):
        return f'<span class="badge {text}">{text}</span>'
    if isinstance(cell, Estimate):
        mean, interval = text.split(" ", 1)
        return f'{mean} <span class="interval">{interval}</span>'
    return text


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _best_cells(table: Table) -> set[tuple[int, int]]:
    """Row and column of each column's best cells; ties are all best, and a column of equals has none."""
    best = set()
    for column_index, column in enumerate(table.columns):
        if column.best is None:
            continue
        values = {
            row_index: value
            for row_index, row in enumerate(table.rows)
            if (value := _comparable(row[column_index])) is not None
        }
        if len(set(values.values())) > 1:
            wanted = max(values.values()) if column.best == "max" else min(values.values())
            best |= {(row_index, column_index) for row_index, value in values.items() if value == wanted}
    return best


def _comparable(cell: Cell) -> float | None:
    value = cell.mean if isinstance(cell, Estimate) else cell
    if value is None or isinstance(value, bool | str) or value != value:
        return None
    return float(value)


def _ends(estimate: Estimate, spec: str) -> tuple[str, str]:
    coarse = re.sub(r"\.(\d+)", lambda found: f".{max(int(found[1]) - 1, 0)}", spec, count=1)
    low, high = f"{estimate.low:{coarse}}", f"{estimate.high:{coarse}}"
    return (low, high) if low != high else (f"{estimate.low:{spec}}", f"{estimate.high:{spec}}")
