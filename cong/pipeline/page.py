"""What is shown of a pipeline: results first, then what was made from what, how training went, and what it took.

Knows no files; everything is handed in.
"""

from collections.abc import Sequence

from cong.pipeline.board import Standing
from cong.pipeline.costs import Cost
from cong.pipeline.judged import headlines, judged_sections, judged_summary
from cong.pipeline.material import Drawn, Material, Trained
from cong.pipeline.tables import bottleneck, cost_table, failures_table, given_table, stages_table
from cong.report import (
    Axis,
    Bar,
    BarPlot,
    Cell,
    Column,
    Comparison,
    Details,
    Figure,
    Histogram,
    Line,
    LinePlot,
    Page,
    Panels,
    Prose,
    Samples,
    Section,
    Table,
)
from cong.report.page import Block


def pipeline_page(material: Material) -> Page:
    """The whole pipeline as one page."""
    judged = material.judged
    sections = [] if judged is None else judged_sections(judged, material.swept)
    sections.append(Section("What was made from what", [given_table(material.given), stages_table(material.stages)]))
    if material.trained:
        sections.append(Section("Training", _curves(material.trained)))
    if material.drawn:
        sections.append(Section("Samples", _lengths(material.drawn)))
    if material.failures:
        sections.append(Section("Given up", [failures_table(material.failures)]))
    sections.append(Section("What it took", _costs(material.stages)))
    sections.append(Section("Configuration", [Details("the whole configuration", material.configuration)]))
    return Page(
        title="From a weak pair to a strong model",
        summary=_summary(material),
        sections=sections,
        facts={"methods": ", ".join(material.methods), **material.software},
        headlines={} if judged is None else headlines(judged.result),
    )


def _summary(material: Material) -> str:
    made = f"{len(material.stages)} stages for the methods {', '.join(material.methods)}."
    if material.judged is None:
        return f"{made} Nothing was judged: `evaluation.prompts` is not set."
    return f"{made} {judged_summary(material.judged.result)}"


def _costs(stages: Sequence[tuple[Standing, Cost]]) -> list[Block]:
    """Seconds and tokens per second of every stage, and which of them decides how long the whole takes."""
    seconds = [Bar(cost.name, cost.seconds, _KINDS[standing.stage.kind]) for standing, cost in stages]
    rates = [
        Bar(cost.name, cost.tokens_per_s, _KINDS[standing.stage.kind])
        for standing, cost in stages
        if cost.tokens_per_s is not None and standing.stage.kind != "import"
    ]
    figures: list[Block] = [
        Figure(
            BarPlot(seconds, Axis("time", "s"), format=",.1f"),
            "Seconds of every stage, in the order in which they ran.",
        )
    ]
    if rates:
        plot = BarPlot(rates, Axis("throughput", "tokens/s"), format=",.0f")
        figures.append(Figure(plot, "Tokens per second of stages that sample or train: drawn, or trained on."))
    return [Prose(bottleneck(stages)), *figures, cost_table(stages)]


_KINDS = {
    "sample": "sampling",
    "import": "sampling",
    "train": "training",
    "evaluate": "judging",
    "sweep": "judging",
    "report": "the report",
}


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
            shown = f"{label[:1].upper()}{label[1:]}"
            figures.append(Figure(Panels(plots), f"{shown} of every stage that trains: every step, and smoothed."))
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
    blocks: list[Block] = [
        Table("Samples for training", columns, rows, caption="Those cut off teach nothing and are left out."),
        Figure(plot, "Lengths of the samples of each stage."),
    ]
    shared = [prompt for prompt in drawn[0].first if all(prompt in one.first for one in drawn)]
    comparisons = [Comparison(drawn[0].first[prompt][0], [one.first[prompt][1] for one in drawn]) for prompt in shared]
    if comparisons:
        about = ", ".join(f"{one.name}: {one.about}" for one in drawn)
        blocks.append(Prose(f"The first samples of each stage ({about}), where a pair drew them with its log-ratio."))
        blocks.append(Samples(comparisons, ("aligned", "base"), reward_label="implicit reward"))
    return blocks
