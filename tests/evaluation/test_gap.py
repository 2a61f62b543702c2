"""The recovered gap: known values, refusal, and an interval that covers."""

import numpy as np
import pytest

from cong.errors import EvaluationError
from cong.evaluation import gap_recovered
from cong.evaluation.results import GapResult

NAMES = ("student", "weak", "strong")


def by_prompt(values: list[float]) -> dict[str, list[float]]:
    return {f"p{number}": [value] for number, value in enumerate(values)}


def gap(
    student: list[float], floor: list[float], ceiling: list[float], seed: int = 0, num_resamples: int = 1000
) -> GapResult:
    return gap_recovered(
        "gold", "T=1", NAMES, (by_prompt(student), by_prompt(floor), by_prompt(ceiling)), seed, num_resamples
    )


def test_the_recovered_gap_has_its_known_value_with_numerator_and_denominator() -> None:
    found = gap([0.72] * 4, [0.60] * 4, [0.80] * 4)
    assert found.recovered is not None
    assert found.recovered.mean == pytest.approx(0.6)
    assert [found.gained.mean, found.gap.mean] == pytest.approx([0.12, 0.20])


def test_a_ceiling_that_is_not_above_the_floor_is_refused_with_both_numbers() -> None:
    found = gap([0.7, 0.7], [0.6, 0.6], [0.6, 0.6])
    assert found.recovered is None
    assert found.refusal == "ceiling strong (0.6000) is not above floor weak (0.6000)"
    assert found.gained.mean == pytest.approx(0.1)


def test_a_gap_within_the_noise_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    noisy = [rng.normal(0.5, 0.3, 40).tolist() for _ in range(3)]
    shift = float(np.mean(noisy[1]) - np.mean(noisy[2])) + 0.01
    found = gap(noisy[0], noisy[1], [value + shift for value in noisy[2]])
    assert found.gap.mean == pytest.approx(0.01)
    assert found.recovered is not None
    assert found.recovered.low is None
    assert 0.1 < found.undefined_share < 0.9


@pytest.mark.parametrize("num_prompts", [1, 20])
def test_prompts_that_all_say_the_same_have_a_value_and_no_interval(num_prompts: int) -> None:
    found = gap([0.7] * num_prompts, [0.6] * num_prompts, [0.8] * num_prompts)
    assert found.recovered is not None
    assert found.recovered.mean == pytest.approx(0.5)
    assert (found.recovered.low, found.gap.low) == (None, None)


def test_prompts_that_one_side_lacks_do_not_count() -> None:
    rewards = ({"a": [0.5], "b": [0.9]}, {"a": [0.0]}, {"a": [1.0], "c": [0.0]})
    found = gap_recovered("gold", "T=1", NAMES, rewards)
    assert found.num_prompts == 1
    assert found.recovered is not None
    assert found.recovered.mean == pytest.approx(0.5)
    with pytest.raises(EvaluationError, match="share no prompt"):
        gap_recovered("gold", "T=1", NAMES, ({"a": [0.5]}, {"b": [0.0]}, {"a": [1.0]}))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """200 draws at a coverage of 0.92 at least: fewer than 163 covers has probability below 1e-6."""
    rng = np.random.default_rng(7)
    num_covered = 0
    for seed in range(200):
        # A prompt's difficulty is shared by all three, so pairing matters.
        hard = rng.normal(0.0, 0.2, 150)
        columns = [(hard + mean + rng.normal(0.0, 0.1, 150)).tolist() for mean in (0.6, 0.4, 0.8)]
        found = gap(columns[0], columns[1], columns[2], seed, num_resamples=300).recovered
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        num_covered += found.low <= 0.5 <= found.high
    assert num_covered >= 163
