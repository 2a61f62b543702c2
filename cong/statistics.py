"""Numbers about numbers: intervals, correlations, and the share of a gap that was recovered.

Knows numpy and nothing of where the numbers come from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
_HAIR = 1e-300


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float


@cache
def t_quantile(num_freedoms: int, confidence: float = 0.95) -> float:
    """The t for which Student's distribution has probability `confidence` between -t and t."""
    assert num_freedoms >= 1, "an interval needs at least two values"
    assert 0.0 < confidence < 1.0, f"confidence is {confidence}"

    def mass(t: float) -> float:
        # The closed forms for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4.
        angle = math.atan(t / math.sqrt(num_freedoms))
        cosine_square = math.cos(angle) ** 2
        is_odd = num_freedoms % 2 == 1
        term, total = 1.0, 0.0
        for k in range(2 + is_odd, num_freedoms + 1, 2):
            total += term
            term *= cosine_square * (k - 1) / k
        if is_odd:
            return 2.0 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
        return math.sin(angle) * total

    low, high = 0.0, 1.0
    while mass(high) < confidence:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if mass(middle) < confidence else (low, middle)
    return (low + high) / 2.0


def t_interval(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Interval:
    """Interval for the mean of few values that are means themselves, such as one per seed."""
    return _interval(values, t_quantile(max(1, len(values) - 1)), least, most)


def mean_interval(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Interval:
    """Interval for the mean of independent values, such as one per prompt, that lie between `least` and `most`.

    Without ends it is Student's, of zeros and ones Wilson's.
    """
    return _interval(values, Z_95, least, most)


def _interval(values: Sequence[float], known: float, least: float, most: float) -> Interval:
    """The means that lie within so many standard errors of the one found, each taken with its own standard error.

    That is Wilson's way: near an end values vary less, as (mean - least) (most - mean) does, so no interval passes it.
    How many is Student's quantile where the error is estimated, and `known` for the largest that there can be. Where
    all are alike, a single one included, only the ends of what they could have been bound the mean.
    """
    if min(values) == max(values):
        return alike_interval(values[0], len(values), least, most)
    mean = float(np.mean(values))
    # Rounding may put a mean of values at an end a hair past it.
    below, above = max(_HAIR, mean - least), max(_HAIR, most - mean)
    estimated = t_quantile(len(values) - 1) ** 2 * float(np.var(values, ddof=1))
    # No values between the ends vary more than those that all lie on them.
    e = min(estimated, known**2 * below * above) / len(values)
    # For the distance d from the mean found: d^2 = e (1 + d / below) (1 - d / above).
    middle, square = e * (1.0 / below - 1.0 / above) / 2.0, 1.0 + e / (below * above)
    half_width = math.sqrt(middle**2 + e * square)
    low, high = mean + (middle - half_width) / square, mean + (middle + half_width) / square
    return Interval(mean, min(mean, max(least, low)), max(mean, min(most, high)))


def paired_interval(
    left: Sequence[float], right: Sequence[float], least: float = -math.inf, most: float = math.inf
) -> Interval:
    """Interval for the mean of left - right, measured on the same prompts; least and most are a difference's ends."""
    return mean_interval([a - b for a, b in zip(left, right, strict=True)], least, most)


def alike_interval(value: float, num_values: int, least: float = -math.inf, most: float = math.inf) -> Interval:
    """Interval for the mean of independent values that all came out as the same one.

    They do not vary, and are no proof that nothing else could have come: by Wilson, up to a share of z^2 / (n + z^2)
    may come out otherwise, and then as far off as `least` and `most` let it. Without such an end nothing is bounded. Of
    a share, all 0 or all 1, it is Wilson's interval itself.
    """
    others = wilson_interval(0.0, num_values).high
    # Rounding may put a mean a hair past an end.
    below, above = max(0.0, value - least), max(0.0, most - value)
    return Interval(value, value - others * below, value + others * above)


def wilson_interval(share: float, num_values: int) -> Interval:
    """Wilson's interval for a share of `num_values` independent values in 0..1.

    Exact values of 0 and 1 are its worst case: where some lie between, as ties that count half, it is wider than
    needed.
    """
    assert num_values >= 1, "a share needs a value"
    assert 0.0 <= share <= 1.0, f"share is {share}"
    extra = Z_95**2 / num_values
    middle = (share + extra / 2.0) / (1.0 + extra)
    half_width = Z_95 / (1.0 + extra) * math.sqrt((share * (1.0 - share) + extra / 4.0) / num_values)
    # Rounding must not push an end past the share itself, nor past 0 or 1.
    low, high = middle - half_width, middle + half_width
    return Interval(share, min(share, max(0.0, low)), max(share, min(1.0, high)))


def bootstrap_interval(
    columns: Sequence[Sequence[float]],
    statistic: Callable[..., float],
    seed: int = 0,
    num_resamples: int = 1000,
) -> Interval:
    """Percentile interval of a statistic of columns that are resampled together, row by row.

    Resamples of n rows vary by a share of (n - 1) / n of what samples do, and few rows tell little of how much that is:
    the percentiles are those at which such an interval of a mean is Student's (Hesterberg, 2015).

    Resamples for which the statistic is not defined (nan) do not count. Where all others say the same, as for a single
    row or a statistic of values that are all alike, they say nothing of how far it may be off: nothing is bounded.
    """
    table = np.asarray(columns, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = rng.integers(table.shape[1], size=(num_resamples, table.shape[1]))
    values = [statistic(*table[:, rows]) for rows in draws]
    if np.nanmin(values) == np.nanmax(values):
        return Interval(statistic(*table), -math.inf, math.inf)
    num_rows = table.shape[1]
    tail = NormalDist().cdf(-t_quantile(num_rows - 1) * math.sqrt(num_rows / (num_rows - 1)))
    low, high = np.nanquantile(values, [tail, 1.0 - tail])
    return Interval(statistic(*table), float(low), float(high))


def pearson(left: Sequence[float], right: Sequence[float]) -> float:
    """Linear correlation; nan where a side does not vary."""
    x, y = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    assert x.shape == y.shape, f"{x.size} values beside {y.size}"
    # By its ends: around a mean that is rounded, a constant seems to vary.
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0.0 else math.nan


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value from 1 upwards; equal values share the mean of their ranks."""
    _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared = last - (counts - 1) / 2.0
    return [float(rank) for rank in shared[place]]


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Correlation of ranks."""
    return pearson(ranks(left), ranks(right))


def quantile_means(keys: Sequence[float], values: Sequence[float], num_groups: int = 4) -> list[float]:
    """Mean value in each of `num_groups` equally large groups, by ascending key.

    Values of one key count with their mean, wherever a group ends among them: their order says nothing.
    """
    assert len(keys) == len(values) >= num_groups, f"{len(keys)} keys, {len(values)} values, {num_groups} groups"
    _, place, counts = np.unique(np.asarray(keys, dtype=np.float64), return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=np.asarray(values, dtype=np.float64)) / counts
    return [float(group.mean()) for group in np.array_split(np.repeat(means, counts), num_groups)]


def performance_gap_recovered(student: float, weak: float, ceiling: float) -> float | None:
    """(student - weak) / (ceiling - weak); None where the ceiling is not above the weak model."""
    return (student - weak) / (ceiling - weak) if ceiling > weak else None
