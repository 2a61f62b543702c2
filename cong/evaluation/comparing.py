"""One set of answers against another: wins, and wins at equal length. Knows rewards and lengths, and no judge.

The unit is the prompt: with several answers a side, every answer of one meets every answer of the other, and the prompt
counts with the mean of those meetings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cong.errors import EvaluationError
from cong.statistics import Interval, alike_interval, bootstrap_interval, wilson_interval

SLOPE_SCALE = 2.5
"""Standard deviation of the normal prior on the slope of length: it keeps the fit finite where length decides all."""
_MOST_LOG_ODDS = 30.0

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Meetings:
    """Two sides' answers to the prompts that both have answered."""

    prompt_ids: tuple[str, ...]
    outcomes: tuple[float, ...]
    """Per prompt: 1 the left side wins, 0 it loses, 0.5 a tie; a mean where there are several samples."""
    differences: tuple[float, ...]
    """Per prompt: mean reward of the left side minus that of the right."""
    num_wins: int
    num_ties: int
    num_losses: int
    left_only: tuple[str, ...]
    right_only: tuple[str, ...]


def meet(
    left: Mapping[str, Sequence[float]], right: Mapping[str, Sequence[float]], tie_margin: float = 0.0
) -> Meetings:
    """Every answer of the left side against every answer of the right side to the same prompt."""
    shared = tuple(prompt_id for prompt_id in left if prompt_id in right)
    if not shared:
        raise EvaluationError(
            f"the two sides share none of their {len(left)} and {len(right)} prompts; check that ids are the same"
        )
    counts = {1.0: 0, 0.5: 0, 0.0: 0}
    outcomes = []
    for prompt_id in shared:
        met = [_outcome(a - b, tie_margin) for a in left[prompt_id] for b in right[prompt_id]]
        for outcome in met:
            counts[outcome] += 1
        outcomes.append(math.fsum(met) / len(met))
    return Meetings(
        prompt_ids=shared,
        outcomes=tuple(outcomes),
        differences=tuple(_mean(left[prompt_id]) - _mean(right[prompt_id]) for prompt_id in shared),
        num_wins=counts[1.0],
        num_ties=counts[0.5],
        num_losses=counts[0.0],
        left_only=tuple(prompt_id for prompt_id in left if prompt_id not in right),
        right_only=tuple(prompt_id for prompt_id in right if prompt_id not in left),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _outcome(difference: float, tie_margin: float) -> float:
    if abs(difference) <= tie_margin:
        return 0.5
    return 1.0 if difference > 0.0 else 0.0


def win_rate(
    outcomes: Sequence[float],
    method: Literal["wilson", "bootstrap"] = "wilson",
    seed: int = 0,
    num_resamples: int = 1000,
) -> Interval:
    """Mean outcome with its interval over prompts.

    Wilson's holds for few prompts and for shares near 0 and 1, and is wider than needed where there are many ties; the
    bootstrap is as wide as the ties say. Where every prompt has the same outcome it says nothing; then Wilson's limit
    of the share of other outcomes stands in, which gives the same interval for all won and all lost.
    """
    if method == "bootstrap":
        if min(outcomes) == max(outcomes):
            return alike_interval(outcomes[0], len(outcomes), 0.0, 1.0)
        return bootstrap_interval([outcomes], lambda column: float(np.mean(column)), seed, num_resamples)
    return wilson_interval(_mean(outcomes), len(outcomes))


@dataclass(frozen=True)
class LengthControlled:
    """A win rate at equal length."""

    win_rate: Interval
    slope: float


def length_controlled_win_rate(
    outcomes: Sequence[float], length_differences: Sequence[float], seed: int = 0, num_resamples: int = 1000
) -> LengthControlled:
    """The win rate that a logistic regression on length gives for answers of equal length.

    P(left wins) = sigmoid(a + b tanh(d / s)), d the difference of lengths at a prompt and s the root of its mean
    square; a and b are fitted to the outcomes, ties as half, with a normal prior on b. The answer is sigmoid(a), its
    interval a bootstrap over prompts. Outcomes that do not vary do not tell what length has to do with them: the answer
    is the win rate then, and nothing bounds it.
    """
    lengths = np.asarray(length_differences, dtype=np.float64)
    scale = math.sqrt(float(np.mean(lengths**2)))
    x = np.tanh(lengths / scale) if scale > 0.0 else np.zeros_like(lengths)

    def at_equal_length(outcome_N: Vector, x_N: Vector) -> float:
        return _sigmoid(_fit(outcome_N, x_N)[0])

    interval = bootstrap_interval([outcomes, x.tolist()], at_equal_length, seed, num_resamples)
    return LengthControlled(interval, _fit(np.asarray(outcomes, dtype=np.float64), x)[1])


def _sigmoid(log_odds: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * log_odds))


def _fit(outcome_N: Vector, x_N: Vector) -> tuple[float, float]:
    """Intercept and slope of the penalised likelihood's maximum, by Newton's method; it is concave."""
    share = float(outcome_N.mean())
    if share in (0.0, 1.0):
        return (math.inf if share else -math.inf), 0.0
    a, b = math.log(share / (1.0 - share)), 0.0
    for _ in range(100):
        p_N = 0.5 * (1.0 + np.tanh(0.5 * (a + b * x_N)))
        rest_N, weight_N = outcome_N - p_N, p_N * (1.0 - p_N)
        gradient = (float(rest_N.sum()), float(rest_N @ x_N) - b / SLOPE_SCALE**2)
        aa, ab = float(weight_N.sum()), float(weight_N @ x_N)
        bb = float(weight_N @ x_N**2) + 1.0 / SLOPE_SCALE**2
        determinant = aa * bb - ab * ab
        if determinant <= 0.0:
            break
        step_a = (bb * gradient[0] - ab * gradient[1]) / determinant
        step_b = (aa * gradient[1] - ab * gradient[0]) / determinant
        # Far steps leave the region in which the quadratic model of the likelihood is worth anything.
        shrink = min(1.0, 2.0 / max(abs(step_a), abs(step_b), 1e-300))
        a = min(_MOST_LOG_ODDS, max(-_MOST_LOG_ODDS, a + shrink * step_a))
        b += shrink * step_b
        if max(abs(step_a), abs(step_b)) < 1e-10:
            break
    return a, b
