"""Supervised fine-tuning: the negative log-likelihood of response tokens.

Stage 1 of ConG on contrastive samples, WeakSFT on plain samples of the aligned model, the ceiling on gold answers:
they differ in their records alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from cong.objectives.objective import LossShare, Mean, Needs, PolicyScores
from cong.objectives.parameters import check_choice
from cong.objectives.responses import ResponseTokens, TokenUnit


@dataclass(frozen=True)
class SFT:
    """Cross-entropy to the response."""

    name: ClassVar[str] = "sft"

    mean_over: TokenUnit = "tokens"
    """tokens: long responses weigh more, as common trainers have it."""

    def __post_init__(self) -> None:
        check_choice(self, "mean_over", TokenUnit)

    @property
    def needs(self) -> Needs:
        """Nothing but the policy's log-probs."""
        return Needs(self.mean_over)

    def __call__(self, policy: PolicyScores, responses: ResponseTokens, *, progress: float) -> LossShare:
        """The same at every progress."""
        metrics = {"token_logprob": Mean.of(policy.logprobs_N)}
        return LossShare(responses.total(-policy.logprobs_N, self.mean_over), metrics)
