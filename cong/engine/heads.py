"""Head sets on a GPU by a kernel, in two walks over the logits instead of a dozen. Knows tensors only."""

import torch
from torch import Tensor

from cong.decoding import Heads

HEAD_WIDTH = 1024
"""Tokens of a head set that are looked at; rows with a larger one are decoded on the whole vocabulary."""
_TILE = 4096


def find_heads_on_gpu(logits: tuple[Tensor, ...], head_log_lambda_B: Tensor) -> Heads:
    """The head sets of up to three networks' [B, V] logits."""
    from cong.engine.head_kernels import find_heads_kernel

    rows = [each if each.stride(1) == 1 else each.contiguous() for each in logits]
    first, second, third = rows + rows[:1] * (3 - len(rows))
    num_rows, vocab_size = first.shape
    ids_BH = torch.zeros(num_rows, HEAD_WIDTH, dtype=torch.int64, device=first.device)
    logprobs_KBH = torch.zeros(len(rows), num_rows, HEAD_WIDTH, dtype=torch.float32, device=first.device)
    sizes_B = torch.empty(num_rows, dtype=torch.int64, device=first.device)
    find_heads_kernel[(num_rows,)](
        first,
        second,
        third,
        first.stride(0),
        second.stride(0),
        third.stride(0),
        head_log_lambda_B,
        ids_BH,
        logprobs_KBH,
        sizes_B,
        num_rows,
        vocab_size,
        NUM_NETWORKS=len(rows),
        WIDTH=HEAD_WIDTH,
        TILE=_TILE,
        num_warps=8,
    )
    return Heads(ids_BH, logprobs_KBH, sizes_B)
