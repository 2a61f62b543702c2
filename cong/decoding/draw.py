"""From scores to a token: temperature, top-k, top-p, and a draw that depends on nothing but its own coordinates.

A draw takes one uniform number u per row and returns the first token, walking ids upwards, at which the cumulative
probability exceeds u. The number is a pure function of (seed, sample index, position), equal on every device, so a
sequence gets the same tokens whatever shares its batch. Legend: B rows, V tokens, H head width. Knows torch only.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from cong.decoding.rules import Rules

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _scramble(value: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014) in wrapping 64-bit arithmetic."""
    value = value + _GOLDEN
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def uniforms(seed_B: Tensor, sample_index_B: Tensor, position_B: Tensor) -> Tensor:
    """Float64 numbers in [0, 1) with 53 random bits, one per row; the arguments are int64."""
    bits_B = _scramble(_scramble(_scramble(seed_B) ^ sample_index_B) ^ position_B)
    return _shift_right(bits_B, 11).double() * 2.0**-53


def prompt_seed(seed: int, prompt_token_ids: Iterable[int]) -> int:
    """The seed of one prompt's draws, 63 bits: prompts that share a request's seed do not share their numbers."""
    mask = (1 << 64) - 1
    state = seed
    for token_id in prompt_token_ids:
        state = (state ^ token_id) + 0x9E3779B97F4A7C15 & mask
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return state >> 1


def _nucleus(probs_BV: Tensor, top_k_B: Tensor | None, top_p_B: Tensor | None) -> Tensor:
    """True for tokens that survive top-k and top-p; equal probabilities are taken in order of id.

    Only as many of the best tokens are sorted as the widest row has with any probability at all.
    """
    width = int((probs_BV > 0).sum(-1).amax())
    best_BH, ids_BH = probs_BV.topk(width, dim=-1)
    order_BH = ids_BH.argsort(dim=-1)
    best_BH, ids_BH = best_BH.gather(-1, order_BH), ids_BH.gather(-1, order_BH)
    best_BH, order_BH = best_BH.sort(dim=-1, descending=True, stable=True)
    ids_BH = ids_BH.gather(-1, order_BH)
    is_kept_BH = best_BH > 0
    if top_k_B is not None:
        is_kept_BH &= torch.arange(width, device=probs_BV.device) < top_k_B[:, None]
        best_BH = best_BH.masked_fill(~is_kept_BH, 0.0)
    if top_p_B is not None:
        # A token stays if those before it do not reach top_p yet: the smallest set whose mass is at least top_p.
        total_B1 = best_BH.double().sum(-1, keepdim=True)
        before_BH = best_BH.double().cumsum(-1) - best_BH
        is_kept_BH &= before_BH < top_p_B[:, None].double() * total_B1
        is_kept_BH |= (top_p_B >= 1.0)[:, None] & (best_BH > 0)
    return torch.zeros_like(probs_BV, dtype=torch.bool).scatter_(-1, ids_BH, is_kept_BH)


def warp(scores_BV: Tensor, rules: Rules) -> Tensor:
    """Log-probabilities of the distribution that is drawn from; a greedy row has one token, the lowest id on ties."""
    logq_BV = torch.log_softmax(scores_BV / rules.temperature_B[:, None], dim=-1)
    if rules.top_k_B is not None or rules.top_p_B is not None:
        is_kept_BV = _nucleus(logq_BV.exp(), rules.top_k_B, rules.top_p_B)
        logq_BV = torch.log_softmax(logq_BV.masked_fill(~is_kept_BV, -math.inf), dim=-1)
    if rules.is_greedy_B is None:
        return logq_BV
    best_B1 = scores_BV.argmax(-1, keepdim=True)  # of equal scores torch's argmax takes the first
    greedy_BV = torch.full_like(logq_BV, -math.inf).scatter_(-1, best_B1, 0.0)
    return torch.where(rules.is_greedy_B[:, None], greedy_BV, logq_BV)


def draw(logq_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token at which the cumulative probability first exceeds u, walking ids upwards, int64 [B].

    Of a row that is no numbers, the last one: its log-probability says that it is none.
    """
    cumulative_BV = logq_BV.exp().cumsum(-1, dtype=torch.float64)
    total_B1 = cumulative_BV[:, -1:].contiguous()
    # Rounding may leave the target at the very total; the token that completes it is meant then.
    last_B1 = torch.searchsorted(cumulative_BV, total_B1)
    found_B1 = torch.searchsorted(cumulative_BV, uniform_B[:, None] * total_B1, right=True)
    return torch.minimum(found_B1, last_B1).squeeze(-1).clamp(max=logq_BV.shape[-1] - 1)
