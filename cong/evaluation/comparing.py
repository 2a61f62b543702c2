"""One set of answers against another: wins, and wins at equal length. Knows rewards and lengths, and no judge.

The unit is the prompt: with several answers a side, every answer of one meets every answer of the other, and the prompt
counts with the mean of those meetings.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cong.errors import EvaluationError
from cong.statistics import Z_95, Interval, alike_interval, bootstrap_interval, wilson_interval

SLOPE_SCALE = 2.5
"""Standard deviation of the normal prior on the slope of length: it keeps the fit finite where length decides all."""
_MOST_LOG_ODDS = 30.0
_LEAST_RATE = 1e-13
_LONGEST_STEP = 2.0
"""Of Newton's method: far steps leave the region in which the quadratic model of the likelihood is worth anything."""

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


def length_controlled_win_rate(outcomes: Sequence[float], length_differences: Sequence[float]) -> LengthControlled:
    """The win rate that a logistic regression on length gives for answers of equal length.

    P(left wins) = sigmoid(a + b tanh(d / s)), d the difference of lengths at a prompt and s the median size of those
    that are not 0; a and b are fitted to the outcomes, ties as half, with a normal prior on b. The answer is
    sigmoid(a). Its interval holds the rates that the outcomes do not contradict, each with the slope that suits it best
    (Rao's score test). That is Wilson's interval where lengths are equal, and like it holds for few prompts and for
    rates near 0 and 1, where a bootstrap draws the same outcomes again and again.

    A median, because of a mean square a few answers that run on to their limit are the whole: beside them all others
    seem of one length, and nothing is taken out.
    """
    outcome_N = np.asarray(outcomes, dtype=np.float64)
    lengths = np.asarray(length_differences, dtype=np.float64)
    sizes = np.abs(lengths[lengths != 0.0])
    x_N = np.tanh(lengths / np.median(sizes)) if len(sizes) else np.zeros_like(lengths)
    a, b = _fit(outcome_N, x_N)
    rate = float(_sigmoid(np.array([a]))[0])
    most = Z_95**2 * _dispersion(outcome_N, _sigmoid(a + b * x_N))

    def is_possible(other: float) -> bool:
        return _contradiction(other, outcome_N, x_N) <= most

    return LengthControlled(Interval(rate, _end(is_possible, rate, 0.0), _end(is_possible, rate, 1.0)), b)


def _sigmoid(log_odds: Vector) -> Vector:
    probability: Vector = 0.5 * (1.0 + np.tanh(0.5 * log_odds))
    return probability


def _dispersion(outcome_N: Vector, p_N: Vector) -> float:
    """Variance of the outcomes as a share of what it were if all were 0 or 1.

    An outcome of mean p varies by p (1 - p) less the mean of outcome (1 - outcome), which ties and means of several
    answers have. Ties alone are no proof that nothing else could come: z^2 prompts that are won and lost in equal parts
    are taken to be possible, as in Wilson's interval.
    """
    unseen, between = Z_95**2 / 4.0, float(outcome_N @ (1.0 - outcome_N))
    seen = 1.0 - between / max(float(p_N @ (1.0 - p_N)), 1e-300)
    return max(seen, unseen / (unseen + len(outcome_N) / 4.0))


def _contradiction(rate: float, outcome_N: Vector, x_N: Vector) -> float:
    """Rao's statistic of a win rate at equal length: about chi-square where that is the true one and nothing ties."""
    inner = min(1.0 - _LEAST_RATE, max(_LEAST_RATE, rate))
    a = math.log(inner / (1.0 - inner))
    p_N = _sigmoid(a + _slope_at(a, outcome_N, x_N) * x_N)
    aa, ab, bb = _information(p_N, x_N)
    return float((outcome_N - p_N).sum()) ** 2 * bb / (aa * bb - ab * ab)


def _end(is_possible: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where on the way from `inside` to `outside` rates cease to be possible."""
    for _ in range(30):
        middle = (inside + outside) / 2.0
        inside, outside = (middle, outside) if is_possible(middle) else (inside, middle)
    return outside


def _information(p_N: Vector, x_N: Vector) -> tuple[float, float, float]:
    """Of intercept and slope, the prior's included: the entries aa, ab and bb of the matrix."""
    weight_N = p_N * (1.0 - p_N)
    return float(weight_N.sum()), float(weight_N @ x_N), float(weight_N @ x_N**2) + 1.0 / SLOPE_SCALE**2


def _slope_gradient(outcome_N: Vector, p_N: Vector, x_N: Vector, b: float) -> float:
    return float((outcome_N - p_N) @ x_N) - b / SLOPE_SCALE**2


def _slope_at(a: float, outcome_N: Vector, x_N: Vector) -> float:
    """The slope that suits an intercept best, by Newton's method."""
    b = 0.0
    for _ in range(100):
        p_N = _sigmoid(a + b * x_N)
        step = _slope_gradient(outcome_N, p_N, x_N, b) / _information(p_N, x_N)[2]
        b += min(_LONGEST_STEP, max(-_LONGEST_STEP, step))
        if abs(step) < 1e-8:
            break
    return b


def _fit(outcome_N: Vector, x_N: Vector) -> tuple[float, float]:
    """Intercept and slope of the penalised likelihood's maximum, by Newton's method; it is concave."""
    share = float(outcome_N.mean())
    if share in (0.0, 1.0):
        return (math.inf if share else -math.inf), 0.0
    a, b = math.log(share / (1.0 - share)), 0.0
    for _ in range(100):
        p_N = _sigmoid(a + b * x_N)
        along_a, along_b = float((outcome_N - p_N).sum()), _slope_gradient(outcome_N, p_N, x_N, b)
        aa, ab, bb = _information(p_N, x_N)
        determinant = aa * bb - ab * ab
        if determinant <= 0.0:
            break
        step_a = (bb * along_a - ab * along_b) / determinant
        step_b = (aa * along_b - ab * along_a) / determinant
        shrink = min(1.0, _LONGEST_STEP / max(abs(step_a), abs(step_b), 1e-300))
        a = min(_MOST_LOG_ODDS, max(-_MOST_LOG_ODDS, a + shrink * step_a))
        b += shrink * step_b
        if max(abs(step_a), abs(step_b)) < 1e-10:
            break
    return a, b
