"""Wins, ties and lengths: known answers, symmetry, and intervals that cover as often as they say."""

import math
from typing import Literal

import numpy as np
import pytest

from cong.errors import EvaluationError
from cong.evaluation import length_controlled_win_rate, meet, win_rate
from cong.statistics import wilson_interval


def test_a_tie_is_half_a_win_and_is_counted() -> None:
    met = meet({"a": [1.0], "b": [0.5], "c": [0.0]}, {"a": [0.0], "b": [0.5], "c": [1.0]})
    assert (met.num_wins, met.num_ties, met.num_losses) == (1, 1, 1)
    assert met.outcomes == (1.0, 0.5, 0.0)
    assert win_rate(met.outcomes).mean == 0.5


def test_rewards_within_the_margin_are_ties() -> None:
    met = meet({"a": [0.55], "b": [0.65]}, {"a": [0.5], "b": [0.5]}, tie_margin=0.1)
    assert met.outcomes == (0.5, 1.0)


def test_every_answer_meets_every_answer_to_the_same_prompt() -> None:
    met = meet({"a": [1.0, 0.0, 0.5]}, {"a": [0.5, 0.25]})
    assert (met.num_wins, met.num_ties, met.num_losses) == (3, 1, 2)
    assert list(met.outcomes) == pytest.approx([3.5 / 6])
    assert list(met.differences) == pytest.approx([0.5 - 0.375])


def test_prompts_of_one_side_are_named() -> None:
    met = meet({"a": [1.0], "b": [1.0]}, {"b": [0.0], "c": [1.0]})
    assert (met.prompt_ids, met.left_only, met.right_only) == (("b",), ("a",), ("c",))
    with pytest.raises(EvaluationError, match="share none of their 1 and 1 prompts"):
        meet({"a": [1.0]}, {"b": [1.0]})


def test_wilson_s_interval_has_known_values() -> None:
    # By hand: p = 0.5, n = 10, z^2 = 3.841459: half width 0.5 / sqrt(10 + z^2) * z; and the closed forms at 0 and 1.
    half_width = 1.959964 * 0.5 / math.sqrt(13.841459)
    assert wilson_interval(0.5, 10).low == pytest.approx(0.5 - half_width, abs=1e-6)
    assert wilson_interval(0.0, 10).high == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    assert wilson_interval(1.0, 10).low == pytest.approx(10 / 13.841459, abs=1e-6)
    assert wilson_interval(1.0, 10).high == 1.0


@pytest.mark.parametrize("method", ["wilson", "bootstrap"])
@pytest.mark.parametrize("share_of_ties", [0.0, 0.4])
def test_win_rate_intervals_cover_the_truth_as_often_as_they_say(method: str, share_of_ties: float) -> None:
    """A right 95 % interval covers here with probability 0.93 at least, by its discreteness.

    The number of covers in 400 draws is binomial: fewer than 346 has probability 2e-6 at 0.93, which is this test's
    false-alarm chance. Without ties an interval must not cover nearly always either: more than 396 has probability
    8e-5 at 0.96.
    """
    rng = np.random.default_rng(11)
    share_of_wins = 0.65 * (1.0 - share_of_ties)
    truth = share_of_wins + share_of_ties / 2.0
    weights = [share_of_wins, share_of_ties, 1.0 - share_of_wins - share_of_ties]
    num_covered = 0
    for number in range(400):
        outcomes = rng.choice([1.0, 0.5, 0.0], p=weights, size=120).tolist()
        interval = win_rate(
            outcomes, "bootstrap" if method == "bootstrap" else "wilson", seed=number, num_resamples=300
        )
        num_covered += interval.low <= truth <= interval.high
    assert num_covered >= 346
    if share_of_ties == 0.0:
        assert num_covered <= 396


def simulate(seed: int, intercept: float, slope: float, num_prompts: int = 400) -> tuple[list[float], list[float]]:
    """Outcomes of the model that the length-controlled fit assumes, with longer answers on the left."""
    rng = np.random.default_rng(seed)
    lengths = rng.normal(40.0, 60.0, num_prompts)
    x = np.tanh(lengths / np.median(np.abs(lengths)))
    wins = rng.random(num_prompts) < 1.0 / (1.0 + np.exp(-(intercept + slope * x)))
    return wins.astype(float).tolist(), lengths.tolist()


def test_the_length_controlled_rate_takes_out_what_length_explains() -> None:
    outcomes, lengths = simulate(3, intercept=0.0, slope=2.5, num_prompts=4000)
    controlled = length_controlled_win_rate(outcomes, lengths)
    assert win_rate(outcomes).mean > 0.6
    # Standard error of the fit about 0.011: five of them.
    assert controlled.win_rate.mean == pytest.approx(0.5, abs=0.055)
    assert controlled.slope == pytest.approx(2.5, abs=0.5)


