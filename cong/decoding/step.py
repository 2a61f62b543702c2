"""One step of decoding: K networks' logits in, one token per row and its record out.

Legend: B rows, K networks, V tokens. Knows torch only, and nothing of caches, requests or stopping.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cong.decoding.contrast import Mixture, mix, penalize
from cong.decoding.draw import draw, uniforms, warp
from cong.decoding.rules import Rules


@dataclass(frozen=True)
class Step:
    """The drawn tokens and what is recorded of each."""

    token_B: Tensor
    logprobs_BK: Tensor
    """Log-probability of the token under each network at temperature 1."""
    mixture_logprob_B: Tensor
    """Its log-probability under the distribution it was drawn from."""
    head_size_B: Tensor
    num_floored_B: Tensor
    """Head tokens on which the floor acted."""


def distribution(
    logits: Sequence[Tensor],
    rules: Rules,
    is_seen_BV: Tensor | None = None,
    banned_BV: Tensor | None = None,
) -> tuple[Mixture, Tensor]:
    """The mixture, and the log-probabilities [B, V] that each row draws from.

    `is_seen_BV` says which tokens a row's penalty acts on; it may be left out where no row has a penalty.
    `banned_BV` marks tokens that are not drawn, except in a row whose head set holds nothing else.
    """
    mixture = mix(logits, rules)
    scores_BV = mixture.scores_BV
    if rules.penalty_B is not None:
        assert is_seen_BV is not None, "a penalty needs to know the tokens seen"
        scores_BV = penalize(mixture, rules, is_seen_BV)
    if banned_BV is not None:
        allowed_BV = scores_BV.masked_fill(banned_BV, -math.inf)
        is_left_B1 = (allowed_BV > -math.inf).any(-1, keepdim=True)
        scores_BV = torch.where(is_left_B1, allowed_BV, scores_BV)
    return mixture, warp(scores_BV, rules)


def decode_step(
    logits: Sequence[Tensor],
    rules: Rules,
    sample_index_B: Tensor,
    position_B: Tensor,
    is_seen_BV: Tensor | None = None,
    banned_BV: Tensor | None = None,
) -> Step:
    """Draw the token at `position_B` (0 = first of the completion) of each row from its `distribution`."""
    mixture, logq_BV = distribution(logits, rules, is_seen_BV, banned_BV)
    token_B = draw(logq_BV, uniforms(rules.seed_B, sample_index_B, position_B))
    token_B1 = token_B[:, None]
    floored_BV = mixture.floored_BV
    return Step(
        token_B=token_B,
        logprobs_BK=torch.cat([logprobs_BV.gather(-1, token_B1) for logprobs_BV in mixture.logprobs_KBV], dim=-1),
        mixture_logprob_B=logq_BV.gather(-1, token_B1).squeeze(-1),
        head_size_B=mixture.head_sizes_B,
        num_floored_B=torch.zeros_like(token_B) if floored_BV is None else floored_BV.sum(-1),
    )
