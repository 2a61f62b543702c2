"""The lab's answers and intervals in the form in which reports show them."""

from collections.abc import Mapping, Sequence

from torch import nn

from cong.lab.answers import Answer
from cong.lab.networks import EOS_ID, VOCAB, prompt_ids
from cong.lab.sampler import reference_score
from cong.report import Comparison, Estimate, Response, Samples, Token
from cong.statistics import Interval, mean_interval

END_MARK = "⏎"
"""Shown for the end of the sequence."""


def estimate(interval: Interval) -> Estimate:
    """An interval as a cell of a table."""
    return Estimate(interval.mean, interval.low, interval.high)


def mean_reward(answers: Sequence[Answer]) -> Estimate:
    """Mean gold reward with its interval over prompts."""
    return estimate(mean_interval([answer.reward for answer in answers], 0.0, 1.0))


def response(label: str, answer: Answer, aligned: nn.Module, base: nn.Module) -> Response:
    """An answer whose tokens carry the weak pair's log-probabilities, whoever gave it."""
    scores = reference_score([aligned, base], prompt_ids(answer.prompt), answer.sample.token_ids)
    tokens = [
        Token.of_pair(END_MARK if token_id == EOS_ID else VOCAB[token_id], p_aligned, p_base)
        for token_id, p_aligned, p_base in zip(answer.sample.token_ids, *scores, strict=True)
    ]
    return Response(label, tokens, answer.reward)


def side_by_side(
    answers: Mapping[str, Sequence[Answer]], num_prompts: int, aligned: nn.Module, base: nn.Module
) -> Samples:
    """The first answers of several sets to the same prompts, coloured by the weak pair's log-ratio."""
    first = next(iter(answers.values()))
    comparisons = [
        Comparison(
            first[place].prompt,
            [response(label, of_set[place], aligned, base) for label, of_set in answers.items()],
        )
        for place in range(min(num_prompts, len(first)))
    ]
    return Samples(comparisons, ("aligned", "base"))
