"""What is shown of a pipeline: results first, then what was made from what, how training went, and what it took.

Knows no files; everything is handed in.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cong.evaluation import EvaluationResult
from cong.evaluation.results import Estimated
from cong.evaluation.tables import bar_value, comparisons_table, correlations_table, gaps_table, rewards_table
from cong.pipeline.board import Standing
from cong.pipeline.book import GAINS
from cong.pipeline.costs import Cost
from cong.pipeline.stage import Product
from cong.pipeline.tables import bottleneck, cost_table, failures_table, given_table, stages_table
from cong.report import (
    Axis,
    Bar,
    BarPlot,
    Cell,
    Column,
    Details,
    Figure,
    Histogram,
    Line,
    LinePlot,
    Page,
    Panels,
    Prose,
    Reference,
    Samples,
    ScatterPlot,
    Section,
    Table,
)
from cong.report.page import Block
from cong.statistics import paired_interval


@dataclass(frozen=True)
class Trained:
    """How one stage's training went."""

    name: str
    about: str
    metrics: Sequence[Mapping[str, Any]]
    """One line per optimiser step."""


@dataclass(frozen=True)
class Drawn:
    """What the samples of one stage are like."""

    name: str
    about: str
    num_records: int
    num_cut: int
    """Ended by the limit of length."""
    lengths: Sequence[int]
    """Tokens."""
    rewards: Sequence[float]
    """Implicit reward per token, where a pair has drawn them."""


@dataclass(frozen=True)
class Judged:
    """What an evaluation has left."""

    result: EvaluationResult
    answers: Sequence[Mapping[str, Any]]
    """Every answer with its reward by each judge."""
    samples: Sequence[Samples]


@dataclass(frozen=True)
class Material:
    """Everything that the page is made of."""

    methods: Sequence[str]
    stages: Sequence[tuple[Standing, Cost]]
    given: Mapping[str, Product]
    trained: Sequence[Trained]
    drawn: Sequence[Drawn]
    failures: Sequence[tuple[str, Mapping[str, Any]]]
    judged: Judged | None
    configuration: str
    software: Mapping[str, str]


def pipeline_page(material: Material) -> Page:
    """The whole pipeline as one page."""
    judged = material.judged
    sections = []
    if judged is not None:
        sections.append(Section("Results", _results(judged)))
        if len(judged.result.judges) > 1:
            sections.append(Section("Judges against each other", _relations(judged)))
        if judged.samples:
            sections.append(Section("Answers side by side", list(judged.samples)))
    sections.append(Section("What was made from what", [given_table(material.given), stages_table(material.stages)]))
    if material.trained:
        sections.append(Section("Training", _curves(material.trained)))
    if material.drawn:
        sections.append(Section("Samples", _lengths(material.drawn)))
    if material.failures:
        sections.append(Section("Given up", [failures_table(material.failures)]))
    sections.append(Section("What it took", [Prose(bottleneck(material.stages)), cost_table(material.stages)]))
    sections.append(Section("Configuration", [Details("the whole configuration", material.configuration)]))
    return Page(
        title="From a weak pair to a strong model",
        summary=_summary(material),
        sections=sections,
        facts={"methods": ", ".join(material.methods), **material.software},
        headlines={} if judged is None else _headlines(judged.result),
    )


def _primary(result: EvaluationResult) -> list[tuple[str, Estimated]]:
    """Candidates with their reward by the first judge under the decoding that results are about."""
    first, decoding = result.judges[0].name, result.sets[0].decoding
    return [(one.candidate, one.rewards[first].reward) for one in result.sets if one.decoding in (decoding, "given")]


def _headlines(result: EvaluationResult) -> dict[str, str]:
    return {name: f"{reward.mean:.3f}" for name, reward in _primary(result)[:6]}


def _summary(material: Material) -> str:
    made = f"{len(material.stages)} stages for the methods {', '.join(material.methods)}."
    if material.judged is None:
        return f"{made} Nothing was judged: `evaluation.prompts` is not set."
    result = material.judged.result
    best, reward = max(_primary(result), key=lambda each: each[1].mean)
    text = "" if reward.low is None or reward.high is None else f" (95 %: {reward.low:.3f} to {reward.high:.3f})"
    return (
        f"{made} On {result.num_prompts:,} held-out prompts judged by {result.judges[0].name} the best is {best}: "
        f"{reward.mean:.3f}{text}."
    )