@pytest.mark.parametrize(("num_runaways", "length"), [(10, 20_000.0), (50, 4_000.0)])
def test_answers_that_run_on_to_their_limit_hide_no_length(num_runaways: int, length: float) -> None:
    """Scaled by the root of the mean square, the rates would be 0.70 and 0.71."""
    outcomes, lengths = simulate(3, intercept=0.0, slope=2.5, num_prompts=1000)
    outcomes[:num_runaways], lengths[:num_runaways] = [0.0] * num_runaways, [length] * num_runaways
    controlled = length_controlled_win_rate(outcomes, lengths)
    assert win_rate(outcomes).mean > 0.65
    assert controlled.win_rate.low <= 0.5 <= controlled.win_rate.high


@pytest.mark.parametrize("slope", [0.0, 2.0])
@pytest.mark.parametrize(("rate", "num_prompts"), [(0.5, 10), (0.8, 20), (0.95, 50), (0.99, 200)])
def test_length_controlled_intervals_cover_the_truth(rate: float, num_prompts: int, slope: float) -> None:
    """By 1,000 draws with other seeds they cover with probability 0.962 to 0.976.

    Fewer than 174 covers in 200 draws then has probability below 1e-7 in each case, which is the chance of a false
    alarm.
    """
    num_covered = 0
    for seed in range(200):
        outcomes, lengths = simulate(seed, math.log(rate / (1.0 - rate)), slope, num_prompts)
        interval = length_controlled_win_rate(outcomes, lengths).win_rate
        assert 0.0 <= interval.low <= interval.mean <= interval.high <= 1.0
        num_covered += interval.low <= rate <= interval.high
    assert num_covered >= 174


@pytest.mark.parametrize("outcomes", [[1.0] * 20, [1.0] * 19 + [0.0], [0.0] * 3 + [1.0] * 9, [1.0], [0.0] * 7])
def test_at_equal_lengths_the_interval_is_wilson_s(outcomes: list[float]) -> None:
    controlled = length_controlled_win_rate(outcomes, [0.0] * len(outcomes)).win_rate
    wilson = win_rate(outcomes)
    assert (controlled.mean, controlled.low, controlled.high) == pytest.approx((wilson.mean, wilson.low, wilson.high))


def test_the_ends_are_where_rao_s_test_rejects() -> None:
    """By a general optimizer and the whole information matrix, for outcomes of 0 and 1 and for means of several."""
    from scipy.optimize import minimize_scalar

    outcomes, lengths = simulate(6, intercept=1.5, slope=1.0, num_prompts=40)
    x = np.tanh(np.asarray(lengths) / np.median(np.abs(lengths)))

    def statistic(rate: float) -> float:
        a = math.log(rate / (1.0 - rate))

        def loss(b: float) -> float:
            return float(np.sum(np.logaddexp(0.0, a + b * x) - np.asarray(outcomes) * (a + b * x)) + b**2 / 12.5)

        b = float(minimize_scalar(loss, bounds=(-20.0, 20.0), method="bounded", options={"xatol": 1e-9}).x)
        p = 1.0 / (1.0 + np.exp(-(a + b * x)))
        design = np.stack([np.ones_like(x), x])
        information = design * (p * (1.0 - p)) @ design.T + np.diag([0.0, 1.0 / 6.25])
        score = np.array([float(np.sum(np.asarray(outcomes) - p)), 0.0])
        return float(score @ np.linalg.inv(information) @ score)

    interval = length_controlled_win_rate(outcomes, lengths).win_rate
    assert [statistic(interval.low), statistic(interval.high)] == pytest.approx([3.841459] * 2, abs=1e-3)


def test_ties_and_several_answers_make_the_interval_narrower() -> None:
    """Means of 16 outcomes vary a 16th as much. By other draws their intervals cover with 0.977 here: see above."""
    rng = np.random.default_rng(4)
    num_covered, widths = 0, []
    for _ in range(200):
        lengths = rng.normal(20.0, 60.0, 40)
        x = np.tanh(lengths / np.median(np.abs(lengths)))
        wins = rng.binomial(16, 1.0 / (1.0 + np.exp(-(0.8 + x)))) / 16.0
        interval = length_controlled_win_rate(wins.tolist(), lengths.tolist()).win_rate
        num_covered += interval.low <= 1.0 / (1.0 + math.exp(-0.8)) <= interval.high
        widths.append(interval.high - interval.low)
    assert num_covered >= 174
    alone = length_controlled_win_rate([1.0] * 28 + [0.0] * 12, lengths.tolist()).win_rate
    assert float(np.mean(widths)) < 0.45 * (alone.high - alone.low)


