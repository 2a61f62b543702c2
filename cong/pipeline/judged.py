"""The sections of a pipeline's page about what was judged: rewards, gains, the gap, the sweep, and the judges."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from cong.evaluation import EvaluationResult, SweepPoint
from cong.evaluation.results import Estimated, GapResult
from cong.evaluation.tables import bar_value, comparisons_table, correlations_table, gaps_table, rewards_table
from cong.pipeline.book import GAINS
from cong.pipeline.material import Judged, Swept
from cong.report import (
    Axis,
    Bar,
    BarPlot,
    Cell,
    Column,
    Figure,
    Line,
    LinePlot,
    Panels,
    Prose,
    Reference,
    ScatterPlot,
    Section,
    Table,
)
from cong.report.page import Block
from cong.statistics import paired_interval


def judged_sections(judged: Judged, swept: Swept | None) -> list[Section]:
    """All of them."""
    sections = [Section("Results", _results(judged))]
    if swept is not None:
        sections.append(Section("Reward against alpha", _against_alpha(swept, judged)))
    if len(judged.result.judges) > 1:
        sections.append(Section("Judges against each other", _relations(judged)))
    if judged.samples:
        sections.append(Section("Answers side by side", list(judged.samples)))
    return sections


def headlines(result: EvaluationResult) -> dict[str, str]:
    """Few rewards, to be shown large."""
    return {name: f"{reward.mean:.3f}" for name, reward in _ranked(result)[:6]}


def judged_summary(result: EvaluationResult) -> str:
    """Rewards and recovered gaps in a sentence each."""
    rewards = dict(_primary(result))
    judge = result.judges[0].name
    shown = [f"{name} {_with_interval(rewards[name])}" for name in _TOLD if name in rewards]
    text = f"Mean reward by {judge} on {result.num_prompts:,} held-out prompts: {', '.join(shown)}."
    gaps = {name: gap.recovered for name, gap in _gaps(result).items() if gap.recovered is not None}
    told = [f"{name} {_with_interval(gaps[name], '.0%')}" for name in _TOLD if name in gaps]
    return text + (f" Of the gap to the ceiling they recover: {', '.join(told)}." if told else "")


_TOLD = ("weak aligned", "WeakSFT", "ConG-S", "ConG", "self ConG", "ceiling")


def _with_interval(value: Estimated, spec: str = ".3f") -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:{spec}}"
    return f"{value.mean:{spec}} [{value.low:{spec}}, {value.high:{spec}}]"


def _primary(result: EvaluationResult) -> list[tuple[str, Estimated]]:
    """Candidates with their reward by the first judge under the decoding that results are about."""
    first, decoding = result.judges[0].name, result.sets[0].decoding
    return [(one.candidate, one.rewards[first].reward) for one in result.sets if one.decoding in (decoding, "given")]


def _gaps(result: EvaluationResult) -> dict[str, GapResult]:
    """By student, of the same judge and decoding."""
    first, decoding = result.judges[0].name, result.sets[0].decoding
    return {gap.student: gap for gap in result.gaps if gap.judge == first and gap.decoding == decoding}


_GROUPS = {"weak aligned": "weak model", "ConG-S": "ConG", "ConG": "ConG", "self ConG-S": "ConG", "self ConG": "ConG"}
_GROUPS |= {"WeakSFT": "rivals", "AuxConf": "rivals", "WSPO": "rivals", "ceiling": "ceiling"}
_ORDER = ("weak model", "others", "rivals", "ConG", "ceiling")
"""From the floor to the ceiling; whatever is judged beside the pipeline's own is among the others."""


def _ranked(result: EvaluationResult) -> list[tuple[str, Estimated]]:
    """The same in the order in which they are shown."""
    return sorted(_primary(result), key=lambda each: _ORDER.index(_GROUPS.get(each[0], "others")))


def _gains_table(judged: Judged) -> Table:
    """The differences that the methods stand on, by the first judge, paired by prompt."""
    first, decoding = judged.result.judges[0].name, judged.result.sets[0].decoding
    rewards: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in judged.answers:
        if each["decoding"] == decoding:
            rewards[each["candidate"]][each["prompt_id"]].append(float(each["rewards"][first]))
    means = {name: {prompt: fmean(values) for prompt, values in of.items()} for name, of in rewards.items()}
    least, most = judged.result.judges[0].reward_ends
    rows: list[list[Cell]] = []
    for left, right in GAINS:
        shared = sorted(means.get(left, {}).keys() & means.get(right, {}).keys())
        if shared:
            sides = [[means[name][prompt] for prompt in shared] for name in (left, right)]
            found = paired_interval(sides[0], sides[1], least - most, most - least)
            rows.append([f"{left} over {right}", bar_value(Estimated.of(found)), len(shared)])
    columns = [Column("gain", "left"), Column("difference [95 %]", format="+.3f"), Column("prompts")]
    return Table(f"Gains by {first} at {decoding}, paired by prompt", columns, rows)


