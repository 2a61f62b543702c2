"""Drawing on a GPU in four launches: head sets found part by part, then a draw from each. Knows tensors only.

Says what `cong.decoding` says, wherever head sets are small enough. Legend: K networks, B rows, V tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cong.engine.rule_numbers import RuleNumbers

HEAD_WIDTH = 1024
"""Tokens of a head set that are looked at; rows with a larger one are decoded on the whole vocabulary."""
_PART = 1024
"""Tokens that one program looks at."""
_NUM_WARPS = 2
_OTHERS = 16


@dataclass(frozen=True)
class Heads:
    """The head sets of B rows, their tokens by ascending id."""

    ids_BH: Tensor
    logprobs_KBH: Tensor
    """Each network's log-probabilities at temperature 1."""
    sizes_B: Tensor
    """Tokens of each head set; more than H where it does not fit, and then only the first H are there."""


def find_heads_on_gpu(logits: tuple[Tensor, ...], head_log_lambda_B: Tensor) -> Heads:
    """The head sets of up to three networks' [B, V] logits."""
    from cong.engine.gpu.head_kernels import count_kernel, find_kernel, sum_kernel

    rows = [each if each.stride(1) == 1 else each.contiguous() for each in logits]
    given = rows + rows[:1] * (3 - len(rows))
    strides = [each.stride(0) for each in given]
    num_rows, vocab_size = rows[0].shape
    num_parts = -(-vocab_size // _PART)
    like = head_log_lambda_B
    maxima_BKP = like.new_empty(num_rows, len(rows), num_parts)
    totals_BKP = torch.empty_like(maxima_BKP)
    counts_BP = like.new_empty(num_rows, num_parts, dtype=torch.int32)
    ids_BH = like.new_empty(num_rows, HEAD_WIDTH, dtype=torch.int64)
    logprobs_KBH = like.new_empty(len(rows), num_rows, HEAD_WIDTH)
    sizes_B = like.new_empty(num_rows, dtype=torch.int64)
    fixed = {"NUM_NETWORKS": len(rows), "NUM_PARTS": num_parts, "PART": _PART, "num_warps": _NUM_WARPS}
    sum_kernel[(num_rows, num_parts, len(rows))](*given, *strides, maxima_BKP, totals_BKP, vocab_size, **fixed)
    fixed["NUM_PARTS_PADDED"] = 1 << (num_parts - 1).bit_length()
    found = head_log_lambda_B, maxima_BKP, totals_BKP, counts_BP
    count_kernel[(num_rows, num_parts)](rows[0], strides[0], *found, vocab_size, **fixed)
    find_kernel[(num_rows, num_parts)](
        *given, *strides, *found, ids_BH, logprobs_KBH, sizes_B, num_rows, vocab_size, **fixed, WIDTH=HEAD_WIDTH
    )
    return Heads(ids_BH, logprobs_KBH, sizes_B)


def draw_on_gpu(
    heads: Heads,
    rules: RuleNumbers,
    uniform_B: Tensor,
    vocab_size: int,
    is_seen_BV: Tensor | None,
    banned_BV: Tensor | None,
) -> Tensor:
    """Token, size of the head set, log-prob under the mixture and under each network, float64 [B, 3 + K].

    Rows whose head set does not fit say nothing but its size.
    """
    from cong.engine.gpu.head_kernels import draw_kernel

    num_networks, num_rows, width = heads.logprobs_KBH.shape
    record_BR = torch.empty(num_rows, 3 + num_networks, dtype=torch.float64, device=uniform_B.device)

    masks = is_seen_BV, banned_BV, rules.exempt_BV
    # In place of one that nobody gave any other address of the same kind.
    flags = [(record_BR if mask_BV is None else mask_BV).view(torch.uint8) for mask_BV in masks]
    has_penalty, has_banned, has_exempt = (int(mask_BV is not None) for mask_BV in masks)

    draw_kernel[(num_rows,)](
        heads.ids_BH,
        heads.logprobs_KBH,
        heads.sizes_B,
        rules.numbers_BF,
        uniform_B,
        *flags,
        torch.empty_like(heads.logprobs_KBH[0]),
        record_BR,
        num_rows,
        vocab_size,
        has_penalty,
        has_banned,
        has_exempt,
        int(rules.has_top),
        NUM_NETWORKS=num_networks,
        NUM_NUMBERS=rules.numbers_BF.shape[1],
        WIDTH=width,
        OTHERS=_OTHERS,
        num_warps=8,
    )
    return record_BR