def test_the_length_controlled_fit_agrees_with_a_general_optimizer() -> None:
    from scipy.optimize import minimize

    outcomes, lengths = simulate(5, intercept=-0.3, slope=1.5, num_prompts=200)
    outcomes[:20] = [0.5] * 20
    x = np.tanh(np.asarray(lengths) / np.median(np.abs(lengths)))

    def loss(parameters: np.ndarray) -> float:
        odds = parameters[0] + parameters[1] * x
        return float(np.sum(np.logaddexp(0.0, odds) - np.asarray(outcomes) * odds) + parameters[1] ** 2 / 12.5)

    best = minimize(loss, [0.0, 0.0], tol=1e-12).x
    controlled = length_controlled_win_rate(outcomes, lengths)
    assert controlled.win_rate.mean == pytest.approx(1.0 / (1.0 + math.exp(-best[0])), abs=1e-5)
    assert controlled.slope == pytest.approx(best[1], abs=1e-4)


def test_equal_lengths_leave_the_win_rate_as_it_is() -> None:
    outcomes = [1.0, 1.0, 0.0, 0.5]
    assert length_controlled_win_rate(outcomes, [0.0] * 4).win_rate.mean == pytest.approx(0.625)


@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_unanimous_outcomes_stay_what_they_are(outcome: float) -> None:
    controlled = length_controlled_win_rate([outcome] * 6, [1.0, -2.0, 3.0, 4.0, -5.0, 6.0])
    assert controlled.win_rate.mean == pytest.approx(outcome)


def test_lengths_that_decide_everything_leave_a_finite_fit() -> None:
    outcomes, lengths = [1.0] * 20 + [0.0] * 20, [50.0] * 20 + [-50.0] * 20
    controlled = length_controlled_win_rate(outcomes, lengths)
    assert controlled.win_rate.mean == pytest.approx(0.5, abs=1e-6)
    assert 2.0 < controlled.slope < 20.0


def test_wins_alone_bound_the_rate_as_far_as_length_may_have_made_them() -> None:
    mixed = length_controlled_win_rate([1.0] * 20, [float(number) - 9.5 for number in range(20)]).win_rate
    longer = length_controlled_win_rate([1.0] * 20, [50.0] * 20).win_rate
    assert (mixed.mean, mixed.high, longer.high) == (1.0, 1.0, 1.0)
    assert longer.low < 0.5 < 0.75 < mixed.low < win_rate([1.0] * 20).low
    lost = length_controlled_win_rate([0.0] * 20, [-50.0] * 20).win_rate
    assert (lost.mean, lost.low) == (0.0, 0.0)
    assert lost.high == pytest.approx(1.0 - longer.low)


def test_ties_alone_prove_no_certainty_at_equal_length_either() -> None:
    tied = length_controlled_win_rate([0.5] * 20, [float(number) - 9.5 for number in range(20)]).win_rate
    assert tied.mean == 0.5
    assert (0.5 - tied.low, tied.high - 0.5) == pytest.approx((0.085, 0.085), abs=0.005)


@pytest.mark.parametrize("method", ["wilson", "bootstrap"])
def test_prompts_that_are_all_won_or_all_lost_prove_no_certainty(method: Literal["wilson", "bootstrap"]) -> None:
    won, lost = win_rate([1.0] * 20, method), win_rate([0.0] * 20, method)
    assert (won.low, won.high, lost.low, lost.high) == pytest.approx((0.8389, 1.0, 0.0, 0.1611), abs=1e-4)
    assert win_rate([1.0], method).low == pytest.approx(0.2065, abs=1e-4)


def test_a_bootstrap_of_ties_alone_has_a_width() -> None:
    tied = win_rate([0.5] * 20, "bootstrap")
    assert (tied.low, tied.high) == pytest.approx((0.5 - 0.1611 / 2, 0.5 + 0.1611 / 2), abs=1e-4)


def test_swapping_the_sides_mirrors_everything() -> None:
    outcomes, lengths = simulate(8, intercept=0.5, slope=1.0, num_prompts=100)
    there = length_controlled_win_rate(outcomes, lengths)
    back = length_controlled_win_rate([1.0 - one for one in outcomes], [-one for one in lengths])
    assert back.win_rate.mean == pytest.approx(1.0 - there.win_rate.mean, abs=1e-9)
    assert (back.win_rate.low, back.win_rate.high) == pytest.approx((1 - there.win_rate.high, 1 - there.win_rate.low))
    assert back.slope == pytest.approx(there.slope)
