"""What is shown of an evaluation: tables, plots, and answers side by side, on one page."""

from collections.abc import Sequence

from cong.config import RunConfig, dump_config
from cong.evaluation.answers import Answer, AnswerSet
from cong.evaluation.judging import Judged
from cong.evaluation.results import Estimated, EvaluationResult
from cong.evaluation.summary import Sets
from cong.evaluation.tables import (
    agreements_table,
    bar_value,
    comparisons_table,
    correlations_table,
    gaps_table,
    left_out_table,
    misfits_table,
    rewards_table,
)
from cong.report import (
    Axis,
    Bar,
    BarPlot,
    Comparison,
    Details,
    Figure,
    Histogram,
    Page,
    Panels,
    Prose,
    Reference,
    Response,
    Samples,
    ScatterPlot,
    Section,
    Token,
)
from cong.report.page import Block

METHODS = (
    "The unit of every interval is the prompt: rewards of several answers to one prompt are averaged first. Intervals "
    "are 95 %: of means Student's, in Wilson's way where rewards have ends. Where all prompts say the same, Wilson's "
    "limit of the share of others bounds what has a least and a largest value; what has none is shown without an "
    "interval.\n\n"
    "Win rate: every answer of one side meets every answer of the other to the same prompt; a tie counts half. Its "
    "interval is {win_rate_interval}. \n\n"
    "Length-controlled win rate: `P(left wins) = sigmoid(a + b tanh(d / s))` is fitted to the outcomes, d being the "
    "difference of lengths in characters and s the median size of those that are not 0, with a normal prior (standard "
    "deviation 2.5) on b; shown is `sigmoid(a)`, the win rate at equal length, and all rates that a score test does "
    "not reject. It removes what length explains under this judge, and nothing else.\n\n"
    "Gap recovered: `(student - floor) / (ceiling - floor)`, all three resampled together. It is refused where the "
    "ceiling is not above the floor, and has no interval where that happens in more than 2.5 % of the resamples.\n\n"
    "Implicit reward: `log p_aligned - log p_base` of the answer, without a DPO beta. A sum grows with the length of "
    "the answer; a mean per token does not, but prefers whatever is short and sure."
)


def evaluation_page(
    result: EvaluationResult, sets: Sequence[AnswerSet], judged: Sequence[Judged], config: RunConfig
) -> Page:
    """The whole evaluation as one page."""
    settings = config.evaluation
    grouped = Sets(sets, settings)
    first = judged[0].judge.name
    rewards: list[Block] = [rewards_table(result), *_rewards_figures(result), _histograms(grouped, judged)]
    sections = [Section("Rewards", rewards)]
    if result.comparisons:
        sections.append(
            Section(
                f"Against {grouped.baseline}",
                [comparisons_table(result), *_win_rates_figures(result), *_lengths(grouped, judged)],
            )
        )
    if result.gaps:
        sections.append(Section("Gap recovered", [gaps_table(result)]))
    if result.correlations:
        blocks: list[Block] = [correlations_table(result)]
        if result.agreements:
            blocks.append(agreements_table(result))
        sections.append(Section(f"Judges against {first}", [*blocks, *_judges_figures(grouped, judged)]))
    if result.misfits:
        sections.append(Section("Misfit", [misfits_table(result)]))
    if settings.num_shown_prompts:
        sections.append(Section("Answers side by side", [_samples(grouped, judged, config)]))
    if any(one.missing or one.unknown for one in result.sets):
        sections.append(Section("Left out", [left_out_table(result)]))
    interval = {"wilson": "Wilson's", "bootstrap": "a bootstrap over prompts"}[settings.win_rate_interval]
    sections.append(Section("How it is measured", [Prose(METHODS.format(win_rate_interval=interval))]))
    sections.append(Section("Configuration", [Details("the whole configuration", dump_config(config))]))
    best = max(grouped.primary, key=lambda one: _reward_of(result, one, first).mean)
    on = f" on the {len(best.by_prompt):,} that it answers" if best.missing else ""
    return Page(
        title="Evaluation",
        summary=(
            f"{len(grouped.candidates)} candidates answered {result.num_prompts:,} held-out prompts and were judged by "
            f"{', '.join(one.name for one in result.judges)}. Under {first} at {grouped.decodings[0]} the highest mean "
            f"reward is that of {best.candidate}{on}: {_text(_reward_of(result, best, first))}."
        ),
        sections=sections,
        facts={
            "prompts": result.prompts,
            **{f"judge {one.name}": one.about for one in result.judges},
            **result.software,
        },
        headlines={one.candidate: f"{_reward_of(result, one, first).mean:.3f}" for one in grouped.primary[:6]},
    )


