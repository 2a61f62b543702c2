"""From judged answers to the result: what is averaged, and what is compared with what."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from cong import __version__
from cong.config.evaluation import EvaluationConfig
from cong.errors import EvaluationError
from cong.evaluation.answers import GIVEN, AnswerSet, decoding_name
from cong.evaluation.comparing import Meetings, length_controlled_win_rate, meet, win_rate
from cong.evaluation.gap import gap_recovered
from cong.evaluation.judging import Judge, Judged
from cong.evaluation.relating import agree, correlate
from cong.evaluation.results import (
    AgreementResult,
    ComparisonResult,
    CorrelationResult,
    Estimated,
    EvaluationResult,
    GapResult,
    JudgeResult,
    MisfitResult,
    RewardResult,
    SetResult,
)
from cong.statistics import mean_interval


class Sets:
    """Sets of answers by candidate and decoding; a file of answers stands for its candidate under every decoding."""

    def __init__(self, sets: Sequence[AnswerSet], settings: EvaluationConfig) -> None:
        self.all = tuple(sets)
        self._settings = settings
        self._found = {(one.candidate, one.decoding): one for one in sets}
        self.candidates = tuple(dict.fromkeys(one.candidate for one in sets))
        self.baseline = settings.baseline or self.candidates[0]
        sampled = [decoding_name(temperature) for temperature in settings.temperatures]
        self.decodings = tuple(name for name in sampled if any(one.decoding == name for one in sets)) or (GIVEN,)

    def of(self, candidate: str, decoding: str) -> AnswerSet:
        """A candidate's answers under a decoding, or those of its file."""
        found = self._found.get((candidate, decoding)) or self._found.get((candidate, GIVEN))
        if found is None:
            raise EvaluationError(f"there are no answers of {candidate!r} under {decoding}")
        return found

    @property
    def primary(self) -> list[AnswerSet]:
        """Every candidate's answers under the decoding that results are about."""
        return [self.of(candidate, self.decodings[0]) for candidate in self.candidates]

    def pairs(self) -> Iterator[tuple[AnswerSet, AnswerSet]]:
        """Every candidate's set and the baseline's under the same decoding."""
        pairs = {
            (left.label, right.label): (left, right)
            for decoding in self.decodings
            for candidate in self.candidates
            if candidate != self.baseline
            for left, right in [(self.of(candidate, decoding), self.of(self.baseline, decoding))]
        }
        yield from pairs.values()


def summarise(
    sets: Sequence[AnswerSet],
    judged: Sequence[Judged],
    settings: EvaluationConfig,
    misfits: Sequence[MisfitResult] = (),
    num_prompts: int | None = None,
) -> EvaluationResult:
    """Everything that the configuration asks for; the first judge is the one that the others are compared with."""
    grouped = Sets(sets, settings)
    comparisons: list[ComparisonResult] = []
    agreements: list[AgreementResult] = []
    for left, right in grouped.pairs():
        met = [meet(one.rewards(left), one.rewards(right), settings.tie_margin) for one in judged]
        lengths = _length_differences(left, right, met[0].prompt_ids)
        for one, meetings in zip(judged, met, strict=True):
            comparisons.append(_comparison(one, left, right, meetings, lengths, settings))
        agreements += [
            agree(one.judge.name, judged[0].judge.name, left.label, right.label, meetings, met[0])
            for one, meetings in zip(judged[1:], met[1:], strict=True)
        ]
    return EvaluationResult(
        prompts=str(settings.prompts or ""),
        num_prompts=num_prompts or max(len(one.by_prompt) + len(one.missing) for one in sets),
        judges=tuple(_judge_result(one.judge) for one in judged),
        sets=tuple(set_result(one, judged) for one in sets),
        comparisons=tuple(comparisons),
        gaps=tuple(_gaps(grouped, judged, settings)),
        correlations=tuple(_correlations(grouped, judged, settings)),
        agreements=tuple(agreements),
        misfits=tuple(misfits),
        software={"cong": __version__, "torch": str(torch.__version__)},
    )


def _judge_result(judge: Judge) -> JudgeResult:
    least, most = (end if math.isfinite(end) else None for end in judge.reward_ends)
    return JudgeResult(name=judge.name, about=judge.about, fingerprint=judge.fingerprint, least=least, most=most)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _over_prompts(
    by_prompt: Mapping[str, Sequence[float]], least: float = -math.inf, most: float = math.inf
) -> Estimated:
    means = [_mean(values) for values in by_prompt.values()]
    return Estimated.of(mean_interval(means, least, most))


