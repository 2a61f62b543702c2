"""Verdicts on claims: margins, bounds on each seed and on the mean, and what makes a claim fail."""

import pytest

from cong.lab.experiment.claims import Claim, compared_sets, difference_claim, judge_claims, lab_claims, level_claim
from cong.lab.results import PairsResult, SeedResult
from cong.statistics import Interval


def around(mean: float) -> Interval:
    return Interval(mean, mean - 0.02, mean + 0.02)


def seed_result(seed: int, **differences: float) -> SeedResult:
    return SeedResult(
        seed=seed,
        weak={},
        labels={},
        models={},
        correlations={},
        health={},
        pairs=PairsResult(chosen_ratio=0.0, rejected_ratio=0.0, chosen_num_tokens=1.0, rejected_num_tokens=1.0),
        alignments={},
        stray_shares={},
        differences={name.replace("_", " - "): around(mean) for name, mean in differences.items()},
        facts={},
    )


def holds(claim: Claim, *results: SeedResult) -> bool:
    return judge_claims([claim], results)[0].holds


def test_a_claim_holds_only_if_every_seed_exceeds_its_bound() -> None:
    claim = difference_claim("a beats b", "a", ["b"], 0.05)
    assert holds(claim, seed_result(0, a_b=0.06), seed_result(1, a_b=0.2))
    assert not holds(claim, seed_result(0, a_b=0.06), seed_result(1, a_b=0.04), seed_result(2, a_b=0.5))
    verdict = judge_claims([claim], [seed_result(0, a_b=0.06), seed_result(1, a_b=0.04)])[0]
    assert verdict.is_held == (True, False)
    assert verdict.mean == pytest.approx(0.05)
    assert [margin.mean for margin in verdict.margins] == [0.06, 0.04]


def test_a_difference_of_exactly_the_bound_is_not_above_it() -> None:
    assert not holds(difference_claim("a beats b", "a", ["b"], 0.0), seed_result(0, a_b=0.0))


def test_the_margin_over_several_rivals_is_that_over_the_best_of_them() -> None:
    claim = difference_claim("a beats b and c", "a", ["b", "c"], 0.05)
    verdict = judge_claims([claim], [seed_result(0, a_b=0.3, a_c=0.01)])[0]
    assert verdict.margins == (around(0.01),)
    assert not verdict.holds


def test_the_mean_may_have_a_stricter_bound() -> None:
    claim = difference_claim("a beats b", "a", ["b"], 0.01, mean_above=0.03)
    assert holds(claim, seed_result(0, a_b=0.02), seed_result(1, a_b=0.06))
    assert not holds(claim, seed_result(0, a_b=0.02), seed_result(1, a_b=0.03))
    assert not holds(claim, seed_result(0, a_b=0.005), seed_result(1, a_b=0.09))


@pytest.mark.parametrize(("level", "is_held"), [(0.34, False), (0.36, True), (0.55, True), (0.56, False)])
def test_a_level_lies_within_both_bounds(level: float, is_held: bool) -> None:
    claim = level_claim("within", lambda result: around(level), 0.35, 0.55)
    assert holds(claim, seed_result(0)) == is_held


def test_every_pair_that_a_claim_reads_is_measured() -> None:
    claims = lab_claims("T=1", [0.5, 1.0])
    pairs = compared_sets(claims)
    assert len(pairs) == len(set(pairs))
    differences = {f"{left}_{right}": 1.0 for left, right in pairs}
    result = seed_result(0).model_copy(
        update={"differences": {f"{left} - {right}": around(1.0) for left, right in pairs}}
    )
    assert len(differences) == len(pairs)
    assert all(verdict.holds for verdict in judge_claims([claim for claim in claims if claim.compared], [result]))


def test_the_required_claims_are_the_documented_tolerances() -> None:
    required = [claim for claim in lab_claims("T=1", [0.5]) if claim.is_required]
    assert [claim.above for claim in required] == [0.10, 0.05, 0.05, 0.05, 0.08, 0.01, 0.93, 0.35, 0.5]
    assert {claim.mean_above for claim in required} == {None, 0.03}
