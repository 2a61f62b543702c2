"""What is shown of one run of the chain: the closing table, and a page with its plots and samples."""

from collections.abc import Mapping

from cong.lab.answers import Answer
from cong.lab.chain.chain import ALIGNMENT_CURVE, Chain
from cong.lab.decodings import ALIGNED, ALIGNED_SETTINGS, BASE, CONTRASTIVE, alpha_name
from cong.lab.names import (
    CEILING,
    CONG,
    CONG_S,
    STRONG_BASE,
    WEAK_ALIGNED,
    WEAK_SFT,
    temperature_name,
)
from cong.lab.stages import imitation_examples
from cong.lab.summaries import relate_rewards
from cong.lab.views import estimate, mean_reward, side_by_side
from cong.report import (
    Axis,
    Bar,
    BarPlot,
    Cell,
    Column,
    Figure,
    Line,
    LinePlot,
    Page,
    Panels,
    Prose,
    Reference,
    ScatterPlot,
    Section,
    Table,
)
from cong.statistics import paired_interval, performance_gap_recovered

NUM_SHOWN_PROMPTS = 8
REWARD = Axis("gold reward", limits=(0.0, 1.0))


def primary_temperature(chain: Chain) -> str:
    """Name of the temperature that results are about."""
    return temperature_name(chain.config.evaluation.temperatures[0])


def best_setting(chain: Chain) -> str:
    """The plain decoding of the aligned model with the highest reward on the test prompts themselves."""
    return max([ALIGNED, *ALIGNED_SETTINGS], key=lambda name: mean_reward(chain.weak[name]).mean)


def results_table(chain: Chain) -> Table:
    """Gold reward of every decoding and model, and the gap each model recovered."""
    names = [temperature_name(temperature) for temperature in chain.config.evaluation.temperatures]
    primary, others = names[0], names[1:]
    best = best_setting(chain)
    rows: list[list[Cell]] = []
    for label, name in {
        "weak base": BASE,
        "weak aligned": ALIGNED,
        f"weak, best plain setting ({best.removeprefix('aligned ')})": best,
        f"weak pair, contrastive alpha={chain.config.contrast.alpha:g}": CONTRASTIVE,
    }.items():
        rows.append([label, mean_reward(chain.weak[name]), *[None] * len(others), None])
    floor = mean_reward(chain.judged[WEAK_ALIGNED][primary]).mean
    top = mean_reward(chain.judged[CEILING][primary]).mean
    for name in (STRONG_BASE, WEAK_SFT, CONG_S, CONG, CEILING):
        sets = chain.judged[name]
        reward = mean_reward(sets[primary])
        rest = [mean_reward(sets[other]).mean for other in others]
        rows.append([name, reward, *rest, performance_gap_recovered(reward.mean, floor, top)])
    num_prompts = len(chain.weak[BASE])
    return Table(
        f"Gold reward on {num_prompts:,} held-out prompts, seed {chain.config.seed}",
        [
            Column("model", "left"),
            Column(f"{primary} [95 %]"),
            *[Column(other) for other in others],
            Column("gap recovered", format=".2f"),
        ],
        rows,
        caption=(
            "Intervals are over prompts, one sample each. Gap recovered: (model - weak aligned) / (ceiling - weak "
            "aligned). The best plain setting was chosen on these prompts, in its own favour."
        ),
        highlighted=[next(place for place, row in enumerate(rows) if row[0] == CONG)],
    )


def gains_table(chain: Chain) -> Table:
    """The differences the method stands on, measured prompt by prompt."""
    primary = primary_temperature(chain)
    sets: Mapping[str, list[float]] = {
        name: [answer.reward for answer in answers]
        for name, answers in {**chain.weak, **{n: s[primary] for n, s in chain.judged.items()}}.items()
    }
    pairs = [
        ("contrastive samples over plain aligned samples", CONTRASTIVE, ALIGNED),
        ("contrastive samples over the best plain setting", CONTRASTIVE, best_setting(chain)),
        ("ConG-S over WeakSFT", CONG_S, WEAK_SFT),
        ("ConG over ConG-S", CONG, CONG_S),
        ("ConG over its weak teacher", CONG, WEAK_ALIGNED),
    ]
    rows: list[list[Cell]] = [
        [label, estimate(paired_interval(sets[left], sets[right], -1.0, 1.0))] for label, left, right in pairs
    ]
    return Table(
        "Gains, paired by prompt",
        [Column("gain", "left"), Column("difference [95 %]", format="+.3f")],
        rows,
        caption=(
            "ConG-S had one gentle epoch. Against a stage 1 trained to convergence most of ConG's gain is gone: "
            "`cong lab experiment` measures both."
        ),
    )


def _alpha_figure(chain: Chain) -> Figure:
    alphas = chain.config.evaluation.alphas
    rewards = [mean_reward(chain.weak[alpha_name(alpha)]) for alpha in alphas]
    best = best_setting(chain)
    plot = LinePlot(
        [
            Line(
                "contrastive samples",
                alphas,
                [reward.mean for reward in rewards],
                [reward.low for reward in rewards],
                [reward.high for reward in rewards],
            )
        ],
        Axis("alpha (1 = no contrast)"),
        Axis("gold reward"),
        [
            Reference("aligned T=1", mean_reward(chain.weak[ALIGNED]).mean),
            Reference(f"best plain setting: {best}", mean_reward(chain.weak[best]).mean),
        ],
        has_markers=True,
    )
    return Figure(plot, "Reward of samples against contrast strength; band: 95 % over prompts.")


