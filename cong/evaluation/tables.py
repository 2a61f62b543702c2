"""The tables of an evaluation's report."""

from cong.evaluation.results import Estimated, EvaluationResult, GapResult
from cong.report import Cell, Column, Estimate, Table

_MOST_IDS = 10
"""Prompt ids that a cell spells out; the record has them all."""


def bar_value(value: Estimated) -> Estimate | float:
    """A number as plots show it, with its interval where it has one."""
    if value.low is None or value.high is None:
        return value.mean
    return Estimate(value.mean, value.low, value.high)


def cell(value: Estimated | None) -> Cell:
    """The same in a table."""
    return None if value is None else bar_value(value)


def rewards_table(result: EvaluationResult) -> Table:
    """Every set under every judge, and what its answers are like."""
    summed = [
        judge.name for judge in result.judges if any(one.rewards[judge.name].total is not None for one in result.sets)
    ]
    cut = [judge.name for judge in result.judges if any(one.rewards[judge.name].num_cut_answers for one in result.sets)]
    columns = [
        Column("answers of", "left"),
        *[Column(f"{judge.name} [95 %]", best="max") for judge in result.judges],
        *[Column(f"{name}, sum", format=".2f") for name in summed],
        *[Column(f"{name}, tokens", format=".1f") for name in summed],
        *[Column(f"{name}, cut") for name in cut],
        Column("characters", format=".1f"),
        Column("empty", format=".1%"),
        Column("cut off", format=".1%"),
        Column("answers"),
        Column("prompts"),
    ]
    rows: list[list[Cell]] = []
    for one in result.sets:
        rows.append(
            [
                one.label,
                *[cell(one.rewards[judge.name].reward) for judge in result.judges],
                *[cell(one.rewards[name].total) for name in summed],
                *[one.rewards[name].mean_num_tokens for name in summed],
                *[one.rewards[name].num_cut_answers for name in cut],
                one.mean_chars,
                one.empty_share,
                one.truncated_share,
                one.num_answers,
                one.num_prompts,
            ]
        )
    return Table(
        f"Mean reward on {result.num_prompts:,} held-out prompts",
        columns,
        rows,
        caption=(
            "Means and intervals are over the prompts that a side answers. Cut off: the answer ended by its limit of "
            "length."
        ),
    )


def comparisons_table(result: EvaluationResult) -> Table:
    """Every set against the baseline's."""
    rows: list[list[Cell]] = [
        [
            one.left,
            one.right,
            one.judge,
            cell(one.win_rate),
            cell(one.length_controlled),
            cell(one.difference),
            one.num_wins,
            one.num_ties,
            one.num_losses,
            one.mean_length_difference,
            one.num_prompts,
        ]
        for one in result.comparisons
    ]
    return Table(
        "Wins, prompt by prompt",
        [
            Column("answers of", "left"),
            Column("against", "left"),
            Column("judge", "left"),
            Column("win rate [95 %]"),
            Column("at equal length [95 %]"),
            Column("reward difference [95 %]", format="+.3f"),
            Column("wins"),
            Column("ties"),
            Column("losses"),
            Column("longer by", format="+.1f"),
            Column("prompts"),
        ],
        rows,
        caption="A tie is half a win. Longer by: characters, on average.",
    )


def gaps_table(result: EvaluationResult) -> Table:
    """What each candidate recovered, with numerator and denominator."""
    rows: list[list[Cell]] = [
        [
            one.student,
            one.decoding,
            one.judge,
            cell(one.recovered),
            cell(one.gained),
            cell(one.gap),
            _remark(one),
        ]
        for one in result.gaps
    ]
    first = result.gaps[0]
    return Table(
        f"Gap between {first.floor} and {first.ceiling}",
        [
            Column("student", "left"),
            Column("decoding", "left"),
            Column("judge", "left"),
            Column("recovered [95 %]"),
            Column("student - floor [95 %]", format="+.3f"),
            Column("ceiling - floor [95 %]", format="+.3f"),
            Column("remark", "left"),
        ],
        rows,
        caption="Above 1 the student is better than the ceiling, below 0 worse than the floor.",
    )


def _remark(gap: GapResult) -> str:
    if gap.refusal:
        return f"refused: {gap.refusal}"
    return f"no gap in {gap.undefined_share:.1%} of resamples" if gap.undefined_share else ""


