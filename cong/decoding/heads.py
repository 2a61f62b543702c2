"""One step of decoding on the head sets alone: what lies outside has no probability, so nothing else is looked at.

Says what `decode_step` says wherever the head sets fit. Legend: B rows, K networks, V tokens, H columns: the tokens of
each row's head set by ascending id, then padding. Knows torch only.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cong.decoding.contrast import head_mask, logprobs, mix_logprobs
from cong.decoding.rules import Rules
from cong.decoding.step import Step, draw_from


@dataclass(frozen=True)
class Heads:
    """The head sets of B rows."""

    ids_BH: Tensor
    """0 in padding."""
    logprobs_KBH: Tensor
    """Each network's log-probabilities at temperature 1."""
    sizes_B: Tensor
    """Tokens of each head set; more than H where it does not fit, and then its columns mean nothing."""


def find_heads(logits: tuple[Tensor, ...], head_log_lambda_B: Tensor, width: int) -> Heads:
    """The head sets of rows of logits, in plain torch: what a faster way to find them is compared with."""
    plain_KBV = torch.stack([logprobs(logits_BV) for logits_BV in logits])
    is_head_BV = head_mask(plain_KBV[0], head_log_lambda_B)
    # A stable sort of "outside" keeps the ids of the inside in order.
    order_BH = (~is_head_BV).to(torch.uint8).sort(dim=-1, stable=True).indices[:, :width]
    is_there_BH = is_head_BV.gather(-1, order_BH)
    logprobs_KBH = plain_KBV.gather(-1, order_BH.expand(len(logits), -1, -1))
    return Heads(
        ids_BH=torch.where(is_there_BH, order_BH, 0),
        logprobs_KBH=torch.where(is_there_BH, logprobs_KBH, 0.0),
        sizes_B=is_head_BV.sum(-1),
    )


def decode_heads(
    heads: Heads,
    rules: Rules,
    sample_index_B: Tensor,
    position_B: Tensor,
    vocab_size: int,
    is_seen_BV: Tensor | None = None,
    banned_BV: Tensor | None = None,
) -> Step:
    """`decode_step` for rows whose head sets are known; rules with temperatures of single networks are not for it."""
    assert rules.network_temperature_BK is None, "log-probs at temperature 1 are all that is known"
    ids_BH = heads.ids_BH

    def pick(flags_BV: Tensor | None) -> Tensor | None:
        return None if flags_BV is None else flags_BV.gather(-1, ids_BH)

    is_there_BH = torch.arange(ids_BH.shape[1], device=ids_BH.device) < heads.sizes_B[:, None]
    plain_KBH = tuple(heads.logprobs_KBH)
    mixture = mix_logprobs(plain_KBH, plain_KBH, is_there_BH, rules, pick(rules.exempt_BV), vocab_size)
    step = draw_from(mixture, rules, sample_index_B, position_B, pick(is_seen_BV), pick(banned_BV))
    return replace(step, token_B=ids_BH.gather(-1, step.token_B[:, None]).squeeze(-1))
