"""The page of an experiment: what holds and what does not, the tables and plots, and their conditions."""

from collections.abc import Sequence

from cong.lab.decodings import ALIGNED, ALIGNED_SETTINGS, BASE, CONTRASTIVE, alpha_name
from cong.lab.experiment.claims import Claim, Verdict, judge_claims
from cong.lab.experiment.tables import (
    Seeds,
    alignments_table,
    claims_table,
    correlation_table,
    health_table,
    labels_table,
    models_table,
    weak_table,
)
from cong.lab.names import CEILING, CONG, CONG_S, STRONG_BASE, WEAK_ALIGNED, WEAK_SFT
from cong.lab.results import ExperimentResult, SeedResult
from cong.report import (
    Axis,
    Bar,
    BarPlot,
    Estimate,
    Figure,
    Line,
    LinePlot,
    Page,
    Prose,
    Reference,
    Section,
)
from cong.statistics import t_interval

CONDITIONS = (
    "Each seed redraws weights, corpus, preference pairs, prompts and samples. Hyper-parameters were chosen beforehand "
    "on another draw of the world, and none was changed for these seeds. Models are compared on the same prompts with "
    "the same random numbers, one sample each. Rivals had the same single gentle epoch as ConG-S and were not tuned, "
    "so margins over them are upper bounds. Stage 2 is compared both with the one-epoch stage 1 it starts from and "
    "with a converged one."
)
SETS = (
    f"`{CONTRASTIVE}` is the configured contrast; each variation changes one thing of it. `{STRONG_BASE}` has seen the "
    f"corpus only, `{WEAK_SFT}` imitates plain samples of the aligned model, `{CONG_S}` contrastive ones, and `{CONG}` "
    "then prefers those over its own samples."
)


def _alpha_figure(seeds: Seeds) -> Figure:
    alphas = sorted(float(name.partition("alpha=")[2]) for name in seeds.every[0].weak if "alpha=" in name)
    lines = [
        Line(f"seed {seed.seed}", alphas, [seed.weak[alpha_name(alpha)].reward.mean for alpha in alphas])
        for seed in seeds.every
    ]

    def mean(name: str) -> float:
        return seeds.mean(lambda seed: seed.weak[name].reward.mean)

    references = [
        Reference("aligned T=1", mean(ALIGNED)),
        Reference("best plain setting", max(mean(name) for name in (ALIGNED, *ALIGNED_SETTINGS))),
    ]
    plot = LinePlot(lines, Axis("alpha (1 = no contrast)"), Axis("gold reward"), references, has_markers=True)
    caption = "Contrastive samples of the weak pair at temperature 1. Dashed: means over seeds with a sound alignment."
    return Figure(plot, caption)


def _models_figure(seeds: Seeds) -> Figure:
    models = seeds.every[0].models
    primary = next(iter(models[CEILING].by_temperature))

    def reward(seed: SeedResult, name: str) -> float:
        return seed.models[name].by_temperature[primary].reward.mean

    def bar(label: str, values: Sequence[float], group: str) -> Bar:
        interval = t_interval(values, 0.0, 1.0) if len(values) > 1 else None
        mean = values[0] if interval is None else Estimate(interval.mean, interval.low, interval.high)
        return Bar(label, mean, group)

    weak = {"weak base": BASE, "weak aligned": ALIGNED, "contrastive samples": CONTRASTIVE}
    bars = [
        bar(label, [seed.weak[name].reward.mean for seed in seeds.sound], "weak models") for label, name in weak.items()
    ]
    for name in models:
        if name != WEAK_ALIGNED:
            group = "the method" if name in (CONG_S, CONG) else "strong models"
            bars.append(bar(name, [reward(seed, name) for seed in seeds.sound], group))
    caption = f"Gold reward at {primary}, mean and interval over seeds with a sound weak alignment."
    return Figure(BarPlot(bars, Axis("gold reward", limits=(0.0, 1.0))), caption)


def _tally(claims: Sequence[Claim], results: Sequence[SeedResult]) -> str:
    """How many required claims hold on all of some seeds, and which do not."""
    required = [verdict for verdict in judge_claims(claims, results) if verdict.claim.is_required]
    failed = [verdict.claim.statement for verdict in required if not verdict.holds]
    text = f"{len(required) - len(failed)} of {len(required)} claims hold on all of them"
    return text + (f"; not: {'; '.join(failed)}." if failed else ".")


def _summary(seeds: Seeds, claims: Sequence[Claim]) -> str:
    text = f"{len(seeds.every)} seeds: {_tally(claims, seeds.every)}"
    if seeds.is_mixed:
        for seed in seeds.every:
            if seed not in seeds.sound:
                text += (
                    f"\n\nOn seed {seed.seed} the weak model's alignment itself failed: "
                    f"{seed.weak[ALIGNED].stray_share:.0%} of its answers begin with neither opening. DPO pushed "
                    "probability off the bad opening, and it went to tokens that no pair contains (likelihood "
                    "displacement). There is no aligned model to contrast on that seed, and what is built on it only "
                    "repeats the failure; it stays in every table."
                )
        text += f"\n\nThe other {len(seeds.sound)} seeds: {_tally(claims, seeds.sound)}"
    others = [verdict for verdict in judge_claims(claims, seeds.sound) if not verdict.claim.is_required]
    failed = [verdict.claim.statement for verdict in others if not verdict.holds]
    if failed:
        text += f"\n\nOf the further comparisons these do not hold: {'; '.join(failed)}."
    return text


def _facts(result: ExperimentResult) -> dict[str, str | int | float]:
    seconds = [str(seed.facts.get("seconds_after_pretraining", "?")) for seed in result.seeds]
    return {
        "seeds": " ".join(str(seed.seed) for seed in result.seeds),
        "seconds of each seed after pretraining": " ".join(seconds),
        **result.software,
    }


def experiment_page(result: ExperimentResult, verdicts: Sequence[Verdict]) -> Page:
    """The experiment as one page."""
    seeds = Seeds(result.seeds)
    return Page(
        title="The lab's results",
        summary=_summary(seeds, [verdict.claim for verdict in verdicts]) + "\n\n" + CONDITIONS,
        sections=[
            Section("Claims", [claims_table(verdicts, seeds, True), claims_table(verdicts, seeds, False)]),
            Section("Weak models", [Prose(SETS), weak_table(seeds), _alpha_figure(seeds)]),
            Section("Strong models", [models_table(seeds), _models_figure(seeds), labels_table(seeds)]),
            Section("Implicit reward", [correlation_table(seeds), health_table(seeds)]),
            Section("Limits", [alignments_table(seeds)]),
        ],
        facts=_facts(result),
    )
