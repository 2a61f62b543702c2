"""A Triton kernel that finds head sets: every network's normaliser, then the head tokens by ascending id.

Importing this needs triton. Legend: K networks, B rows, V tokens of the vocabulary, H columns for head tokens.
"""

import triton
import triton.language as tl


@triton.jit
def find_heads_kernel(
    first_logits,
    second_logits,
    third_logits,
    first_stride,
    second_stride,
    third_stride,
    head_log_lambda_B,
    ids_BH,
    logprobs_KBH,
    sizes_B,
    num_rows,
    vocab_size,
    NUM_NETWORKS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """One row: one walk over all logits for the normalisers, another over the first network's for the head set."""
    row = tl.program_id(0).to(tl.int64)
    first_row = first_logits + row * first_stride
    second_row = second_logits + row * second_stride
    third_row = third_logits + row * third_stride

    first_max, first_total = -float("inf"), 0.0
    second_max, second_total = -float("inf"), 0.0
    third_max, third_total = -float("inf"), 0.0
    for start in range(0, vocab_size, TILE):
        token_T = start + tl.arange(0, TILE)
        is_token_T = token_T < vocab_size
        z_T = tl.load(first_row + token_T, mask=is_token_T, other=float("-inf")).to(tl.float32)
        new_max = tl.maximum(first_max, tl.max(z_T, 0))
        first_total = first_total * tl.exp(first_max - new_max) + tl.sum(tl.exp(z_T - new_max), 0)
        first_max = new_max
        if NUM_NETWORKS > 1:
            z_T = tl.load(second_row + token_T, mask=is_token_T, other=float("-inf")).to(tl.float32)
            new_max = tl.maximum(second_max, tl.max(z_T, 0))
            second_total = second_total * tl.exp(second_max - new_max) + tl.sum(tl.exp(z_T - new_max), 0)
            second_max = new_max
        if NUM_NETWORKS > 2:
            z_T = tl.load(third_row + token_T, mask=is_token_T, other=float("-inf")).to(tl.float32)
            new_max = tl.maximum(third_max, tl.max(z_T, 0))
            third_total = third_total * tl.exp(third_max - new_max) + tl.sum(tl.exp(z_T - new_max), 0)
            third_max = new_max

    # As in the plain rule: both sides of the comparison are log-probabilities in float32.
    first_log_total = tl.log(first_total)
    threshold = (first_max - first_max - first_log_total) + tl.load(head_log_lambda_B + row)
    size = 0
    for start in range(0, vocab_size, TILE):
        token_T = start + tl.arange(0, TILE)
        is_token_T = token_T < vocab_size
        z_T = tl.load(first_row + token_T, mask=is_token_T, other=float("-inf")).to(tl.float32)
        logprob_T = z_T - first_max - first_log_total
        is_head_T = is_token_T & (logprob_T >= threshold)
        number_T = is_head_T.to(tl.int32)
        count = tl.sum(number_T, 0)
        if count > 0:
            column_T = size + tl.cumsum(number_T, 0) - 1
            is_kept_T = is_head_T & (column_T < WIDTH)
            cell_T = row * WIDTH + column_T
            tl.store(ids_BH + cell_T, token_T.to(tl.int64), mask=is_kept_T)
            tl.store(logprobs_KBH + cell_T, logprob_T, mask=is_kept_T)
            if NUM_NETWORKS > 1:
                z_T = tl.load(second_row + token_T, mask=is_kept_T, other=0.0).to(tl.float32)
                logprob_T = z_T - second_max - tl.log(second_total)
                tl.store(logprobs_KBH + num_rows * WIDTH + cell_T, logprob_T, mask=is_kept_T)
            if NUM_NETWORKS > 2:
                z_T = tl.load(third_row + token_T, mask=is_kept_T, other=0.0).to(tl.float32)
                logprob_T = z_T - third_max - tl.log(third_total)
                tl.store(logprobs_KBH + 2 * num_rows * WIDTH + cell_T, logprob_T, mask=is_kept_T)
            size += count
    tl.store(sizes_B + row, size)
