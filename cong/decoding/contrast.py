"""The mixture of K networks on a plausibility head set, and the penalty for tokens already seen.

    log p_k = log softmax(z_k / tau_k)                                  in float32
    H       = { v : log p_0(v) >= max log p_0 + ln lambda }             at the first network's temperature 1
    F(v)    = sum_k w_k log p_k(v)  for v in H,  -inf elsewhere

ConG is K = 2 with w = (1, alpha - 1) on (aligned, base) (arXiv 2510.07884). Legend: B rows, K networks, V tokens.
Knows torch only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cong.decoding.rules import Rules


@dataclass(frozen=True)
class Mixture:
    """Scores of every token and what the networks said of them."""

    scores_BV: Tensor
    """F; -inf outside the head set."""
    logprobs_KBV: tuple[Tensor, ...]
    """Each network's log-probabilities at temperature 1, neither floored nor masked."""
    is_head_BV: Tensor
    floored_BV: Tensor | None
    """True where the floor acted on a head token of some network; None for one network."""

    @property
    def head_sizes_B(self) -> Tensor:
        """Number of tokens in each row's head set."""
        return self.is_head_BV.sum(-1)


def logprobs(logits_BV: Tensor) -> Tensor:
    """Log-probabilities of logits of any dtype, in float32 (float64 stays float64)."""
    wide = torch.float64 if logits_BV.dtype == torch.float64 else torch.float32
    return torch.log_softmax(logits_BV, dim=-1, dtype=wide)


def head_mask(anchor_logprobs_BV: Tensor, head_log_lambda_B: Tensor) -> Tensor:
    """True for tokens with at least lambda times the best token's probability: always at least one a row."""
    threshold_B1 = anchor_logprobs_BV.amax(-1, keepdim=True) + head_log_lambda_B[:, None]
    return anchor_logprobs_BV >= threshold_B1


def mix(logits: Sequence[Tensor], rules: Rules) -> Mixture:
    """Score every token under the rules of its row; `logits` holds one [B, V] tensor per network."""
    assert len(logits) == rules.weights_BK.shape[1], "one weight per network"
    plain_KBV = tuple(logprobs(logits_BV) for logits_BV in logits)
    weighted_KBV = plain_KBV
    if rules.network_temperature_BK is not None:
        weighted_KBV = tuple(
            logprobs(logits_BV / rules.network_temperature_BK[:, k, None]) for k, logits_BV in enumerate(logits)
        )
    anchor_BV = weighted_KBV[0]
    is_head_BV = head_mask(plain_KBV[0], rules.head_log_lambda_B)
    scores_BV = rules.weights_BK[:, 0, None] * anchor_BV
    floored_BV: Tensor | None = None
    for k in range(1, len(logits)):
        other_BV = weighted_KBV[k]
        if rules.exempt_BV is not None:
            other_BV = torch.where(rules.exempt_BV, anchor_BV, other_BV)
        is_low_BV = (other_BV < rules.floor_B[:, None]) & is_head_BV
        floored_BV = is_low_BV if floored_BV is None else floored_BV | is_low_BV
        floored_other_BV = torch.maximum(other_BV, rules.floor_B[:, None])
        scores_BV = torch.addcmul(scores_BV, floored_other_BV, rules.weights_BK[:, k, None].to(scores_BV.dtype))
    scores_BV = torch.where(is_head_BV, scores_BV, -math.inf)
    return Mixture(scores_BV, plain_KBV, is_head_BV, floored_BV)


def reference_shift(mixture: Mixture, rules: Rules) -> Tensor:
    """The constant per row by which the published code's scores lie above ours, [B].

    It overwrites log p_base outside the head by -0.001 and normalises again, so that every head score rises by
    (1 - alpha) * ln(sum_{v in H} p_base(v) + (V - |H|) e^-0.001). Sampling does not see a constant, but a
    multiplicative penalty does.
    """
    vocab_size = mixture.is_head_BV.shape[-1]
    num_outside_B = vocab_size - mixture.head_sizes_B
    shift_B = torch.zeros_like(mixture.scores_BV[:, 0])
    for k in range(1, len(mixture.logprobs_KBV)):
        head_mass_B = mixture.logprobs_KBV[k].exp().masked_fill(~mixture.is_head_BV, 0.0).sum(-1)
        shift_B = shift_B - rules.weights_BK[:, k] * (head_mass_B + num_outside_B * math.exp(-0.001)).log()
    return shift_B


def penalize(mixture: Mixture, rules: Rules, is_seen_BV: Tensor) -> Tensor:
    """Scores after each row's repetition penalty on the tokens it has seen."""
    if rules.penalty_B is None:
        return mixture.scores_BV
    assert rules.is_multiplicative_B is not None
    assert rules.is_shifted_B is not None
    penalty_B1 = rules.penalty_B[:, None]
    scores_BV = mixture.scores_BV
    shifted_BV = scores_BV + torch.where(rules.is_shifted_B, reference_shift(mixture, rules), 0.0)[:, None]
    multiplied_BV = torch.where(shifted_BV > 0, shifted_BV / penalty_B1, shifted_BV * penalty_B1)
    additive_BV = scores_BV - penalty_B1.log()
    is_multiplicative_B1 = rules.is_multiplicative_B[:, None]
    penalized_BV = torch.where(is_multiplicative_B1, multiplied_BV, additive_BV)
    untouched_BV = torch.where(is_multiplicative_B1, shifted_BV, scores_BV)
    return torch.where(is_seen_BV & mixture.is_head_BV, penalized_BV, untouched_BV)


def interpolate_logits(aligned_BV: Tensor, base_BV: Tensor, rho: float) -> Tensor:
    """Logits of a reference between base (rho 0) and aligned (rho 1); outside 0..1 it extrapolates."""
    return base_BV + rho * (aligned_BV - base_BV)