def _gains_table(judged: Judged) -> Table:
    """The differences that the methods stand on, by the first judge, paired by prompt."""
    first, decoding = judged.result.judges[0].name, judged.result.sets[0].decoding
    rewards: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in judged.answers:
        if each["decoding"] == decoding:
            rewards[each["candidate"]][each["prompt_id"]].append(float(each["rewards"][first]))
    means = {name: {prompt: fmean(values) for prompt, values in of.items()} for name, of in rewards.items()}
    rows: list[list[Cell]] = []
    for left, right in GAINS:
        shared = sorted(means.get(left, {}).keys() & means.get(right, {}).keys())
        if len(shared) > 1:
            found = paired_interval([means[left][one] for one in shared], [means[right][one] for one in shared])
            rows.append([f"{left} over {right}", bar_value(Estimated.of(found)), len(shared)])
    columns = [Column("gain", "left"), Column("difference [95 %]", format="+.3f"), Column("prompts")]
    return Table(f"Gains by {first} at {decoding}, paired by prompt", columns, rows)


def _results(judged: Judged) -> list[Block]:
    result = judged.result
    primary = _primary(result)
    floor = primary[0]
    bars = [Bar(name, bar_value(reward)) for name, reward in primary]
    plot = BarPlot(
        bars,
        Axis(f"mean reward by {result.judges[0].name}"),
        [Reference(floor[0], floor[1].mean)],
        format=".3f",
    )
    blocks: list[Block] = [
        Figure(plot, "Mean reward with 95 % intervals over prompts; the line is the weak model's, the floor."),
        rewards_table(result),
    ]
    gains = _gains_table(judged)
    if gains.rows:
        blocks.append(gains)
    if result.gaps:
        blocks.append(gaps_table(result))
    if result.comparisons:
        blocks.append(comparisons_table(result))
    return blocks


def _relations(judged: Judged) -> list[Block]:
    result = judged.result
    first, decoding = result.judges[0].name, result.sets[0].decoding
    answers = [each for each in judged.answers if each["decoding"] in (decoding, "given")]
    plots = [
        ScatterPlot(
            [float(each["rewards"][judge.name]) for each in answers],
            [float(each["rewards"][first]) for each in answers],
            Axis(f"reward by {judge.name}"),
            Axis(f"reward by {first}"),
        )
        for judge in result.judges[1:]
    ]
    blocks: list[Block] = [correlations_table(result)] if result.correlations else []
    caption = "One point per answer of every candidate; means by quartile."
    return [*blocks, Figure(Panels(plots, num_columns=2), caption)]


_CURVES = (("loss", "loss", ""), ("reward_margin", "reward margin", "nats"), ("accuracy", "accuracy", ""))


def _curves(trained: Sequence[Trained]) -> list[Block]:
    figures: list[Block] = []
    for key, label, unit in _CURVES:
        plots = []
        for one in trained:
            points = [(float(line["step"]), float(line[key])) for line in one.metrics if line.get(key) is not None]
            if points:
                line = Line(label, [x for x, _ in points], [y for _, y in points])
                plots.append(LinePlot([line], Axis("step"), Axis(label, unit), title=one.name, smoothing=0.8))
        if plots:
            figures.append(Figure(Panels(plots), f"{label} of every stage that trains: every step, and smoothed."))
    return figures


def _lengths(drawn: Sequence[Drawn]) -> list[Block]:
    rows: list[list[Cell]] = [
        [
            one.name,
            one.num_records,
            sum(one.lengths) / len(one.lengths) if one.lengths else None,
            max(one.lengths, default=None),
            one.num_cut / one.num_records if one.num_records else None,
            sum(one.rewards) / len(one.rewards) if one.rewards else None,
        ]
        for one in drawn
    ]
    columns = [
        Column("samples", "left"),
        Column("number"),
        Column("mean tokens", format=".1f"),
        Column("most tokens"),
        Column("cut off", format=".1%"),
        Column("implicit reward per token"),
    ]
    plot = Histogram({one.name: [float(each) for each in one.lengths] for one in drawn}, Axis("length", "tokens"))
    return [
        Table("Samples for training", columns, rows, caption="Those cut off teach nothing and are left out."),
        Figure(plot, "Lengths of the samples of each stage."),
    ]