def _text(value: Estimated) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:.3f}"
    return f"{value.mean:.3f} (95 %: {value.low:.3f} to {value.high:.3f})"


def _reward_of(result: EvaluationResult, one: AnswerSet, judge: str) -> Estimated:
    (found,) = [each for each in result.sets if each.label == one.label]
    return found.rewards[judge].reward


def _rewards_figures(result: EvaluationResult) -> list[Block]:
    figures: list[Block] = []
    for judge in result.judges:
        bars = [Bar(one.label, bar_value(one.rewards[judge.name].reward), one.decoding) for one in result.sets]
        plot = BarPlot(bars, Axis(f"mean reward by {judge.name}"), format=".3f")
        figures.append(Figure(plot, f"Mean reward by {judge.name}, with 95 % intervals over prompts."))
    return figures


def _histograms(grouped: Sets, judged: Sequence[Judged]) -> Figure:
    plots = [
        Histogram(
            {one.candidate: [each.reward(answer) for answer in one.answers] for one in grouped.primary},
            Axis("reward"),
            title=each.judge.name,
        )
        for each in judged
    ]
    plot = plots[0] if len(plots) == 1 else Panels(plots, num_columns=2)
    return Figure(plot, f"Rewards of single answers at {grouped.decodings[0]}.")


def _win_rates_figures(result: EvaluationResult) -> list[Block]:
    figures: list[Block] = []
    for judge in result.judges:
        bars = []
        for one in result.comparisons:
            if one.judge == judge.name:
                bars.append(Bar(one.name, bar_value(one.win_rate), "as they are"))
                bars.append(Bar(f"{one.name}, at equal length", bar_value(one.length_controlled), "at equal length"))
        plot = BarPlot(bars, Axis("win rate", limits=(0.0, 1.0)), [Reference("even", 0.5)], format=".3f")
        caption = f"Win rates judged by {judge.name} with 95 % intervals, ties counted half, and at equal length."
        figures.append(Figure(plot, caption))
    return figures


def _lengths(grouped: Sets, judged: Sequence[Judged]) -> list[Block]:
    first = judged[0]
    plots = [
        ScatterPlot(
            [len(answer.text) for answer in one.answers],
            [first.reward(answer) for answer in one.answers],
            Axis("length", "characters"),
            Axis(f"reward by {first.judge.name}"),
            title=one.candidate,
        )
        for one in grouped.primary
    ]
    return [Figure(Panels(plots), "Reward against length: one point per answer; means by quartile of length.")]


def _judges_figures(grouped: Sets, judged: Sequence[Judged]) -> list[Block]:
    reference = judged[0]
    answers = [answer for one in grouped.primary for answer in one.answers]
    plots = [
        ScatterPlot(
            [one.reward(answer) for answer in answers],
            [reference.reward(answer) for answer in answers],
            Axis(f"reward by {one.judge.name}"),
            Axis(f"reward by {reference.judge.name}"),
        )
        for one in judged[1:]
    ]
    caption = (
        f"Every answer at {grouped.decodings[0]} under each judge and under {reference.judge.name}; means by quartile."
    )
    return [Figure(Panels(plots, num_columns=2), caption)]


def _samples(grouped: Sets, judged: Sequence[Judged], config: RunConfig) -> Samples:
    """First answers to the first prompts; coloured by the first implicit judge, where there is one."""
    settings = config.evaluation
    coloured = next((one for one in judged if one.judge.sums_tokens), None)
    prompts = list(dict.fromkeys(answer.prompt for one in grouped.primary for answer in one.answers))
    order = {prompt_id: place for place, prompt_id in enumerate(grouped.primary[0].by_prompt)}
    prompts.sort(key=lambda prompt: order.get(prompt.prompt_id, len(order)))
    comparisons = []
    for prompt in prompts[: settings.num_shown_prompts]:
        responses = [
            _response(one.candidate, one.by_prompt[prompt.prompt_id][0], judged[0], coloured)
            for one in grouped.primary
            if prompt.prompt_id in one.by_prompt
        ]
        comparisons.append(Comparison(prompt.shown, responses))
    networks = ("aligned", "base") if coloured is not None else ()
    return Samples(comparisons, networks, settings.full_colour_nats, f"{judged[0].judge.name} reward")


def _response(label: str, answer: Answer, first: Judged, coloured: Judged | None) -> Response:
    tokens = [Token(answer.text)]
    if coloured is not None:
        readings = coloured.measurements[answer.key].tokens
        if readings:
            tokens = [Token.of_pair(one.text, one.aligned, one.base) for one in readings]
    return Response(label, tokens, first.reward(answer))
