"""Direct preference optimisation: sigmoid, conservative, and weighted by a weak pair's confidence.

With h = (log pi/pi_ref of the chosen response) - (the same of the rejected one), both summed over response tokens:

    loss = -(1 - eps) ln sg(beta h) - eps ln sg(-beta h)        eps = 0: sigmoid; eps > 0: conservative
    d loss / d h = -beta (sg(-beta h) - eps)

Every pair counts once in the mean, with its own weight as a factor where it has one. Legend: P pairs. Knows nothing of
how pairs are found.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cong.objectives.objective import LossShare, Mean, Needs, PolicyScores
from cong.objectives.parameters import check_number
from cong.objectives.responses import ResponseTokens


def dpo_losses(margin_P: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Loss [P] of pairs with margin h; `label_smoothing` is the share of pairs taken to be labelled wrongly."""
    return -(1 - label_smoothing) * F.logsigmoid(beta * margin_P) - label_smoothing * F.logsigmoid(-beta * margin_P)


def dpo_gradient_weights(margin_P: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """How hard each pair still pulls, -d loss / d h; near 0 for pairs that are learned."""
    return beta * (torch.sigmoid(-beta * margin_P) - label_smoothing)


def confidence_weights(reward_margin_P: Tensor) -> Tensor:
    """CW-PO's weight 2 (sg(margin) - 1/2): 0 for a scorer that cannot tell, 1 for a sure one, negative against it."""
    return 2.0 * torch.sigmoid(reward_margin_P) - 1.0


def _check_dpo(objective: "DPO | ConfidenceWeightedDPO") -> None:
    check_number(objective, "beta", above=0.0)
    check_number(objective, "label_smoothing", at_least=0.0, below=0.5)


def _dpo_share(
    policy: PolicyScores,
    responses: ResponseTokens,
    beta: float,
    label_smoothing: float,
    weights_P: Tensor | None = None,
) -> LossShare:
    ratios_S = responses.sequence_sums(policy.logprobs_N - responses.frozen_logprobs("reference"))
    chosen_P, rejected_P = responses.chosen_and_rejected(ratios_S)
    margin_P = chosen_P - rejected_P
    losses_P = dpo_losses(margin_P, beta, label_smoothing)
    pulls_P = dpo_gradient_weights(margin_P, beta, label_smoothing)
    if responses.pair_weights_P is not None:
        weights_P = responses.pair_weights_P if weights_P is None else weights_P * responses.pair_weights_P
    if weights_P is not None:
        losses_P, pulls_P = weights_P * losses_P, weights_P * pulls_P
    metrics = {
        "reward_chosen": Mean.of(beta * chosen_P),
        "reward_rejected": Mean.of(beta * rejected_P),
        "reward_margin": Mean.of(beta * margin_P),
        "accuracy": Mean.of(margin_P > 0),
        "gradient_weight": Mean.of(pulls_P),
    }
    return LossShare(losses_P.sum(), metrics)


@dataclass(frozen=True)
class DPO:
    """DPO against a frozen reference; conservative with `label_smoothing` above 0."""

    name: ClassVar[str] = "dpo"

    beta: float = 0.1
    """Strength of the pull to the reference; ConG's stage 2 takes 0.5."""
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_dpo(self)

    @property
    def needs(self) -> Needs:
        """The reference: the checkpoint this training starts from."""
        return Needs("pairs", frozen=("reference",))

    def __call__(self, policy: PolicyScores, responses: ResponseTokens, *, progress: float) -> LossShare:
        """The same at every progress."""
        return _dpo_share(policy, responses, self.beta, self.label_smoothing)


@dataclass(frozen=True)
class ConfidenceWeightedDPO:
    """DPO whose pairs weigh as much as the weak pair's implicit reward is sure of them (CW-PO).

    A pair that the weak pair orders the other way gets weight 0: a negative weight would make the loss unbounded.
    """

    name: ClassVar[str] = "cw_dpo"

    beta: float = 0.1
    label_smoothing: float = 0.0
    weak_beta: float = 0.1
    """Beta of the weak model's own alignment: turns its log-ratio into the reward of a Bradley-Terry model."""

    def __post_init__(self) -> None:
        _check_dpo(self)
        check_number(self, "weak_beta", above=0.0)

    @property
    def needs(self) -> Needs:
        """The reference, and the weak pair for the weights."""
        return Needs("pairs", frozen=("reference", "aligned", "base"))

    def __call__(self, policy: PolicyScores, responses: ResponseTokens, *, progress: float) -> LossShare:
        """The same at every progress."""
        implicit_N = responses.frozen_logprobs("aligned") - responses.frozen_logprobs("base")
        chosen_P, rejected_P = responses.chosen_and_rejected(responses.sequence_sums(implicit_N))
        confidence_P = confidence_weights(self.weak_beta * (chosen_P - rejected_P))
        weights_P = confidence_P.clamp(min=0.0)
        share = _dpo_share(policy, responses, self.beta, self.label_smoothing, weights_P)
        metrics = {
            **share.metrics,
            "confidence": Mean.of(weights_P),
            "weak_disagreement": Mean.of(confidence_P < 0),
        }
        return LossShare(share.loss_sum, metrics)