def correlations_table(result: EvaluationResult) -> Table:
    """Every judge against the first, over answers."""
    num_groups = max(len(one.reference_by_quantile) for one in result.correlations)
    rows: list[list[Cell]] = []
    for one in result.correlations:
        groups: list[Cell] = [*one.reference_by_quantile, *[None] * (num_groups - len(one.reference_by_quantile))]
        rows.append(
            [one.judge, one.set_label, cell(one.pearson), one.spearman, one.pearson_of_total, *groups, one.num_answers]
        )
    return Table(
        f"Correlation with {result.judges[0].name}",
        [
            Column("judge", "left"),
            Column("answers of", "left"),
            Column("Pearson [95 %]"),
            Column("Spearman"),
            Column("Pearson of the sum"),
            *[Column(f"quantile {number}") for number in range(1, num_groups + 1)],
            Column("answers"),
        ],
        rows,
        caption=(
            "Over single answers, intervals over prompts. Quantiles: mean reward by the reference in groups of equal "
            "size, by ascending reward of the judge. Empty: one side does not vary."
        ),
    )


def agreements_table(result: EvaluationResult) -> Table:
    """Every judge against the first, over comparisons."""
    rows: list[list[Cell]] = [
        [one.judge, one.left, one.right, cell(one.share), one.num_decided, one.num_undecided]
        for one in result.agreements
    ]
    return Table(
        f"Agreement with {result.judges[0].name} on who is better",
        [
            Column("judge", "left"),
            Column("answers of", "left"),
            Column("against", "left"),
            Column("agreement [95 %]"),
            Column("prompts"),
            Column("tied by a judge"),
        ],
        rows,
        caption="Over the prompts on which neither judge sees a tie.",
    )


def misfits_table(result: EvaluationResult) -> Table:
    """The student's distributions against its teacher's."""
    rows: list[list[Cell]] = [
        [
            one.student,
            one.weak,
            one.set_label,
            one.squared,
            one.kl_student_weak,
            one.kl_weak_student,
            one.agreement,
            one.student_entropy,
            one.weak_entropy,
            one.num_points,
        ]
        for one in result.misfits
    ]
    return Table(
        "Misfit of next-token distributions",
        [
            Column("student", "left"),
            Column("weak", "left"),
            Column("on answers of", "left"),
            Column("squared", format=".4f"),
            Column("KL(student, weak)", format=".4f"),
            Column("KL(weak, student)", format=".4f"),
            Column("same best token", format=".1%"),
            Column("student entropy"),
            Column("weak entropy"),
            Column("tokens"),
        ],
        rows,
        caption="Means over tokens, nats. A student that has learned more than its teacher knows misfits it.",
    )


def left_out_table(result: EvaluationResult) -> Table:
    """Prompts that are missing on some side, by name."""
    rows: list[list[Cell]] = [
        [one.label, len(one.missing), _ids(one.missing), len(one.unknown), _ids(one.unknown)]
        for one in result.sets
        if one.missing or one.unknown
    ]
    return Table(
        "Prompts without an answer, and answers without a prompt",
        [
            Column("answers of", "left"),
            Column("missing"),
            Column("which", "left"),
            Column("unknown"),
            Column("which", "left"),
        ],
        rows,
        caption="A comparison uses the prompts that both sides answer. `evaluation.json` names every id.",
    )


def _ids(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - _MOST_IDS} more" if len(ids) > _MOST_IDS else ""
    return ", ".join(ids[:_MOST_IDS]) + more


def terminal_tables(result: EvaluationResult) -> list[Table]:
    """What fits into a terminal: rewards by every judge, and wins by the first; the report has the rest."""
    first = result.judges[0].name
    rewards: list[list[Cell]] = [
        [one.label, *[cell(one.rewards[judge.name].reward) for judge in result.judges], one.num_answers]
        for one in result.sets
    ]
    tables = [
        Table(
            f"Mean reward on {result.num_prompts:,} held-out prompts",
            [
                Column("answers of", "left"),
                *[Column(judge.name, best="max") for judge in result.judges],
                Column("answers"),
            ],
            rewards,
        )
    ]
    wins: list[list[Cell]] = [
        [one.name, cell(one.win_rate), cell(one.length_controlled)] for one in result.comparisons if one.judge == first
    ]
    if wins:
        against = result.comparisons[0].right.rpartition(", ")[0]
        columns = [Column("answers of", "left"), Column("win rate"), Column("at equal length")]
        tables.append(Table(f"Against {against}, judged by {first}", columns, wins))
    gaps: list[list[Cell]] = [
        [f"{one.student}, {one.decoding}", cell(one.recovered), _remark(one)]
        for one in result.gaps
        if one.judge == first
    ]
    if gaps:
        title = f"Gap between {result.gaps[0].floor} and {result.gaps[0].ceiling}, judged by {first}"
        tables.append(Table(title, [Column("student", "left"), Column("recovered"), Column("remark", "left")], gaps))
    return tables