def _models_figure(chain: Chain) -> Figure:
    primary = primary_temperature(chain)
    weak = {"weak base": BASE, "weak aligned": ALIGNED, "weak pair, contrastive": CONTRASTIVE}
    bars = [Bar(label, mean_reward(chain.weak[name]), "weak models") for label, name in weak.items()]
    for name in (STRONG_BASE, WEAK_SFT, CONG_S, CONG, CEILING):
        bars.append(Bar(name, mean_reward(chain.judged[name][primary]), "strong models"))
    return Figure(BarPlot(bars, REWARD), f"Gold reward at {primary}, with 95 % intervals over prompts.")


def _correlation_figures(chain: Chain) -> list[Figure]:
    sets = {"aligned": chain.scored[ALIGNED], "contrastive": chain.weak[CONTRASTIVE]}
    plots = [
        ScatterPlot(
            [answer.implicit_reward_mean for answer in answers],
            [answer.reward for answer in answers],
            Axis("implicit reward per token", "nats"),
            Axis("gold reward"),
            f"{name} samples",
        )
        for name, answers in sets.items()
    ]
    caption = (
        "Implicit reward log(aligned / base) per token against gold reward: one point per sample; means by quartile."
    )
    return [Figure(Panels(plots, num_columns=2), caption)]


def _curve_figures(chain: Chain) -> list[Figure]:
    def line(label: str, key: str) -> Line:
        steps = chain.curves[key]
        return Line(label, [step.step for step in steps], [step.loss for step in steps])

    def margins(key: str) -> Line:
        steps = chain.curves[key]
        return Line("margin", [step.step for step in steps], [step.metrics["reward_margin"] for step in steps])

    step = Axis("step")
    losses = [LinePlot([line("loss", key)], step, Axis("loss"), title=key, smoothing=0.8) for key in chain.curves]
    dpo = [
        LinePlot([margins(key)], step, Axis("reward margin", "nats"), title=key, smoothing=0.8)
        for key in chain.curves
        if "reward_margin" in chain.curves[key][-1].metrics
    ]
    return [
        Figure(Panels(losses), "Training losses: every step, and smoothed."),
        Figure(Panels(dpo, num_columns=2), "Implicit reward of the chosen response above the rejected one's."),
    ]


def _stage_facts(chain: Chain) -> str:
    labels = {name: mean_reward(answers).mean for name, answers in chain.labels.items()}
    num_truncated = len(chain.labels[CONTRASTIVE]) - len(imitation_examples(chain.labels[CONTRASTIVE]))
    correlation = relate_rewards(chain.scored[ALIGNED])
    return (
        f"The weak model was aligned in {len(chain.curves[ALIGNMENT_CURVE])} DPO steps on noisy preferences. Its "
        f"contrastive samples on the training prompts score {labels[CONTRASTIVE]:.3f}, plain ones "
        f"{labels[ALIGNED]:.3f}; {num_truncated} contrastive samples hit the length limit and teach nothing. "
        f"Implicit and gold reward of plain aligned samples correlate with Pearson {correlation.pearson.mean:.2f} and "
        f"Spearman {correlation.spearman:.2f}."
    )


def chain_page(chain: Chain, facts: Mapping[str, str | int | float]) -> Page:
    """The whole run as one page."""
    primary = primary_temperature(chain)
    shown: dict[str, list[Answer]] = {
        "base": list(chain.scored[BASE]),
        "aligned": list(chain.scored[ALIGNED]),
        "contrastive": list(chain.weak[CONTRASTIVE]),
        "ConG (strong)": list(chain.judged[CONG][primary]),
    }
    samples = side_by_side(shown, NUM_SHOWN_PROMPTS, chain.models[WEAK_ALIGNED], chain.models[BASE])
    headline = {
        "weak aligned": f"{mean_reward(chain.weak[ALIGNED]).mean:.2f}",
        "contrastive samples": f"{mean_reward(chain.weak[CONTRASTIVE]).mean:.2f}",
        "ConG": f"{mean_reward(chain.judged[CONG][primary]).mean:.2f}",
        "ceiling": f"{mean_reward(chain.judged[CEILING][primary]).mean:.2f}",
    }
    return Page(
        title="From a weak pair to a strong model",
        summary=(
            "A small model before and after its alignment is contrasted token by token; a larger model learns from the "
            "contrastive samples, first by imitation, then by preferring them over its own. Everything here was made "
            "and measured in a tiny world whose gold reward is a program."
        ),
        sections=[
            Section("Results", [results_table(chain), _models_figure(chain), gains_table(chain)]),
            Section("Contrast", [Prose(_stage_facts(chain)), _alpha_figure(chain), *_correlation_figures(chain)]),
            Section("Training", _curve_figures(chain)),
            Section("Samples", [samples]),
        ],
        facts=facts,
        headlines=headline,
    )
