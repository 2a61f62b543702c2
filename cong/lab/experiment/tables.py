"""The tables of an experiment.

Means are over all seeds. Where the weak model's alignment failed on some of them, a second mean over the other seeds
stands beside, and every seed is listed, so that neither hides the other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from cong.lab.experiment.claims import Verdict, is_pair_sound
from cong.lab.names import CONG
from cong.lab.results import ExperimentResult, SeedResult, SetResult
from cong.lab.views import estimate
from cong.report import Cell, Column, Estimate, Table
from cong.statistics import t_interval

Read = Callable[[SeedResult], float]


@dataclass(frozen=True)
class Seeds:
    """The results of all seeds, and those whose weak pair is sound."""

    every: tuple[SeedResult, ...]

    @property
    def sound(self) -> tuple[SeedResult, ...]:
        """Seeds on which the weak model's alignment worked; all of them where it never did."""
        return tuple(seed for seed in self.every if is_pair_sound(seed)) or self.every

    @property
    def is_mixed(self) -> bool:
        """Whether the alignment failed on some seeds and worked on others."""
        return len(self.sound) < len(self.every)

    def over(self, read: Read) -> Estimate | float:
        """Mean reward over all seeds, with an interval over seeds where there are at least two."""
        values = [read(seed) for seed in self.every]
        return estimate(t_interval(values, 0.0, 1.0)) if len(values) > 1 else values[0]

    def mean(self, read: Read) -> float:
        """Mean over the seeds whose pair is sound."""
        return fmean(read(seed) for seed in self.sound)

    def each(self, read: Read, spec: str = ".3f") -> str:
        """The value on every seed, in their order."""
        return " ".join(f"{read(seed):{spec}}" for seed in self.every)

    def reward_cells(self, read: Read) -> list[Cell]:
        """Mean over all, mean over sound pairs where that differs, and every seed."""
        return [self.over(read), *([self.mean(read)] if self.is_mixed else []), self.each(read)]

    def reward_columns(self) -> list[Column]:
        """Columns of `reward_cells`."""
        extra = [Column("where aligned")] if self.is_mixed else []
        return [Column("reward [95 % over seeds]"), *extra, Column("each seed", "left")]

    @property
    def caption(self) -> str:
        """What the means are over."""
        if not self.is_mixed:
            return ""
        failed = ", ".join(str(seed.seed) for seed in self.every if seed not in self.sound)
        return (
            f'The weak alignment failed on seed {failed}: "where aligned" and all columns that are not by seed are '
            "means over the other seeds."
        )


_SHARES = {
    "good opening": "good_opening_share",
    "exact body": "exact_body_share",
    "good ending": "good_ending_share",
    "empty": "empty_share",
    "cut off": "truncated_share",
    "no opening": "stray_share",
}


def _part_cells(seeds: Seeds, read: Callable[[SeedResult], SetResult]) -> list[Cell]:
    def mean(field: str) -> float:
        return seeds.mean(lambda seed: getattr(read(seed), field))

    return [mean("mean_num_tokens"), *(f"{mean(field):.1%}" for field in _SHARES.values())]


def _part_columns() -> list[Column]:
    return [Column("tokens", format=".1f"), *(Column(name) for name in _SHARES)]


def _set_rows(
    seeds: Seeds, names: Iterable[str], read: Callable[[SeedResult, str], SetResult]
) -> Iterable[tuple[str, list[Cell], list[Cell]]]:
    """Name, reward cells and part cells of each set."""
    for name in names:

        def of_seed(seed: SeedResult, name: str = name) -> SetResult:
            return read(seed, name)

        def reward(seed: SeedResult, name: str = name) -> float:
            return read(seed, name).reward.mean

        yield name, seeds.reward_cells(reward), _part_cells(seeds, of_seed)