def _results(judged: Judged) -> list[Block]:
    result = judged.result
    primary = _ranked(result)
    floor = primary[0]
    bars = [Bar(name, bar_value(reward), _GROUPS.get(name, "others")) for name, reward in primary]
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
        blocks += _gap(result)
    if result.comparisons:
        blocks.append(comparisons_table(result))
    return blocks


def _gap(result: EvaluationResult) -> list[Block]:
    first, decoding, found = result.judges[0].name, result.sets[0].decoding, _gaps(result)
    order = [name for name, _ in _ranked(result) if name in found]
    bars = [Bar(name, bar_value(recovered)) for name in order if (recovered := found[name].recovered) is not None]
    table = gaps_table(result)
    if not bars:
        return [table]
    plot = BarPlot(bars, Axis("performance gap recovered"), [Reference("all of it", 1.0)], format=".2f")
    caption = (
        f"Share of the gap between {table.title.removeprefix('Gap between ')} that each student recovers by {first} at "
        f"{decoding}, with 95 % intervals; below 0 it is worse than the weak model."
    )
    return [Figure(plot, caption), table]


def _against_alpha(swept: Swept, judged: Judged) -> list[Block]:
    """What the contrast does to the pair's own answers, by every judge; floor and ceiling beside it."""
    points = sorted(swept.points, key=lambda point: point.alpha)
    alphas = [point.alpha for point in points]
    judges = [judge.name for judge in judged.result.judges]
    marks = [
        Reference(one.candidate, one.rewards[judges[0]].reward.mean)
        for one in judged.result.sets
        if one.candidate in _MARKS and one.decoding == judged.result.sets[0].decoding
    ]
    main, *others = (
        LinePlot([_curve(points, name)], _ALPHA, Axis(f"mean reward by {name}"), has_markers=True) for name in judges
    )
    lengths = Line("the weak pair", alphas, [point.mean_num_tokens for point in points])
    others.append(LinePlot([lengths], _ALPHA, Axis("mean length", "tokens"), has_markers=True))
    first, decoding = judged.result.judges[0].name, points[0].found.decoding
    best = max(points, key=lambda point: point.found.rewards[first].reward.mean)
    chosen = "" if swept.alpha is None else f" The samples that were trained on were drawn at alpha {swept.alpha:g}."
    rows: list[list[Cell]] = [
        [
            f"{point.alpha:g}",
            *(bar_value(point.found.rewards[judge.name].reward) for judge in judged.result.judges),
            point.mean_num_tokens,
            point.found.truncated_share,
        ]
        for point in points
    ]
    columns = [
        Column("alpha"),
        *(Column(f"{judge.name} [95 %]", format=".3f") for judge in judged.result.judges),
        Column("mean tokens", format=".1f"),
        Column("cut off", format=".1%"),
    ]
    number = points[0].found.num_prompts
    return [
        Figure(
            replace(main, references=marks),
            f"Reward by {first} of the weak pair's own answers to {number:,} held-out prompts at {decoding}, against "
            "the strength of contrast (0: all of the base model is taken away; 1: none, on the head set). "
            "Band: 95 % over prompts. Dashed: models.",
        ),
        Figure(
            Panels(others), f"The same answers by {'every other judge, and their length' if judges[1:] else 'length'}."
        ),
        Prose(f"By {first} the pair's answers are best at alpha {best.alpha:g}.{chosen}"),
        Table(
            "The weak pair at each alpha",
            columns,
            rows,
            highlighted=[place for place, point in enumerate(points) if swept.alpha == point.alpha],
        ),
    ]


def _curve(points: Sequence[SweepPoint], judge: str) -> Line:
    rewards = [point.found.rewards[judge].reward for point in points]
    low = [reward.low for reward in rewards if reward.low is not None]
    high = [reward.high for reward in rewards if reward.high is not None]
    has_band = len(low) == len(high) == len(rewards)
    alphas, means = [point.alpha for point in points], [reward.mean for reward in rewards]
    return Line("the weak pair", alphas, means, low if has_band else None, high if has_band else None)


_ALPHA = Axis("alpha")
_MARKS = ("weak aligned", "ConG", "ceiling")
"""Candidates whose reward stands beside the curve."""


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
