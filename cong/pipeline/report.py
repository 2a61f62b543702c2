"""The report of a pipeline: a page of what its stages have left, as HTML and as Markdown."""

from pathlib import Path

from cong.pipeline.board import Board
from cong.pipeline.material import read_material
from cong.pipeline.page import pipeline_page
from cong.report import write_html, write_markdown

REPORT_FILES = ["report.html", "report.md", "report-figures"]


def make_report(board: Board, folder: Path) -> list[str]:
    """Write the report of stages that are all done; returns the names of its files."""
    page = pipeline_page(read_material(board))
    write_html(page, folder / REPORT_FILES[0])
    write_markdown(page, folder / REPORT_FILES[1])
    return REPORT_FILES