def weak_table(seeds: Seeds) -> Table:
    """Every decoding of the weak models on the test prompts."""
    sets = _set_rows(seeds, seeds.every[0].weak, lambda seed, name: seed.weak[name])
    return Table(
        "Weak models, every decoding",
        [Column("decoding", "left"), *seeds.reward_columns(), *_part_columns()],
        [[name, *rewards, *parts] for name, rewards, parts in sets],
        caption=seeds.caption,
    )


def labels_table(seeds: Seeds) -> Table:
    """What the strong models were taught."""
    sets = _set_rows(seeds, seeds.every[0].labels, lambda seed, name: seed.labels[name])
    return Table(
        "Answers to the training prompts, by decoding",
        [Column("labels", "left"), *seeds.reward_columns(), *_part_columns()],
        [[name, *rewards, *parts] for name, rewards, parts in sets],
        caption=seeds.caption,
    )


def models_table(seeds: Seeds) -> Table:
    """Every model at every temperature, with the gap it recovered."""
    models = seeds.every[0].models
    primary, *others = next(iter(models.values())).by_temperature
    rows: list[list[Cell]] = []
    sets = _set_rows(seeds, models, lambda seed, name: seed.models[name].by_temperature[primary])
    for name, rewards, parts in sets:
        rest = [fmean(seed.models[name].by_temperature[other].reward.mean for seed in seeds.sound) for other in others]
        gaps = [seed.models[name].performance_gap_recovered for seed in seeds.sound]
        known = [gap for gap in gaps if gap is not None]
        rows.append([name, *rewards, *rest, fmean(known) if len(known) == len(gaps) else None, *parts])
    return Table(
        f"Models on held-out prompts, {primary} unless said otherwise",
        [
            Column("model", "left"),
            *seeds.reward_columns(),
            *[Column(other) for other in others],
            Column("gap recovered", format="+.2f"),
            *_part_columns(),
        ],
        rows,
        caption=f"Gap recovered: (model - weak aligned) / (ceiling - weak aligned). {seeds.caption}".strip(),
        highlighted=[place for place, row in enumerate(rows) if row[0] == CONG],
    )


def correlation_table(seeds: Seeds) -> Table:
    """Implicit against gold reward."""
    rows: list[list[Cell]] = []
    for name in seeds.every[0].correlations:

        def pearson(seed: SeedResult, name: str = name) -> float:
            return seed.correlations[name].pearson.mean

        def spearman(seed: SeedResult, name: str = name) -> float:
            return seed.correlations[name].spearman

        def of_sum(seed: SeedResult, name: str = name) -> float:
            return seed.correlations[name].pearson_of_sum

        quartiles = [seed.correlations[name].reward_by_quartile for seed in seeds.sound]
        means = " ".join(f"{fmean(column):.2f}" for column in zip(*quartiles, strict=True))
        each = [seeds.each(read, ".2f") for read in (pearson, spearman, of_sum)]
        rows.append([name, *each, means])
    return Table(
        "Implicit reward log(aligned / base) against gold reward",
        [
            Column("samples", "left"),
            Column("Pearson per token, each seed", "left"),
            Column("Spearman per token, each seed", "left"),
            Column("Pearson of sums, each seed", "left"),
            Column("gold reward by quartile", "left"),
        ],
        rows,
        caption=seeds.caption,
    )


