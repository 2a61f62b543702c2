"""The share of a gap that was recovered: (student - floor) / (ceiling - floor), with all of its uncertainty."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cong.errors import EvaluationError
from cong.evaluation.results import Estimated, GapResult
from cong.statistics import bootstrap_interval, paired_interval, performance_gap_recovered

MOST_UNDEFINED = 0.025
"""With more resamples without a gap than this, an end of the interval would be a guess."""

Vector = npt.NDArray[np.float64]


def gap_recovered(
    judge: str,
    decoding: str,
    names: tuple[str, str, str],
    rewards: tuple[Mapping[str, Sequence[float]], Mapping[str, Sequence[float]], Mapping[str, Sequence[float]]],
    seed: int = 0,
    num_resamples: int = 1000,
    reward_ends: tuple[float, float] = (-math.inf, math.inf),
) -> GapResult:
    """What a student recovered; names and rewards by prompt id are those of student, floor and ceiling.

    All three are resampled together, prompt by prompt. Where the ceiling is not above the floor the share is refused.
    """
    student, floor, ceiling = names
    shared = [prompt_id for prompt_id in rewards[0] if all(prompt_id in one for one in rewards[1:])]
    if not shared:
        raise EvaluationError(f"{student}, {floor} and {ceiling} share no prompt; check that ids are the same")
    columns = [[math.fsum(one[prompt_id]) / len(one[prompt_id]) for prompt_id in shared] for one in rewards]
    means = [float(np.mean(column)) for column in columns]
    least, most = reward_ends
    facts = {
        "judge": judge,
        "decoding": decoding,
        "student": student,
        "floor": floor,
        "ceiling": ceiling,
        "num_prompts": len(shared),
        "gained": Estimated.of(paired_interval(columns[0], columns[1], least - most, most - least)),
        "gap": Estimated.of(paired_interval(columns[2], columns[1], least - most, most - least)),
    }
    recovered = performance_gap_recovered(means[0], means[1], means[2])
    if recovered is None:
        refusal = f"ceiling {ceiling} ({means[2]:.4f}) is not above floor {floor} ({means[1]:.4f})"
        return GapResult(**facts, refusal=refusal)
    num_undefined = 0

    def share(student_N: Vector, floor_N: Vector, ceiling_N: Vector) -> float:
        nonlocal num_undefined
        value = performance_gap_recovered(float(student_N.mean()), float(floor_N.mean()), float(ceiling_N.mean()))
        num_undefined += value is None
        return math.nan if value is None else value

    interval = bootstrap_interval(columns, share, seed, num_resamples)
    undefined_share = num_undefined / num_resamples
    estimated = Estimated(mean=recovered) if undefined_share > MOST_UNDEFINED else Estimated.of(interval)
    return GapResult(**facts, recovered=estimated, undefined_share=undefined_share)
