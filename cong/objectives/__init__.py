"""Training methods as pure mathematics: tensors and numbers in, loss and metrics out. Imports torch and cong.errors."""

from cong.objectives.confidence import (
    AdaptConf,
    AuxConf,
    AuxConfReleased,
    adaptive_coefficients,
    confidence_losses,
    linear_ramp,
    released_ramp,
)
from cong.objectives.dpo import (
    DPO,
    ConfidenceWeightedDPO,
    confidence_weights,
    dpo_gradient_weights,
    dpo_losses,
)
from cong.objectives.fused import Scorer, fused_logprobs, fused_scores
from cong.objectives.logconf import class_threshold, logconf_losses, product_target
from cong.objectives.logprobs import (
    ImplicitReward,
    gather_logprobs,
    implicit_reward,
    masked_mean,
    masked_sum,
    sequence_logprobs,
    token_logprobs,
)
from cong.objectives.objective import (
    LossShare,
    Mean,
    Needs,
    Objective,
    PolicyScores,
    combine_metrics,
    policy_scores,
)
from cong.objectives.registry import OBJECTIVES, objective, objective_parameters
from cong.objectives.responses import FrozenNetwork, ResponseTokens, TokenUnit, Unit, response_tokens
from cong.objectives.sft import SFT
from cong.objectives.soft_labels import SoftLabels, cross_entropy, forward_kl, kl, reverse_kl
from cong.objectives.wspo import WSPO, wspo_losses

__all__ = [
    "DPO",
    "OBJECTIVES",
    "SFT",
    "WSPO",
    "AdaptConf",
    "AuxConf",
    "AuxConfReleased",
    "ConfidenceWeightedDPO",
    "FrozenNetwork",
    "ImplicitReward",
    "LossShare",
    "Mean",
    "Needs",
    "Objective",
    "PolicyScores",
    "ResponseTokens",
    "Scorer",
    "SoftLabels",
    "TokenUnit",
    "Unit",
    "adaptive_coefficients",
    "class_threshold",
    "combine_metrics",
    "confidence_losses",
    "confidence_weights",
    "cross_entropy",
    "dpo_gradient_weights",
    "dpo_losses",
    "forward_kl",
    "fused_logprobs",
    "fused_scores",
    "gather_logprobs",
    "implicit_reward",
    "kl",
    "linear_ramp",
    "logconf_losses",
    "masked_mean",
    "masked_sum",
    "objective",
    "objective_parameters",
    "policy_scores",
    "product_target",
    "released_ramp",
    "response_tokens",
    "reverse_kl",
    "sequence_logprobs",
    "token_logprobs",
    "wspo_losses",
]