def health_table(seeds: Seeds) -> Table:
    """Whether contrast had anything to act on, and what the pairs of stage 2 were like."""
    rows: list[list[Cell]] = []
    for name in seeds.every[0].health:
        for label, field, spec in (
            ("mean size of the head set", "mean_head_size", ".2f"),
            ("steps whose head set is one token", "single_head_share", ".1%"),
            ("tokens that are not the aligned model's best", "changed_pick_share", ".1%"),
            ("head tokens on which the floor acted", "num_floored", ".0f"),
        ):
            values = [getattr(seed.health[name], field) for seed in seeds.every]
            rows.append([name, label, " ".join(f"{value:{spec}}" for value in values)])
    for label, field, spec in (
        ("implicit reward per token, chosen", "chosen_ratio", "+.3f"),
        ("implicit reward per token, rejected", "rejected_ratio", "+.3f"),
        ("tokens, chosen", "chosen_num_tokens", ".2f"),
        ("tokens, rejected", "rejected_num_tokens", ".2f"),
    ):
        values = [getattr(seed.pairs, field) for seed in seeds.every]
        rows.append(["pairs of stage 2", label, " ".join(f"{value:{spec}}" for value in values)])
    left_out = [seed.models[CONG].num_left_out for seed in seeds.every]
    rows.append(["pairs of stage 2", "left out: both answers equal", " ".join(map(str, left_out))])
    columns = [Column("of", "left"), Column("measure", "left"), Column("each seed", "left")]
    return Table("Health of the contrast", columns, rows)


def alignments_table(seeds: Seeds) -> Table:
    """Contrast against plain decoding for weaker and stronger alignments, on every seed."""
    first = seeds.every[0].alignments
    names = list(next(iter(first.values())))
    rows: list[list[Cell]] = []
    for beta in first:
        each = [seeds.each(lambda seed, name=name, beta=beta: seed.alignments[beta][name], ".2f") for name in names]  # type: ignore[misc]
        rows.append([beta, *each, seeds.each(lambda seed, beta=beta: seed.stray_shares[beta], ".0%")])  # type: ignore[misc]
    return Table(
        "How strong the weak model's alignment may be",
        [
            Column("beta", "left"),
            *[Column(name, "left") for name in names],
            Column("no opening", "left"),
        ],
        rows,
        caption=(
            "Gold reward on each seed; a smaller beta aligns harder. No opening: share of the aligned model's answers "
            "at T=1 that begin with neither opening."
        ),
    )


def claims_table(verdicts: Sequence[Verdict], seeds: Seeds, is_required: bool) -> Table:
    """Each claim with its margin on every seed."""
    is_sound = [seed in seeds.sound for seed in seeds.every]
    rows: list[list[Cell]] = []
    for verdict in verdicts:
        claim = verdict.claim
        if claim.is_required != is_required:
            continue
        bound = f"> {claim.above:g}" if claim.at_most == float("inf") else f"{claim.above:g} to {claim.at_most:g}"
        if claim.mean_above is not None:
            bound += f", mean > {claim.mean_above:g}"
        margins = [estimate(margin) for margin in verdict.margins]
        mean_where_sound = fmean(margin.mean for margin, sound in zip(verdict.margins, is_sound, strict=True) if sound)
        rows.append(
            [
                claim.statement,
                bound,
                *margins,
                verdict.mean,
                *([mean_where_sound] if seeds.is_mixed else []),
                f"{sum(verdict.is_held)} of {len(seeds.every)}",
                verdict.holds,
            ]
        )
    return Table(
        "Claims with a margin that must be met" if is_required else "Further comparisons",
        [
            Column("claim", "left"),
            Column("required on each seed" if is_required else "holds if"),
            *[
                Column(f"seed {seed.seed}{'' if sound else ', not aligned'} [95 %]", format="+.3f")
                for seed, sound in zip(seeds.every, is_sound, strict=True)
            ],
            Column("mean", format="+.3f"),
            *([Column("where aligned", format="+.3f")] if seeds.is_mixed else []),
            Column("on seeds", "center"),
            Column("on all", "center"),
        ],
        rows,
        caption=(
            "Differences of gold reward on the same held-out prompts; intervals are over prompts. Where several sets "
            "are compared with, the margin is over the best of them."
        ),
    )


def terminal_tables(result: ExperimentResult, verdicts: Sequence[Verdict]) -> list[Table]:
    """What the terminal shows, in order."""
    seeds = Seeds(result.seeds)
    return [
        weak_table(seeds),
        models_table(seeds),
        correlation_table(seeds),
        claims_table(verdicts, seeds, is_required=False),
        claims_table(verdicts, seeds, is_required=True),
    ]
