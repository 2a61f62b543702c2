import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cong.report import (
    Axis,
    Column,
    Comparison,
    Details,
    Estimate,
    Figure,
    Line,
    LinePlot,
    Page,
    Prose,
    Response,
    Samples,
    Section,
    Table,
    Token,
    write_html,
    write_markdown,
)
from cong.report.rendering import html, markdown, visible

HOSTILE = "<script>alert('x')</script> & \"quoted\" <img src=http://example.org/a.png>"

PLOT = LinePlot([Line("CD", [0, 1], [0.7, 0.4])], Axis("α"), Axis("gold reward"))
SAMPLES = Samples(
    [
        Comparison(
            "Sdbgaf=",
            [
                Response("aligned", [Token(">", (-0.5, -2.5), 2.0), Token("a", (-1.0, -0.25), -0.75), Token("b")], 0.5),
                Response("strong", [Token("!")]),
            ],
        )
    ],
    networks=("aligned", "base"),
    full_colour_nats=4.0,
)
PAGE = Page(
    "ConG in the letters world",
    "First paragraph with `alpha=0.4`.\n\nSecond paragraph.",
    [
        Section("Contrast", [Prose("Falls with `α`."), Figure(PLOT, "Reward against α."), SAMPLES]),
        Section(
            "Models",
            [
                Table("Strong", [Column("model", "left"), Column("r")], [["ConG", Estimate(0.65, 0.6, 0.7)]]),
                Figure(PLOT, "Again."),
                Details("Resolved configuration", "seed: 0\nalpha: 0.4\n"),
            ],
        ),
    ],
    facts={"seeds": "0, 1, 2", "prompts": 2000},
    headlines={"gap recovered": "37 %"},
)