def set_result(one: AnswerSet, judged: Sequence[Judged]) -> SetResult:
    """One set under every judge."""
    answers = one.answers
    return SetResult(
        candidate=one.candidate,
        decoding=one.decoding,
        num_prompts=len(one.by_prompt),
        num_answers=len(answers),
        missing=one.missing,
        unknown=one.unknown,
        mean_chars=_mean([len(answer.text) for answer in answers]),
        empty_share=_mean([not answer.text for answer in answers]),
        truncated_share=_mean([answer.is_truncated for answer in answers]),
        rewards={each.judge.name: _reward_result(each, one) for each in judged},
    )


def _reward_result(judged: Judged, one: AnswerSet) -> RewardResult:
    measured = [judged.measurements[answer.key] for answer in one.answers]
    counts = [each.num_tokens for each in measured if each.num_tokens is not None]
    total = None
    if judged.judge.sums_tokens:
        total = _over_prompts(
            {
                prompt_id: [judged.measurements[answer.key].value for answer in group]
                for prompt_id, group in one.by_prompt.items()
            }
        )
    return RewardResult(
        reward=_over_prompts(judged.rewards(one), *judged.judge.reward_ends),
        total=total,
        mean_num_tokens=_mean(counts) if counts else None,
        num_cut_answers=sum(each.num_cut > 0 for each in measured),
    )


def _length_differences(left: AnswerSet, right: AnswerSet, prompt_ids: Sequence[str]) -> list[float]:
    """Characters, left - right: the unit that does not depend on anybody's tokenizer."""

    def length(one: AnswerSet, prompt_id: str) -> float:
        return _mean([len(answer.text) for answer in one.by_prompt[prompt_id]])

    return [length(left, prompt_id) - length(right, prompt_id) for prompt_id in prompt_ids]


def _comparison(
    judged: Judged,
    left: AnswerSet,
    right: AnswerSet,
    met: Meetings,
    lengths: Sequence[float],
    settings: EvaluationConfig,
) -> ComparisonResult:
    seed, num_resamples = settings.bootstrap_seed, settings.num_resamples
    controlled = length_controlled_win_rate(met.outcomes, lengths)
    least, most = judged.judge.reward_ends
    rate = win_rate(met.outcomes, settings.win_rate_interval, seed, num_resamples)
    return ComparisonResult(
        judge=judged.judge.name,
        left=left.label,
        right=right.label,
        num_prompts=len(met.prompt_ids),
        left_only=met.left_only,
        right_only=met.right_only,
        num_wins=met.num_wins,
        num_ties=met.num_ties,
        num_losses=met.num_losses,
        win_rate=Estimated.of(rate),
        length_controlled=Estimated.of(controlled.win_rate),
        length_slope=controlled.slope,
        mean_length_difference=_mean(lengths),
        difference=Estimated.of(mean_interval(met.differences, least - most, most - least)),
    )


def _gaps(grouped: Sets, judged: Sequence[Judged], settings: EvaluationConfig) -> Iterator[GapResult]:
    if settings.gap is None:
        return
    floor, ceiling = settings.gap.floor, settings.gap.ceiling
    for one in judged:
        for decoding in grouped.decodings:
            for student in grouped.candidates:
                if student not in (floor, ceiling):
                    names = (student, floor, ceiling)
                    rewards = tuple(one.rewards(grouped.of(name, decoding)) for name in names)
                    assert len(rewards) == 3
                    yield gap_recovered(
                        one.judge.name,
                        decoding,
                        names,
                        rewards,
                        settings.bootstrap_seed,
                        settings.num_resamples,
                        one.judge.reward_ends,
                    )


def _correlations(grouped: Sets, judged: Sequence[Judged], settings: EvaluationConfig) -> Iterator[CorrelationResult]:
    groups = {one.label: [one] for one in grouped.primary}
    if len(groups) > 1:
        groups[f"all, {grouped.decodings[0]}"] = grouped.primary
    for one in judged[1:]:
        for label, sets in groups.items():
            yield correlate(one, judged[0], label, sets, settings.bootstrap_seed, settings.num_resamples)
