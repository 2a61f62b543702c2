"""Judges against each other: correlation over answers, and agreement over comparisons."""

import math
from collections.abc import Sequence

import numpy as np

from cong.evaluation.answers import Answer, AnswerSet
from cong.evaluation.comparing import Meetings
from cong.evaluation.judging import Judged
from cong.evaluation.results import AgreementResult, CorrelationResult, Estimated
from cong.statistics import bootstrap_interval, pearson, quantile_means, spearman, wilson_interval

NUM_QUANTILES = 4


def correlate(
    judged: Judged, reference: Judged, label: str, sets: Sequence[AnswerSet], seed: int = 0, num_resamples: int = 1000
) -> CorrelationResult:
    """Correlation of a judge with another over the answers of some sets; not defined where one does not vary."""
    answers = [answer for one in sets for answer in one.answers]
    rewards = [judged.reward(answer) for answer in answers]
    truths = [reference.reward(answer) for answer in answers]
    measured = [judged.measurements[answer.key] for answer in answers]
    linear = _defined(pearson(rewards, truths))
    return CorrelationResult(
        judge=judged.judge.name,
        reference=reference.judge.name,
        set_label=label,
        num_answers=len(answers),
        pearson=None if linear is None else _over_prompts(answers, rewards, truths, seed, num_resamples),
        spearman=_defined(spearman(rewards, truths)),
        pearson_of_total=_defined(pearson([one.value for one in measured], truths))
        if judged.judge.sums_tokens
        else None,
        reference_by_quantile=(
            tuple(quantile_means(rewards, truths, NUM_QUANTILES)) if len(answers) >= NUM_QUANTILES else ()
        ),
    )


def _over_prompts(
    answers: Sequence[Answer], rewards: Sequence[float], truths: Sequence[float], seed: int, num_resamples: int
) -> Estimated:
    """Over answers, with an interval over prompts: what judges think of a prompt, all answers to it share."""
    rows: dict[str, list[int]] = {}
    for row, answer in enumerate(answers):
        rows.setdefault(answer.prompt.prompt_id, []).append(row)
    # Of fewer prompts than this, resamples are often without any variation.
    if len(rows) < 10:
        return Estimated(mean=pearson(rewards, truths))
    groups, table = [np.array(of_prompt) for of_prompt in rows.values()], np.array([rewards, truths])

    def linear(drawn: Sequence[float]) -> float:
        x, y = table[:, np.concatenate([groups[int(group)] for group in drawn])]
        return pearson(x, y)

    return Estimated.of(bootstrap_interval([range(len(groups))], linear, seed, num_resamples))


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def agree(judge: str, reference: str, left: str, right: str, ours: Meetings, theirs: Meetings) -> AgreementResult:
    """How often two judges prefer the same side, over the prompts on which both prefer one."""
    pairs = list(zip(ours.outcomes, theirs.outcomes, strict=True))
    decided = [(a > 0.5) == (b > 0.5) for a, b in pairs if a != 0.5 and b != 0.5]
    return AgreementResult(
        judge=judge,
        reference=reference,
        left=left,
        right=right,
        num_decided=len(decided),
        num_undecided=len(pairs) - len(decided),
        share=Estimated.of(wilson_interval(sum(decided) / len(decided), len(decided))) if decided else None,
    )