class _Outline(HTMLParser):
    """Tags with their attributes, and whether every element is closed in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: Page) -> _Outline:
    reader = _Outline()
    reader.feed(html(page))
    reader.close()
    assert reader.open == []
    return reader


def hostile_page() -> Page:
    """Every text of the page is hostile."""
    return Page(
        HOSTILE,
        HOSTILE,
        [
            Section(
                HOSTILE,
                [
                    Prose(f"`{HOSTILE}`"),
                    Figure(LinePlot([Line(HOSTILE, [0], [0]), Line("b", [0], [1])], Axis(HOSTILE), Axis("y")), HOSTILE),
                    Table(HOSTILE, [Column(HOSTILE)], [[HOSTILE]], caption=HOSTILE),
                    Details(HOSTILE, HOSTILE),
                    Samples(
                        [Comparison(HOSTILE, [Response(HOSTILE, [Token(HOSTILE, (-1.0, -2.0), 1.0)], 1.0)])],
                        networks=(HOSTILE, HOSTILE),
                        reward_label=HOSTILE,
                    ),
                ],
            )
        ],
        facts={HOSTILE: HOSTILE},
        headlines={HOSTILE: HOSTILE},
    )


def test_the_contents_lead_to_every_section() -> None:
    tags = outline(PAGE).tags
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    sections = [f"#{attributes['id']}" for tag, attributes in tags if tag == "section"]
    assert links == sections == ["#section-1", "#section-2"]


def test_no_two_elements_share_an_id() -> None:
    twins = replace(PAGE, sections=[Section("Twins", [Figure(PLOT, "one"), Figure(replace(PLOT, title="b"), "two")])])
    ids = [attributes["id"] for _, attributes in outline(twins).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_figures_and_tables_are_numbered_across_sections() -> None:
    text = outline(PAGE).text
    assert re.findall(r"Figure \d\.", text) == ["Figure 1.", "Figure 2."]
    assert "Table 1: Strong." in text


def test_title_summary_facts_headlines_and_configuration_are_there() -> None:
    text = outline(PAGE).text
    for piece in (PAGE.title, "Second paragraph.", "seeds", "0, 1, 2", "2000", "37 %", "seed: 0\nalpha: 0.4"):
        assert piece in text
    assert "<code>alpha=0.4</code>" in html(PAGE)


def test_a_figure_says_its_caption_to_a_screen_reader() -> None:
    labels = [attributes["aria-label"] for tag, attributes in outline(PAGE).tags if attributes.get("role") == "img"]
    assert labels == ["Reward against α.", "Again."]


@pytest.mark.parametrize("make", [lambda: PAGE, hostile_page], ids=["plain", "hostile"])
def test_the_page_loads_nothing_and_runs_nothing(make: Callable[[], Page]) -> None:
    reader = outline(make())
    assert {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object", "base", "form"} == set()
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith("#")
    styles = re.sub(r'="[^"]*"', "", html(PAGE)) + "".join(a.get("style") or "" for _, a in reader.tags)
    assert "@import" not in styles
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", styles))


def test_a_page_forbids_the_browser_to_load_anything() -> None:
    (policy,) = [a["content"] for tag, a in outline(PAGE).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_hostile_text_is_shown_as_it_is() -> None:
    reader = outline(hostile_page())
    assert reader.text.count("<script>alert('x')</script>") >= 12


def test_a_token_is_coloured_by_its_log_ratio() -> None:
    tokens = [
        attributes for tag, attributes in outline(PAGE).tags if (attributes.get("class") or "").startswith("token")
    ]
    spans = [attributes for attributes in tokens if attributes["class"] != "tokens"]
    assert [(span["class"], span.get("style")) for span in spans] == [
        ("token for", "--t:0.50"),
        ("token against", "--t:0.19"),
        ("token", None),
        ("token", None),
    ]
    assert spans[0]["data-reading"] == "token '>'\nlog p aligned  -0.500\nlog p base  -2.500\nlog-ratio  +2.000"
    assert spans[2]["data-reading"] == "token 'b'"


@pytest.mark.parametrize(("ratio", "style"), [(9.0, "1.00"), (float("-inf"), "1.00"), (float("nan"), "0.00")])
def test_no_log_ratio_is_coloured_more_than_fully(ratio: float, style: str) -> None:
    samples = Samples([Comparison("p", [Response("r", [Token("t", (), ratio)])])], networks=("a", "b"))
    assert f"--t:{style}" in html(replace(PAGE, sections=[Section("s", [samples])]))


def test_the_legend_names_who_prefers_what_of_a_pair() -> None:
    assert re.search(r"base prefers\s+−4\s+\+4\s+aligned prefers", outline(PAGE).text)
    lone = replace(PAGE, sections=[Section("s", [Samples([], networks=())])])
    assert " prefers" not in outline(lone).text


def test_rewards_and_mean_log_ratios_are_shown_where_measured() -> None:
    text = outline(PAGE).text
    assert text.count("gold reward 0.50") == 1
    assert text.count("mean log-ratio +0.62") == 1


@pytest.mark.parametrize(
    ("token", "shown"), [("a b", "a b"), ("\n", "⏎\n"), ("\t", "⇥\t"), ("", "∅"), ("\x1b[0m", "␛[0m"), ("</s>", "</s>")]
)
def test_whitespace_and_control_characters_of_tokens_are_visible(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_what_utf8_cannot_hold_is_replaced(tmp_path: Path) -> None:
    page = replace(PAGE, summary="half a pair \ud83d and \x00", sections=[])
    write_html(page, tmp_path / "page.html")
    assert "half a pair � and �" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_log_probabilities_of_an_unknown_network_are_refused() -> None:
    with pytest.raises(AssertionError, match="1 log-probabilities for 2 networks"):
        Samples([Comparison("p", [Response("r", [Token("t", (-1.0,))])])], networks=("a", "b"))


def test_the_same_page_gives_the_same_bytes() -> None:
    assert html(PAGE) == html(PAGE)
    assert markdown(PAGE, "figures") == markdown(PAGE, "figures")


def test_markdown_has_every_part_and_its_figures_lie_beside_it(tmp_path: Path) -> None:
    write_markdown(PAGE, tmp_path / "lab.md")
    text = (tmp_path / "lab.md").read_text(encoding="utf-8")
    for piece in ("# ConG in the letters world", "## Contrast", "| prompts | 2000 |", "**37 %**", "`alpha=0.4`"):
        assert piece in text
    links = re.findall(r"!\[Figure \d\]\((.*?)\)", text)
    assert links == ["lab-figures/figure-1.svg", "lab-figures/figure-2.svg"]
    assert all((tmp_path / link).read_text(encoding="utf-8").startswith("<?xml") for link in links)
    assert "aligned (gold reward 0.50, mean log-ratio +0.62 nats):\n\n```text\n>ab\n```" in text


def test_figures_of_a_former_page_are_removed(tmp_path: Path) -> None:
    write_markdown(PAGE, tmp_path / "lab.md")
    write_markdown(replace(PAGE, sections=PAGE.sections[:1]), tmp_path / "lab.md")
    assert [path.name for path in (tmp_path / "lab-figures").iterdir()] == ["figure-1.svg"]


def test_markdown_holds_no_html_of_others_outside_code() -> None:
    text = re.sub(r"```text\n.*?\n```", "", markdown(hostile_page(), "figures"), flags=re.DOTALL)
    assert "<" not in re.sub(r"`[^`\n]*`", "", text)


def test_backticks_in_a_sample_do_not_end_its_code_block() -> None:
    page = replace(PAGE, sections=[Section("s", [Details("raw", "a\n````\nb")])])
    assert "`````text\na\n````\nb\n`````" in markdown(page, "figures")


@pytest.mark.parametrize(("text", "written"), [("1. one", "1\\. one"), ("- one", "\\- one"), ("0.5 is", "0.5 is")])
def test_a_paragraph_is_not_read_as_a_list(text: str, written: str) -> None:
    assert written in markdown(replace(PAGE, summary=text, sections=[]), "figures").split("\n\n")


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_html(PAGE, path)
    before = path.read_bytes()
    broken = replace(PAGE, sections=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_html(broken, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    # The place is taken by a folder, so that the final rename fails after everything has been written.
    (tmp_path / "page.html").mkdir()
    with pytest.raises(IsADirectoryError):
        write_html(PAGE, tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
