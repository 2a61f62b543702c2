"""Intervals, correlations and the recovered gap: known answers, and agreement with slow or simulated versions."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cong.statistics import (
    Interval,
    alike_interval,
    bootstrap_interval,
    mean_interval,
    paired_interval,
    pearson,
    performance_gap_recovered,
    quantile_means,
    ranks,
    spearman,
    t_interval,
    t_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("num_freedoms", "quantile"),
    [(1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (4, 2.7764451), (9, 2.2621572), (30, 2.0422725)],
)
def test_t_quantiles_are_those_of_the_tables(num_freedoms: int, quantile: float) -> None:
    assert t_quantile(num_freedoms) == pytest.approx(quantile, abs=1e-6)


def test_t_quantile_of_many_freedoms_is_nearly_normal() -> None:
    assert t_quantile(2000) == pytest.approx(1.959964, abs=2e-3)


def test_t_interval_of_three_values_by_hand() -> None:
    # Mean 2, standard deviation 1, standard error 1 / sqrt 3.
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.high - 2.0 == pytest.approx(4.3026527 / math.sqrt(3), abs=1e-6)
    assert 2.0 - interval.low == pytest.approx(interval.high - 2.0)


def test_t_interval_of_one_value_is_unbounded() -> None:
    interval = t_interval([0.5])
    assert (interval.mean, interval.low, interval.high) == (0.5, -math.inf, math.inf)


def test_an_interval_without_ends_covers_the_mean_about_19_times_in_20() -> None:
    rng = random.Random(1)
    num_trials, num_covered = 400, 0
    for _ in range(num_trials):
        interval = mean_interval([rng.random() for _ in range(60)])
        num_covered += interval.low <= 0.5 <= interval.high
    # Binomial(400, 0.95): four standard deviations below is 363.
    assert 363 <= num_covered < num_trials


def test_paired_interval_is_narrow_where_pairs_move_together() -> None:
    rng = random.Random(2)
    common = [rng.random() for _ in range(200)]
    left = [value + 0.1 for value in common]
    interval = paired_interval(left, common)
    assert interval.mean == pytest.approx(0.1)
    assert interval.high - interval.low < 1e-9


def test_a_single_value_bounds_nothing() -> None:
    unbounded = Interval(3.0, -math.inf, math.inf)
    assert mean_interval([3.0]) == paired_interval([4.0], [1.0]) == t_interval([3.0]) == unbounded
    assert bootstrap_interval([[3.0]], lambda column: float(np.mean(column))) == unbounded


@pytest.mark.parametrize("num_values", [1, 2, 20, 1000])
def test_shares_that_are_all_alike_have_wilson_s_interval(num_values: int) -> None:
    for share in (0.0, 1.0):
        alike, wilson = alike_interval(share, num_values, 0.0, 1.0), wilson_interval(share, num_values)
        assert (alike.mean, alike.low, alike.high) == pytest.approx((wilson.mean, wilson.low, wilson.high))
        assert mean_interval([share] * num_values, 0.0, 1.0) == alike


def test_values_that_are_all_alike_are_bounded_by_what_they_could_have_been() -> None:
    # By hand: 3.841459 / 23.841459 = 0.1611252 of 20 values may be others.
    interval = mean_interval([2.0] * 20, 1.0, 6.0)
    assert (interval.low, interval.high) == pytest.approx((2.0 - 0.1611252, 2.0 + 4 * 0.1611252))
    interval = paired_interval([0.7] * 20, [0.2] * 20, -1.0, 1.0)
    assert (interval.low, interval.high) == pytest.approx((0.5 - 1.5 * 0.1611252, 0.5 + 0.5 * 0.1611252))
    assert t_interval([1.0, 1.0], 0.0, 1.0) == alike_interval(1.0, 2, 0.0, 1.0), "two seeds are no certainty"
    assert mean_interval([2.0] * 20, 2.0) == Interval(2.0, 2.0, math.inf)
    assert mean_interval([2.0] * 20) == Interval(2.0, -math.inf, math.inf)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_zeros_and_ones_have_wilson_s_interval(values: list[bool]) -> None:
    found, wilson = (
        mean_interval([float(one) for one in values], 0.0, 1.0),
        wilson_interval(sum(values) / len(values), len(values)),
    )
    assert (found.mean, found.low, found.high) == pytest.approx((wilson.mean, wilson.low, wilson.high))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-2.0, 5.0), min_size=2, max_size=8))
def test_no_interval_goes_past_what_is_possible(values: list[float]) -> None:
    for found in (mean_interval(values, -2.0, 5.0), t_interval(values, -2.0, 5.0)):
        assert -2.0 <= found.low <= found.mean <= found.high <= 5.0
    below = mean_interval(values, -2.0)
    assert -2.0 <= below.low <= below.mean <= below.high


@pytest.mark.parametrize("num_values", [2, 5, 80])
def test_without_ends_and_far_from_them_the_interval_is_student_s(num_values: int) -> None:
    from scipy import stats

    rng = random.Random(5)
    values = [rng.gauss(3.0, 2.0) for _ in range(num_values)]
    student = stats.t.interval(0.95, num_values - 1, float(np.mean(values)), float(stats.sem(values)))
    for ends in ((-math.inf, math.inf), (-1e6, 1e6)):
        found = mean_interval(values, *ends)
        assert (found.low, found.high) == pytest.approx(student, rel=1e-4)


def test_an_interval_between_ends_by_hand() -> None:
    # Mean 0.5, variance 1 / 24, t = 3.1824463; e = t^2 / 96 = 0.1054996. Ends solve d^2 = e (1 + 2 d) (1 - 2 d).
    found = mean_interval([0.25, 0.5, 0.5, 0.75], 0.0, 1.0)
    half_width = math.sqrt(0.1054996 / (1.0 + 4.0 * 0.1054996))
    assert (found.low, found.high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=1e-6)
    # Mean 0.875, variance 0.0625: t^2 times that is more than z^2 times 7 / 64, which zeros and ones would have.
    found = mean_interval([0.5, 1.0, 1.0, 1.0], 0.0, 1.0)
    wilson = wilson_interval(0.875, 4)
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high))


@pytest.mark.parametrize("num_values", [3, 5])
def test_intervals_of_few_values_cover_the_truth(num_values: int) -> None:
    """Student's interval covers with probability 0.95: fewer than 915 covers in 1,000 draws has one of 1e-6.

    With the normal quantile it is 0.81 for 3 values and 0.88 for 5.
    """
    rng = np.random.default_rng(8)
    num_covered = 0
    for _ in range(1000):
        interval = mean_interval(rng.normal(0.3, 1.0, num_values).tolist())
        num_covered += interval.low <= 0.3 <= interval.high
    assert num_covered >= 915


@pytest.mark.parametrize(
    ("distribution", "num_values", "by_student", "by_normal"),
    [
        ("normal", 5, 0.95, 0.88),
        ("normal", 10, 0.95, 0.92),
        ("exponential", 10, 0.90, 0.87),
        ("lognormal", 10, 0.83, 0.80),
        ("normal", 200, 0.95, 0.95),
        ("exponential", 200, 0.94, 0.94),
        ("lognormal", 200, 0.93, 0.93),
    ],
)
def test_intervals_cover_as_often_as_the_pages_say(
    distribution: str, num_values: int, by_student: float, by_normal: float
) -> None:
    """docs/evaluation.md and docs/decisions.md; of 4,000 draws a share of 0.83 has a standard deviation of 0.006."""
    truth = {"normal": 0.0, "exponential": 1.0, "lognormal": math.exp(0.5)}[distribution]
    drawn = getattr(np.random.default_rng(15), distribution)(size=(4000, num_values))
    found = [mean_interval(values) for values in drawn.tolist()]
    assert np.mean([one.low <= truth <= one.high for one in found]) == pytest.approx(by_student, abs=0.015)
    errors = drawn.std(1, ddof=1) / math.sqrt(num_values)
    assert np.mean(np.abs(drawn.mean(1) - truth) <= 1.96 * errors) == pytest.approx(by_normal, abs=0.015)


def test_intervals_of_zeros_and_ones_cover_the_truth_where_normal_ones_do_not() -> None:
    """By the binomial distribution of 100 values at 0.97 these cover with 0.969, normal ones with 0.850.

    Fewer than 940 covers in 1,000 draws has probability 1e-6, which is the chance of a false alarm.
    """
    rng = np.random.default_rng(12)
    num_covered = 0
    for _ in range(1000):
        interval = mean_interval((rng.random(100) < 0.97).astype(float).tolist(), 0.0, 1.0)
        num_covered += interval.low <= 0.97 <= interval.high
    assert num_covered >= 940


def test_values_that_differ_by_a_rounding_at_their_end_have_an_interval() -> None:
    found = mean_interval([0.9] * 19 + [math.nextafter(0.9, 1.0)], 0.9, 1.0)
    assert found.low == pytest.approx(0.9)
    assert found.mean <= found.high <= alike_interval(0.9, 20, 0.9, 1.0).high + 1e-12


def test_a_mean_that_rounding_puts_past_its_end_is_bounded_all_the_same() -> None:
    assert alike_interval(0.9 + 1e-16, 20, 0.0, 0.9).high == pytest.approx(0.9)


def test_a_bootstrap_whose_resamples_all_say_the_same_bounds_nothing() -> None:
    mean = bootstrap_interval([[1.0] * 20], lambda column: float(np.mean(column)), num_resamples=100)
    assert mean == Interval(1.0, -math.inf, math.inf)


@pytest.mark.parametrize("share", [0.9, 0.97, 0.99, 1.0])
def test_intervals_of_shares_cover_the_truth_where_all_values_are_often_alike(share: float) -> None:
    """All 20 values are right with probability 0.12 to 1; an interval without width misses the truth each time.

    By the binomial distribution of 20 values these intervals cover with probability 0.956 and more, so that fewer than
    920 of 1,000 draws have probability below 1e-6; without width they cover 0.876 at 0.9, and 0.456 at 0.97.
    """
    rng = np.random.default_rng(7)
    num_covered = 0
    for _ in range(1000):
        interval = mean_interval((rng.random(20) < share).astype(float).tolist(), 0.0, 1.0)
        num_covered += interval.low <= share <= interval.high
    assert num_covered >= 920


def test_bootstrap_agrees_with_the_normal_interval_for_a_mean() -> None:
    rng = random.Random(3)
    values = [rng.gauss(1.0, 2.0) for _ in range(500)]
    resampled = bootstrap_interval([values], lambda column: float(np.mean(column)))
    normal = mean_interval(values)
    assert resampled.mean == pytest.approx(normal.mean)
    assert resampled.low == pytest.approx(normal.low, abs=0.05)
    assert resampled.high == pytest.approx(normal.high, abs=0.05)


@pytest.mark.parametrize("num_rows", [5, 10])
def test_a_bootstrap_of_few_rows_is_as_wide_as_student_s_interval(num_rows: int) -> None:
    """Plain percentiles are 0.63 and 0.82 of it."""
    rng = random.Random(4)
    values = [rng.gauss(1.0, 2.0) for _ in range(num_rows)]
    resampled = bootstrap_interval([values], lambda column: float(np.mean(column)), num_resamples=20_000)
    student = mean_interval(values)
    # The resamples' mean is not normal: its tails are those of these few values.
    assert resampled.high - resampled.low == pytest.approx(student.high - student.low, rel=0.1)


def test_pearson_of_a_line_and_of_a_constant() -> None:
    assert pearson([1.0, 2.0, 3.0], [5.0, 7.0, 9.0]) == pytest.approx(1.0)
    assert pearson([1.0, 2.0, 3.0], [9.0, 7.0, 5.0]) == pytest.approx(-1.0)
    assert pearson([1.0, 2.0, 4.0], [1.0, 3.0, 2.0]) == pytest.approx(0.3273268)
    assert math.isnan(pearson([1.0, 1.0], [0.0, 1.0]))
    assert math.isnan(pearson([0.1] * 3, [0.0, 1.0, 3.0])), "though the mean of three times 0.1 is not 0.1"


def test_equal_values_share_their_rank() -> None:
    assert ranks([3.0, 1.0, 1.0, 2.0]) == [4.0, 1.5, 1.5, 3.0]


def test_spearman_sees_order_only() -> None:
    assert spearman([1.0, 2.0, 3.0, 4.0], [1.0, 10.0, 100.0, 1000.0]) == pytest.approx(1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=30))
def test_ranks_count_the_smaller_and_half_of_the_equal(values: list[int]) -> None:
    slow = [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]
    assert ranks([float(value) for value in values]) == slow


def test_quantile_means_by_hand() -> None:
    assert quantile_means([4.0, 1.0, 3.0, 2.0], [40.0, 10.0, 30.0, 20.0], num_groups=2) == [15.0, 35.0]


def test_values_of_one_key_are_in_no_order() -> None:
    """A judge that says the same of everything shows no trend, whoever's answers come last."""
    assert quantile_means([0.5] * 8, [0.0] * 4 + [1.0] * 4) == [0.5] * 4
    # Keys 1 2 2 2: half of each group, and the 2s share 20, 30 and 40.
    assert quantile_means([2.0, 1.0, 2.0, 2.0], [20.0, 10.0, 30.0, 40.0], num_groups=2) == [20.0, 30.0]


def test_recovered_gap_by_hand_and_undefined_without_a_gap() -> None:
    assert performance_gap_recovered(0.72, 0.60, 0.80) == pytest.approx(0.6)
    assert performance_gap_recovered(0.5, 0.6, 0.6) is None
