"""Divergences between a student's distribution and a weak model's soft labels, in both directions.

forward = KL(weak || student), ordinary soft-label training; reverse = KL(student || weak), less moved by labels the
weak model is unsure of (arXiv 2502.11107). The two cross-entropies are the same up to an entropy. Legend: N examples
or response tokens, V classes or tokens. Log-probabilities throughout; -inf is a label of probability 0.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cong.objectives.objective import LossShare, Mean, Needs, PolicyScores
from cong.objectives.parameters import check_choice, check_number
from cong.objectives.responses import ResponseTokens, TokenUnit


def cross_entropy(target_NV: Tensor, logprobs_NV: Tensor) -> Tensor:
    """-sum_v target(v) log p(v), [N]: soft-label CE with weak targets, reverse CE with the student's own."""
    return -torch.where(target_NV == 0, 0.0, target_NV * logprobs_NV).sum(-1)


def kl(from_logprobs_NV: Tensor, to_logprobs_NV: Tensor) -> Tensor:
    """KL(from || to) [N]; infinite where `to` excludes what `from` allows."""
    # Where `from` is 0 the term is 0, and the replaced operand keeps inf - inf out of the gradient as well.
    is_zero_NV = from_logprobs_NV == -torch.inf
    log_ratio_NV = torch.where(is_zero_NV, 0.0, from_logprobs_NV) - torch.where(is_zero_NV, 0.0, to_logprobs_NV)
    return (torch.where(is_zero_NV, 0.0, from_logprobs_NV.exp()) * log_ratio_NV).sum(-1)


def forward_kl(student_logprobs_NV: Tensor, weak_logprobs_NV: Tensor) -> Tensor:
    """KL(weak || student) [N]."""
    return kl(weak_logprobs_NV, student_logprobs_NV)


def reverse_kl(student_logprobs_NV: Tensor, weak_logprobs_NV: Tensor) -> Tensor:
    """KL(student || weak) [N]."""
    return kl(student_logprobs_NV, weak_logprobs_NV)


Direction = Literal["forward", "reverse"]


@dataclass(frozen=True)
class SoftLabels:
    """KL to the weak model's whole distribution at every response token."""

    name: ClassVar[str] = "soft_labels"

    direction: Direction = "forward"
    floor: float = -30.0
    """Lowest weak log-probability the reverse direction reads: without it a label of probability 0 costs infinity."""
    mean_over: TokenUnit = "tokens"

    def __post_init__(self) -> None:
        check_choice(self, "direction", Direction)
        check_number(self, "floor", below=0.0)
        check_choice(self, "mean_over", TokenUnit)

    @property
    def needs(self) -> Needs:
        """Both whole distributions."""
        return Needs(self.mean_over, distribution=True)

    def __call__(self, policy: PolicyScores, responses: ResponseTokens, *, progress: float) -> LossShare:
        """The same at every progress."""
        student_NV, weak_NV = policy.distribution_NV, responses.weak_logprobs_NV
        assert student_NV is not None, "the objective needs the policy's whole distribution"
        assert weak_NV is not None, "the objective needs the weak model's whole distribution"
        floored_NV = weak_NV.clamp(min=self.floor)
        is_forward = self.direction == "forward"
        forward_N = forward_kl(student_NV if is_forward else student_NV.detach(), weak_NV)
        reverse_N = reverse_kl(student_NV.detach() if is_forward else student_NV, floored_NV)
        metrics = {
            "kl_forward": Mean.of(forward_N),
            "kl_reverse": Mean.of(reverse_N),
            "agreement": Mean.of(student_NV.argmax(-1) == weak_NV.argmax(-1)),
            # The student's probability on tokens where the floor acts.
            "floored_mass": Mean.of(torch.where(weak_NV < self.floor, student_NV.detach().exp(), 0.0).sum(-1)),
        }
        return LossShare(responses.total(forward_N if is_forward else reverse_N, self.mean_over), metrics)
