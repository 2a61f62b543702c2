"""What the lab is expected to show, each claim with the margin it must have, and whether the measurements bear it out.

Knows results only. A claim that does not hold is reported with its margins; nothing here may be adjusted to a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cong.lab import names
from cong.lab.decodings import ALIGNED, ALIGNED_SETTINGS, CONTRASTIVE
from cong.lab.results import SeedResult
from cong.statistics import Interval

DISPLACED_SHARE = 0.1
"""Share of aligned answers that begin with neither opening, from which on an alignment is said to have failed."""


def is_pair_sound(result: SeedResult) -> bool:
    """Whether the weak model's alignment worked on this seed, told before anything is contrasted.

    DPO may push probability off the bad opening and leave it to tokens that no pair contains (likelihood
    displacement); then there is no aligned model to contrast, and claims about contrast say nothing.
    """
    return result.weak[ALIGNED].stray_share <= DISPLACED_SHARE


@dataclass(frozen=True)
class Claim:
    """A statement with its margin on one seed and what the margin must be."""

    statement: str
    margin: Callable[[SeedResult], Interval]
    above: float
    at_most: float = float("inf")
    mean_above: float | None = None
    """Bound on the mean over seeds, where that is stricter; None = the same bound as each seed's."""
    is_required: bool = True
    """False: reported, because it is of interest whether it holds."""
    compared: tuple[tuple[str, str], ...] = ()
    """Pairs of sets whose difference the margin reads."""


@dataclass(frozen=True)
class Verdict:
    """A claim and how it fared."""

    claim: Claim
    margins: tuple[Interval, ...]
    """One per seed, with its interval over prompts."""
    is_held: tuple[bool, ...]
    """One per seed."""
    mean: float

    @property
    def holds(self) -> bool:
        """On every seed, and on average where the claim says so."""
        bound = self.claim.above if self.claim.mean_above is None else self.claim.mean_above
        return all(self.is_held) and self.mean > bound


def difference_claim(
    statement: str,
    left: str,
    rights: Sequence[str],
    above: float,
    mean_above: float | None = None,
    is_required: bool = True,
) -> Claim:
    """`left` scores higher than the best of `rights`."""

    def margin(result: SeedResult) -> Interval:
        differences = [result.differences[f"{left} - {right}"] for right in rights]
        return min(differences, key=lambda difference: difference.mean)

    return Claim(
        statement,
        margin,
        above,
        mean_above=mean_above,
        is_required=is_required,
        compared=tuple((left, right) for right in rights),
    )


def level_claim(
    statement: str, read: Callable[[SeedResult], Interval], above: float, at_most: float = float("inf")
) -> Claim:
    """A measured value lies within bounds."""
    return Claim(statement, read, above, at_most)


def lab_claims(primary: str, wspo_gammas: Sequence[float]) -> list[Claim]:
    """The claims of the lab; `primary` names the evaluation temperature that they are about."""
    wspo = [names.wspo_name(gamma) for gamma in wspo_gammas]
    best_plain = "contrastive samples beat the best temperature, top-p and min-p setting of the aligned model"
    stage_2 = "ConG (2 DPO epochs) beats ConG-S trained to convergence"
    return [
        difference_claim("contrastive samples beat plain aligned samples", CONTRASTIVE, [ALIGNED], 0.10),
        difference_claim(best_plain, CONTRASTIVE, [ALIGNED, *ALIGNED_SETTINGS], 0.05),
        difference_claim("ConG-S beats WeakSFT", names.CONG_S, [names.WEAK_SFT], 0.05),
        difference_claim("ConG (1 DPO epoch) beats ConG-S", names.CONG_ONE, [names.CONG_S], 0.05),
        difference_claim("ConG (1 DPO epoch) beats its weak teacher", names.CONG_ONE, [names.WEAK_ALIGNED], 0.08),
        difference_claim(stage_2, names.CONG, [names.CONVERGED], 0.01, mean_above=0.03),
        level_claim(
            "the ceiling is near 1", lambda result: result.models[names.CEILING].by_temperature[primary].reward, 0.93
        ),
        level_claim("the aligned weak model is partly aligned", lambda result: result.weak[ALIGNED].reward, 0.35, 0.55),
        level_claim(
            "implicit reward correlates with gold reward (Pearson, aligned samples)",
            lambda result: result.correlations["aligned samples"].pearson,
            0.5,
        ),
        *_reported_claims(wspo),
    ]


def _reported_claims(wspo: Sequence[str]) -> list[Claim]:
    """Claims without a margin that has to be met."""

    def reported(statement: str, left: str, rights: Sequence[str]) -> Claim:
        return difference_claim(statement, left, rights, 0.0, is_required=False)

    return [
        reported(
            "ConG-S beats WeakSFT on T=0.8 top-p 0.95 labels",
            names.CONG_S,
            [names.LABEL_DECODINGS["aligned T=0.8 top-p 0.95"]],
        ),
        reported("contrast matters in stage 2: plain chosen samples do worse", names.CONG_ONE, [names.PLAIN_DPO]),
        reported("ConG (1 DPO epoch) beats step-matched ConG-S", names.CONG_ONE, [names.MATCHED]),
        reported("ConG (1 DPO epoch) beats WSPO, best gamma", names.CONG_ONE, wspo),
        reported("stage 2 adds to a converged stage 1", names.CONVERGED_DPO, [names.CONVERGED]),
        reported("WeakSFT recovers part of the gap", names.WEAK_SFT, [names.WEAK_ALIGNED]),
        reported("auxiliary confidence recovers part of the gap", names.AUX_CONF, [names.WEAK_ALIGNED]),
    ]


def compared_sets(claims: Sequence[Claim]) -> list[tuple[str, str]]:
    """Every pair of sets whose difference some claim reads."""
    return list(dict.fromkeys(pair for claim in claims for pair in claim.compared))


def judge_claims(claims: Sequence[Claim], results: Sequence[SeedResult]) -> list[Verdict]:
    """Each claim against the results of all seeds."""
    verdicts = []
    for claim in claims:
        margins = tuple(claim.margin(result) for result in results)
        is_held = tuple(claim.above < margin.mean <= claim.at_most for margin in margins)
        verdicts.append(Verdict(claim, margins, is_held, sum(margin.mean for margin in margins) / len(margins)))
    return verdicts
