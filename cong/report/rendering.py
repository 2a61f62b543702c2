"""A page written as one self-contained HTML file, or as Markdown with its figures beside it.

The HTML loads nothing: styles and figures are inside it, and there is no script. The same page gives the same bytes.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cong.files import write_file
from cong.report.drawing import save_plot, to_svg
from cong.report.page import Block, Comparison, Details, Figure, Page, Prose, Samples, Section, Token
from cong.report.tables import Table, markdown_escape, to_html, to_markdown
from cong.report.theme import css_variables
from cong.wording import brought_by

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"

CODE_SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class _Numbered:
    """A block with its place among its kind: Figure 3, Table 2."""

    block: Block
    number: int

    @property
    def kind(self) -> str:
        return type(self.block).__name__.lower()


def write_html(page: Page, path: Path) -> None:
    """Write the page as one HTML file that needs nothing else."""
    write_file(path, _encoded(html(page)))


def write_markdown(page: Page, path: Path) -> None:
    """Write the page as Markdown; its figures go to the folder `<name of the page>-figures` beside it."""
    folder = path.parent / f"{path.stem}-figures"
    figures = {
        folder / f"figure-{entry.number}.svg": entry.block
        for _, blocks in _numbered(page)
        for entry in blocks
        if isinstance(entry.block, Figure)
    }
    for figure_path, figure in figures.items():
        save_plot(figure.plot, figure_path)
    for former in set(folder.glob("figure-*.svg")) - figures.keys():
        former.unlink()
    write_file(path, _encoded(markdown(page, figures_at=folder.name)))


def html(page: Page) -> str:
    """The page as an HTML document."""
    environment = _environment()
    return environment.get_template("page.html").render(
        page=page,
        sections=[(f"section-{place}", section, blocks) for place, (section, blocks) in enumerate(_numbered(page), 1)],
        light=css_variables(is_dark=False),
        dark=css_variables(is_dark=True),
    )


def markdown(page: Page, figures_at: str) -> str:
    """The page as Markdown, for figures that lie in the folder `figures_at` beside it."""
    parts = [f"# {markdown_escape(page.title)}", _markdown_prose(page.summary)]
    parts.append("\n".join(f"- {markdown_escape(k)}: **{markdown_escape(v)}**" for k, v in page.headlines.items()))
    if page.facts:
        rows = (f"| {markdown_escape(name)} | {markdown_escape(str(value))} |" for name, value in page.facts.items())
        parts += ["## What was run", "\n".join(["| setting | value |", "| :-- | :-- |", *rows])]
    for section, blocks in _numbered(page):
        parts.append(f"## {markdown_escape(section.title)}")
        parts += [_markdown_block(entry, figures_at) for entry in blocks]
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def _numbered(page: Page) -> Iterator[tuple[Section, list[_Numbered]]]:
    counts: Counter[type[Block]] = Counter()
    for section in page.sections:
        blocks = []
        for block in section.blocks:
            counts[type(block)] += 1
            blocks.append(_Numbered(block, counts[type(block)]))
        yield section, blocks


def _markdown_block(entry: _Numbered, figures_at: str) -> str:
    match entry.block:
        case Prose(text):
            return _markdown_prose(text)
        case Table() as table:
            caption = f" {markdown_escape(table.caption)}" if table.caption else ""
            return f"**Table {entry.number}: {markdown_escape(table.title)}.**{caption}\n\n{to_markdown(table)}"
        case Figure(_, caption):
            alternative = f"Figure {entry.number}"
            place = f"{figures_at}/figure-{entry.number}.svg".replace(" ", "%20")
            return f"![{alternative}]({place})\n\n**{alternative}.** {markdown_escape(caption)}"
        case Details(title, text):
            return f"**{markdown_escape(title)}**\n\n{_fenced(text)}"
        case Samples() as samples:
            return "\n\n".join(_markdown_comparison(one, samples.reward_label) for one in samples.comparisons)


def _markdown_comparison(comparison: Comparison, reward_label: str) -> str:
    parts = ["Prompt:", _fenced(comparison.prompt)]
    for response in comparison.responses:
        facts = []
        if response.reward is not None:
            facts.append(f"{markdown_escape(reward_label)} {response.reward:.2f}")
        if response.mean_ratio is not None:
            facts.append(f"mean log-ratio {response.mean_ratio:+.2f} nats")
        about = f" ({', '.join(facts)})" if facts else ""
        parts += [f"{markdown_escape(response.label)}{about}:", _fenced("".join(t.text for t in response.tokens))]
    return "\n\n".join(parts)


def _markdown_prose(text: str) -> str:
    def inline(paragraph: str) -> str:
        pieces = CODE_SPAN.split(paragraph)
        text = "".join(f"`{piece}`" if at % 2 else markdown_escape(piece) for at, piece in enumerate(pieces))
        # A paragraph that begins like a list item is none.
        return re.sub(r"^([-+]|\d+[.)])(?= )", lambda start: f"{start[1][:-1]}\\{start[1][-1]}", text)

    return "\n\n".join(inline(paragraph) for paragraph in _paragraphs(text))


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    body = text.rstrip("\n")
    return f"{fence}text\n{body}\n{fence}"


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _environment() -> "Environment":
    with brought_by("report"):
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def inline(paragraph: str) -> "Markup":
        pieces = CODE_SPAN.split(paragraph)
        return Markup("").join(
            Markup("<code>{}</code>").format(piece) if at % 2 else piece for at, piece in enumerate(pieces)
        )

    environment.filters |= {
        "paragraphs": _paragraphs,
        "inline": inline,
        "table": lambda table: Markup(to_html(table)),
        "figure": lambda figure: Markup(to_svg(figure.plot)),
        "visible": visible,
        "strength": _strength,
        "reading": _reading,
    }
    return environment


def visible(text: str) -> str:
    """A token's text with whitespace and control characters made visible; a line break stays one."""
    if not text:
        return "∅"
    pictures = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡", 0x0A: "⏎\n", 0x09: "⇥\t"}
    return text.translate(pictures)


def _strength(token: Token, full_colour_nats: float) -> str:
    """How much of the full colour the token gets, 0 to 1."""
    assert token.ratio is not None
    size = abs(token.ratio) / full_colour_nats
    # A ratio that is not a number gets no colour; an infinite one gets all of it.
    return f"{min(size, 1.0) if size == size else 0.0:.2f}"


def _reading(token: Token, networks: tuple[str, ...]) -> str:
    """What is shown when the pointer rests on a token."""
    lines = [f"token {token.text!r}"]
    lines += [f"log p {name}  {value:.3f}" for name, value in zip(networks, token.logprobs, strict=False)]
    if token.ratio is not None:
        lines.append(f"log-ratio  {token.ratio:+.3f}")
    return "\n".join(lines)


def _encoded(text: str) -> bytes:
    """UTF-8 without characters no document may hold: control characters, and halves of pairs from byte tokenizers."""
    return re.sub(r"[\x00-\x08\x0b-\x0d\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", text).encode()
