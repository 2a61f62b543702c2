"""Auxiliary and adaptive confidence: the student's own prediction takes over part of the weak label's weight.

Both train on the weak token with weight 1 - c and on the student's own most likely token with weight c, where the
choice of that token and c carry no gradient. Auxiliary confidence (arXiv 2312.09390) ramps c with progress; adaptive
confidence (arXiv 2402.03749) takes it from how the student sees the weak token. Legend: N response tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cong.objectives.objective import LossShare, Mean, Needs, PolicyScores
from cong.objectives.parameters import check_choice, check_number
from cong.objectives.responses import ResponseTokens, TokenUnit


def linear_ramp(progress: float, highest: float, warmup: float) -> float:
    """The coefficient rises from 0 to `highest` over the first `warmup` of training, then stays; 0 = no ramp."""
    assert 0.0 <= progress <= 1.0, f"progress {progress} is no share"
    return highest if progress >= warmup else highest * progress / warmup


def released_ramp(progress: float, highest: float, warmup: float) -> float:
    """The ramp as released: it never divides by `warmup`, so c creeps to `warmup * highest` and then jumps."""
    assert 0.0 <= progress <= 1.0, f"progress {progress} is no share"
    return highest * (progress if progress <= warmup else 1.0)


def confidence_losses(weak_logprobs_N: Tensor, own_logprobs_N: Tensor, coefficient: float | Tensor) -> Tensor:
    """Cross-entropy [N] to (1 - c) onehot(weak token) + c onehot(own token), of the student's log-probs of both."""
    return -(1 - coefficient) * weak_logprobs_N - coefficient * own_logprobs_N


def adaptive_coefficients(weak_logprobs_N: Tensor, own_logprobs_N: Tensor, temperature: float) -> Tensor:
    """b = p_weak^(1/T) / (p_weak^(1/T) + p_own^(1/T)), detached: at most 1/2, and 1/2 where both tokens agree."""
    return torch.sigmoid((weak_logprobs_N - own_logprobs_N).detach() / temperature)


def _confidence_share(
    policy: PolicyScores, responses: ResponseTokens, unit: TokenUnit, coefficient: float | Tensor
) -> LossShare:
    own_logprobs_N = policy.own_logprobs_N
    assert own_logprobs_N is not None, "the objective needs the policy's own prediction"
    losses_N = confidence_losses(policy.logprobs_N, own_logprobs_N, coefficient)
    metrics = {
        "coefficient": Mean.of(torch.ones_like(own_logprobs_N) * coefficient),
        "agreement": Mean.of(policy.logprobs_N >= own_logprobs_N),
        "token_logprob": Mean.of(policy.logprobs_N),
    }
    return LossShare(responses.total(losses_N, unit), metrics)


Direction = Literal["paper", "inverted"]


@dataclass(frozen=True)
class AuxConf:
    """Auxiliary confidence with the ramp that was meant."""

    name: ClassVar[str] = "aux_conf"

    highest: float = 0.5
    """c after the ramp; published: 0.75 for the largest students, 0.5 otherwise."""
    warmup: float = 0.2
    """Share of training over which c rises; 0 = no ramp."""
    mean_over: TokenUnit = "tokens"

    def __post_init__(self) -> None:
        check_number(self, "highest", at_least=0.0, at_most=1.0)
        check_number(self, "warmup", at_least=0.0, at_most=1.0)
        check_choice(self, "mean_over", TokenUnit)

    @property
    def needs(self) -> Needs:
        """The policy's own prediction."""
        return Needs(self.mean_over, own_prediction=True)

    def coefficient(self, progress: float) -> float:
        """Of the self term; it grows with progress."""
        return linear_ramp(progress, self.highest, self.warmup)

    def __call__(self, policy: PolicyScores, responses: ResponseTokens, *, progress: float) -> LossShare:
        """The coefficient follows progress."""
        return _confidence_share(policy, responses, self.mean_over, self.coefficient(progress))


@dataclass(frozen=True)
class AuxConfReleased(AuxConf):
    """Auxiliary confidence with the ramp of the released code, to reproduce numbers made with it."""

    name: ClassVar[str] = "aux_conf_released"

    warmup: float = 0.1
    """Share of training up to which c is progress times `highest`; after it c is `highest` at once."""

    def coefficient(self, progress: float) -> float:
        """It jumps where the warm-up ends."""
        return released_ramp(progress, self.highest, self.warmup)


@dataclass(frozen=True)
class AdaptConf:
    """Adaptive confidence for each token.

    The published weight b goes to 0 where the student is sure against the weak token: it trusts the weak label most
    exactly there. `inverted` gives the self term 1 - b instead, which is what the method's motivation describes.
    """

    name: ClassVar[str] = "adapt_conf"

    temperature: float = 0.5
    direction: Direction = "paper"
    mean_over: TokenUnit = "tokens"

    def __post_init__(self) -> None:
        check_number(self, "temperature", above=0.0)
        check_choice(self, "direction", Direction)
        check_choice(self, "mean_over", TokenUnit)

    @property
    def needs(self) -> Needs:
        """The policy's own prediction."""
        return Needs(self.mean_over, own_prediction=True)

    def __call__(self, policy: PolicyScores, responses: ResponseTokens, *, progress: float) -> LossShare:
        """The same at every progress."""
        assert policy.own_logprobs_N is not None, "the objective needs the policy's own prediction"
        b_N = adaptive_coefficients(policy.logprobs_N, policy.own_logprobs_N, self.temperature)
        coefficient_N = b_N if self.direction == "paper" else 1 - b_N
        return _confidence_share(policy, responses, self.mean_over, coefficient_N)
