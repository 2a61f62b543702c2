import html.parser
import re
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cong.report import Cell, Column, Estimate, Table, to_html, to_markdown, to_rich
from cong.report.tables import cell_text, markdown_escape

TABLE = Table(
    "Strong models",
    [Column("model", "left"), Column("reward", best="max"), Column("loss", best="min"), Column("holds", "center")],
    [
        ["weak <aligned>", Estimate(0.4619, 0.4551, 0.4721), 1.25, None],
        ["ConG | two *stages*", Estimate(0.652, 0.633, 0.681), 0.5, True],
        ["base", None, 2, False],
    ],
    caption="Mean over seeds.",
    highlighted=[1],
)

CELLS = [
    ["weak <aligned>", "0.462 [0.46, 0.47]", "1.250", "–"],
    ["ConG | two *stages*", "0.652 [0.63, 0.68]", "0.500", "yes"],
    ["base", "–", "2", "no"],
]


class _HtmlCells(html.parser.HTMLParser):
    """The text of every `td`, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._is_in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self._is_in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._is_in_cell = False

    def handle_data(self, data: str) -> None:
        if self._is_in_cell:
            self.rows[-1][-1] += data


def cells_of_html(table: Table) -> list[list[str]]:
    reader = _HtmlCells()
    reader.feed(to_html(table))
    return [row for row in reader.rows if row]


def cells_of_markdown(table: Table) -> list[list[str]]:
    rows = []
    for line in to_markdown(table).splitlines()[2:]:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        bare = [re.sub(r"(?<!\\)\*\*", "", cell) for cell in cells]
        rows.append([html.unescape(re.sub(r"\\(.)", r"\1", cell)) for cell in bare])
    return rows


def cells_of_rich(table: Table) -> list[list[str]]:
    shown = to_rich(table)
    columns = [list(column.cells) for column in shown.columns]
    return [[str(cell) for cell in row] for row in zip(*columns, strict=True)]


def rich_text(table: Table) -> str:
    out = StringIO()
    Console(file=out, width=200).print(to_rich(table))
    return out.getvalue()


def test_a_long_name_is_broken_on_a_narrow_terminal_and_not_cut() -> None:
    name = "pipeline.imitate.num_epochs"
    out = StringIO()
    Console(file=out, width=30).print(to_rich(Table("", [Column("why", "left"), Column("n")], [[name, 1]])))
    assert "…" not in out.getvalue()
    assert name in re.sub(r"\s+|1", "", out.getvalue())


def test_names_and_numbers_stay_whole_beside_many_numbers() -> None:
    """Three judges in 80 columns left the names no room, and cut the ends of intervals."""
    row: list[Cell] = ["a name, greedy", *[Estimate(-250.512, -260.4, -240.6)] * 3, 1000]
    columns = [Column("answers of", "left"), *[Column(f"judge {number}") for number in range(3)], Column("answers")]
    out = StringIO()
    Console(file=out, width=80).print(to_rich(Table("", columns, [row])))
    words = out.getvalue().split()
    assert words.count("-250.512") == words.count("[-260.40,") == words.count("-240.60]") == 3
    assert {"a", "name,", "greedy", "1,000"} <= set(words)


def test_terminal_markdown_and_html_show_the_same_cells() -> None:
    assert cells_of_rich(TABLE) == CELLS
    assert cells_of_markdown(TABLE) == CELLS
    assert cells_of_html(TABLE) == CELLS


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1),
            st.floats(-1e6, 1e6),
            st.integers(),
            st.booleans(),
            st.none(),
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_cell_has_one_text_in_every_form(cells: list[Cell]) -> None:
    table = Table("t", [Column(f"c{index}") for index in range(len(cells))], [cells])
    wanted = [[cell_text(cell, Column("c")) for cell in cells]]
    assert cells_of_markdown(table) == wanted
    assert cells_of_html(table) == wanted
    assert cells_of_rich(table) == wanted


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (".3f", "0.652 [0.63, 0.68]"),
        ("+.3f", "+0.652 [+0.63, +0.68]"),
        (".1f", "0.7 [0.6, 0.7]"),
        (".1%", "65.2% [63%, 68%]"),
        ("", "0.652 [0.633, 0.681]"),
    ],
)
def test_an_estimate_shows_its_interval_with_one_decimal_less(spec: str, text: str) -> None:
    assert cell_text(Estimate(0.652, 0.633, 0.681), Column("reward", format=spec)) == text


@pytest.mark.parametrize(
    ("cell", "text"), [(1234567, "1,234,567"), (-0.15, "-0.150"), (float("nan"), "nan"), (None, "–"), (True, "yes")]
)
def test_a_plain_cell_is_shown_by_its_type(cell: Cell, text: str) -> None:
    assert cell_text(cell, Column("c")) == text


def test_the_best_cell_is_the_largest_or_the_smallest_as_the_column_says() -> None:
    best = re.findall(r'<td class="align-right best">(.*?)</td>', to_html(TABLE))
    assert [re.sub("<.*?>", "", cell) for cell in best] == ["0.652 [0.63, 0.68]", "0.500"]


def test_a_column_of_equals_has_no_best_cell() -> None:
    table = Table("t", [Column("c", best="max")], [[1.0], [1.0]])
    assert "best" not in to_html(table)


def test_missing_and_undefined_values_are_never_best() -> None:
    table = Table("t", [Column("c", best="max")], [[float("nan")], [1.0], [None], [2.0]])
    assert re.findall(r"best\">(.*?)<", to_html(table)) == ["2.000"]


def test_the_highlighted_row_is_marked_in_html_and_markdown() -> None:
    assert to_html(TABLE).count('<tr class="highlighted">') == 1
    assert "| **ConG \\| two \\*stages\\*** |" in to_markdown(TABLE)


def test_claims_become_badges() -> None:
    assert '<span class="badge yes">yes</span>' in to_html(TABLE)
    assert '<span class="badge no">no</span>' in to_html(TABLE)


def test_nothing_in_a_cell_is_read_as_html_or_terminal_markup() -> None:
    table = Table("[red]t", [Column("<b>")], [["<script>alert(1)</script>"], ["[bold]x[/bold]"]])
    assert "<script" not in to_html(table)
    assert "<b>" not in to_html(table)
    assert "[bold]x[/bold]" in rich_text(table)
    assert "[red]t" in rich_text(table)
    assert "<script" not in to_markdown(table)


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(AssertionError, match="1 cells for 2 columns"):
        Table("t", [Column("a"), Column("b")], [["x"]])


def test_line_breaks_do_not_break_a_markdown_row() -> None:
    assert markdown_escape("a\nb | c") == "a b \\| c"
