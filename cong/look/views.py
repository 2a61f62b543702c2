"""A look as coloured samples, as tables, and as a page."""

import math
from collections.abc import Sequence
from textwrap import shorten

from cong.config import RunConfig, dump_config
from cong.look.looking import PAIR, Answer, Look
from cong.look.steps import Choice, Step
from cong.report import (
    Block,
    Column,
    Comparison,
    Details,
    Page,
    Response,
    Samples,
    Section,
    Table,
    Token,
    visible,
)

STEPS_LEGEND = (
    "Probabilities of each token that was drawn, under both networks and under the contrast as it was drawn from. "
    "Emphasised: the contrast's favourite is another than the aligned model's."
)
_TITLE_CHARS = 60
_LEAST_SHOWN = 0.0005
"""Favourites less likely are left out; in percent they would be 0.0."""


def samples_of(looks: Sequence[Look], full_colour_nats: float = 3.0) -> Samples:
    """All answers, coloured by what the aligned model finds likelier than the base."""
    comparisons = [Comparison(each.prompt.shown, [_response(answer) for answer in each.answers]) for each in looks]
    return Samples(comparisons, PAIR, full_colour_nats)


def steps_table(prompt: str, answer: Answer) -> Table:
    """One answer downwards, with what every network thinks of each token; `STEPS_LEGEND` explains it."""
    return Table(
        f"{answer.label}: {shorten(prompt, _TITLE_CHARS, placeholder=' …')}",
        [
            Column("token", "left"),
            *[Column(name, format=".1%") for name in (*PAIR, "contrast")],
            Column("head set"),
            Column("favourites of the contrast", "left"),
        ],
        [
            [
                visible(step.drawn.text),
                *[math.exp(value) for value in (*step.drawn.logprobs, step.drawn.mixed)],
                step.head_size,
                ", ".join(_favourite(choice) for choice in step.favourites if math.exp(choice.mixed) >= _LEAST_SHOWN),
            ]
            for step in answer.steps
        ],
        highlighted=[row for row, step in enumerate(answer.steps) if step.is_turned],
    )


def look_page(looks: Sequence[Look], config: RunConfig) -> Page:
    """Everything of a look."""
    networks: dict[str, str] = {network.role: network.name for network in looks[0].answers[0].record.networks}
    by_label: dict[str, list[Step]] = {}
    for answer in (answer for each in looks for answer in each.answers if answer.steps):
        by_label.setdefault(answer.label, []).extend(answer.steps)
    sections = [Section("Side by side", [samples_of(looks)])]
    for number, each in enumerate(looks, 1):
        tables: list[Block] = [steps_table(each.prompt.shown, answer) for answer in each.answers if answer.steps]
        if tables:
            sections.append(Section(f"Prompt {number}, token by token", tables))
    sections.append(Section("Configuration", [Details("resolved configuration", dump_config(config))]))
    return Page(
        "What the contrast does",
        "Each prompt is answered by both networks alone and by their contrast, "
        "`log p_aligned - (1 - alpha) log p_base` on the tokens that the aligned model finds plausible. One answer a "
        f"prompt shows what the contrast does, not how good it is.\n\n{STEPS_LEGEND}",
        sections,
        facts={**networks, "prompts": len(looks), "seed": config.sampling.seed},
        headlines={f"{label}: favourite turned": _turned(steps) for label, steps in by_label.items()},
    )


def _response(answer: Answer) -> Response:
    aligned, base = (answer.record.logprobs[role] for role in PAIR)
    return Response(
        answer.label,
        [Token.of_pair(*each) for each in zip(answer.texts, aligned, base, strict=True)],
    )


def _favourite(choice: Choice) -> str:
    return f"{visible(choice.text)}\u00a0{math.exp(choice.mixed):.1%}"


def _turned(steps: Sequence[Step]) -> str:
    return f"{sum(step.is_turned for step in steps) / len(steps):.0%} of {len(steps)} tokens"
