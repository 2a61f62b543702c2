"""WSPO: the strong model's log-ratio is regressed, token by token, on the weak pair's (arXiv 2410.18640).

    loss_t = (gamma log(pi / pi_ref)(y_t) - log(p_aligned / p_base)(y_t))^2

At the optimum the strong log-ratio is the weak one divided by gamma, so gamma < 1 amplifies. Weak and strong must
share their tokenizer. Legend: N response tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cong.objectives.objective import LossShare, Mean, Needs, PolicyScores
from cong.objectives.parameters import check_choice, check_number
from cong.objectives.responses import ResponseTokens, TokenUnit


def wspo_losses(log_ratio_N: Tensor, target_N: Tensor, gamma: float) -> Tensor:
    """Squared residual [N] of the policy's log-ratio to its reference against the weak pair's."""
    return (gamma * log_ratio_N - target_N).square()


@dataclass(frozen=True)
class WSPO:
    """Regression on the weak pair's log-ratio over the tokens of a response."""

    name: ClassVar[str] = "wspo"

    gamma: float = 0.1
    clip: float | None = None
    """Bound on |log(p_aligned / p_base)| of a token, in nats; None = unbounded, as published."""
    mean_over: TokenUnit = "sequences"
    """sequences: the mean over a response's tokens first, as published."""

    def __post_init__(self) -> None:
        check_number(self, "gamma", above=0.0)
        if self.clip is not None:
            check_number(self, "clip", above=0.0)
        check_choice(self, "mean_over", TokenUnit)

    @property
    def needs(self) -> Needs:
        """All three frozen networks."""
        return Needs(self.mean_over, frozen=("reference", "aligned", "base"))

    def __call__(self, policy: PolicyScores, responses: ResponseTokens, *, progress: float) -> LossShare:
        """The same at every progress."""
        ratio_N = responses.frozen_logprobs("aligned") - responses.frozen_logprobs("base")
        target_N = ratio_N if self.clip is None else ratio_N.clamp(-self.clip, self.clip)
        log_ratio_N = policy.logprobs_N - responses.frozen_logprobs("reference")
        losses_N = wspo_losses(log_ratio_N, target_N, self.gamma)
        realised_N = self.gamma * log_ratio_N.detach()
        metrics = {
            "clip_rate": Mean.of(target_N != ratio_N),
            "target_size": Mean.of(target_N.abs()),
            # Slope through the origin of what is realised against its target: 0 at the start, 1 at the optimum.
            "slope": Mean((realised_N * target_N).sum().float(), torch.square(target_N).sum().float()),
        }
        return LossShare(responses.total(losses_N, self.mean_over), metrics)
