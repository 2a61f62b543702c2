"""Triton kernels of drawing: find every row's head set, then draw from it.

Importing this needs triton. Legend: K networks, B rows, V tokens of the vocabulary, P parts of it, H columns for the
tokens of a head set by ascending id.
"""

import triton
import triton.language as tl


@triton.jit
def sum_kernel(
    first_logits,
    second_logits,
    third_logits,
    first_stride,
    second_stride,
    third_stride,
    max_BKP,
    total_BKP,
    vocab_size,
    NUM_NETWORKS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    PART: tl.constexpr,
):
    """The largest logit of one part of one row of one network, and the sum of exponentials relative to it."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    network = tl.program_id(2)
    logits = first_logits + row * first_stride
    if network == 1:
        logits = second_logits + row * second_stride
    if network == 2:
        logits = third_logits + row * third_stride
    token_T = part * PART + tl.arange(0, PART)
    z_T = tl.load(logits + token_T, mask=token_T < vocab_size, other=float("-inf")).to(tl.float32)
    largest = tl.max(z_T, 0)
    cell = (row * NUM_NETWORKS + network) * NUM_PARTS + part
    tl.store(max_BKP + cell, largest)
    reference = tl.where(largest == float("-inf"), 0.0, largest)  # a part of impossible tokens alone
    tl.store(total_BKP + cell, tl.sum(tl.exp(z_T - reference), 0))


@triton.jit
def log_total(max_BKP, total_BKP, cell, NUM_PARTS: tl.constexpr, NUM_PARTS_PADDED: tl.constexpr):
    """A row's largest logit under one network, and the log of its sum of exponentials relative to it."""
    part_P = tl.arange(0, NUM_PARTS_PADDED)
    is_part_P = part_P < NUM_PARTS
    max_P = tl.load(max_BKP + cell + part_P, mask=is_part_P, other=float("-inf"))
    total_P = tl.load(total_BKP + cell + part_P, mask=is_part_P, other=0.0)
    largest = tl.max(max_P, 0)
    return largest, tl.log(tl.sum(total_P * tl.exp(max_P - largest), 0))


@triton.jit
def head_of_part(
    logits,
    head_log_lambda_B,
    max_BKP,
    total_BKP,
    vocab_size,
    NUM_NETWORKS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PARTS_PADDED: tl.constexpr,
    PART: tl.constexpr,
):
    """Which tokens of this program's part of its row are in the head set, and the first network's log-probs of all."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cell = row * NUM_NETWORKS * NUM_PARTS
    largest, log = log_total(max_BKP, total_BKP, cell, NUM_PARTS, NUM_PARTS_PADDED)
    # As in the plain rule, both sides of the comparison are log-probabilities in float32.
    threshold = tl.load(head_log_lambda_B + row) - log
    best = tl.load(max_BKP + cell + part) - largest - log
    token_T = part * PART + tl.arange(0, PART)
    is_read_T = token_T < tl.where(best >= threshold, vocab_size, 0)  # parts that have none are not read
    logprob_T = tl.load(logits + token_T, mask=is_read_T, other=float("-inf")).to(tl.float32) - largest - log
    return is_read_T & (logprob_T >= threshold), logprob_T


@triton.jit
def count_kernel(
    logits,
    stride,
    head_log_lambda_B,
    max_BKP,
    total_BKP,
    count_BP,
    vocab_size,
    NUM_NETWORKS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PARTS_PADDED: tl.constexpr,
    PART: tl.constexpr,
):
    """How many tokens of one part of one row are in its head set."""
    row = tl.program_id(0).to(tl.int64)
    is_head_T, _ = head_of_part(
        logits + row * stride,
        head_log_lambda_B,
        max_BKP,
        total_BKP,
        vocab_size,
        NUM_NETWORKS,
        NUM_PARTS,
        NUM_PARTS_PADDED,
        PART,
    )
    tl.store(count_BP + row * NUM_PARTS + tl.program_id(1), tl.sum(is_head_T.to(tl.int32), 0))


@triton.jit(do_not_specialize=["num_rows"])
def find_kernel(
    first_logits,
    second_logits,
    third_logits,
    first_stride,
    second_stride,
    third_stride,
    head_log_lambda_B,
    max_BKP,
    total_BKP,
    count_BP,
    ids_BH,
    logprobs_KBH,
    sizes_B,
    num_rows,
    vocab_size,
    NUM_NETWORKS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_PARTS_PADDED: tl.constexpr,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The head set of one part of one row, to its columns: behind those of the parts before it."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part_P = tl.arange(0, NUM_PARTS_PADDED)
    count_P = tl.load(count_BP + row * NUM_PARTS + part_P, mask=part_P < NUM_PARTS, other=0)
    if part == 0:
        tl.store(sizes_B + row, tl.sum(count_P, 0).to(tl.int64))
    start = tl.sum(tl.where(part_P < part, count_P, 0), 0)
    count = tl.load(count_BP + row * NUM_PARTS + part)
    if count > 0 and start < WIDTH:
        is_head_T, logprob_T = head_of_part(
            first_logits + row * first_stride,
            head_log_lambda_B,
            max_BKP,
            total_BKP,
            vocab_size,
            NUM_NETWORKS,
            NUM_PARTS,
            NUM_PARTS_PADDED,
            PART,
        )
        token_T = part * PART + tl.arange(0, PART)
        column_T = start + tl.cumsum(is_head_T.to(tl.int32), 0) - 1
        is_kept_T = is_head_T & (column_T < WIDTH)
        place_T = row * WIDTH + column_T
        tl.store(ids_BH + place_T, token_T.to(tl.int64), mask=is_kept_T)
        tl.store(logprobs_KBH + place_T, logprob_T, mask=is_kept_T)
        cell = row * NUM_NETWORKS * NUM_PARTS
        if NUM_NETWORKS > 1:
            largest, log = log_total(max_BKP, total_BKP, cell + NUM_PARTS, NUM_PARTS, NUM_PARTS_PADDED)
            z_T = tl.load(second_logits + row * second_stride + token_T, mask=is_kept_T, other=0.0)
            tl.store(logprobs_KBH + num_rows * WIDTH + place_T, z_T.to(tl.float32) - largest - log, mask=is_kept_T)
        if NUM_NETWORKS > 2:
            largest, log = log_total(max_BKP, total_BKP, cell + 2 * NUM_PARTS, NUM_PARTS, NUM_PARTS_PADDED)
            z_T = tl.load(third_logits + row * third_stride + token_T, mask=is_kept_T, other=0.0)
            tl.store(logprobs_KBH + 2 * num_rows * WIDTH + place_T, z_T.to(tl.float32) - largest - log, mask=is_kept_T)


@triton.jit
def log_softmax(score_H):
    """Of scores of which at least one is finite."""
    largest = tl.max(score_H, 0)
    return score_H - largest - tl.log(tl.sum(tl.exp(score_H - largest), 0))


@triton.jit
def keep_top(logq_H, probs_H, numbers, num_held, WIDTH: tl.constexpr, OTHERS: tl.constexpr):
    """Log-probabilities after a row's top-k and top-p; `probs_H` is room for as many numbers.

    A token's rank and the mass before it come from comparing it with every other; equal ones go by id.
    """
    column_H = tl.arange(0, WIDTH)
    top_k = tl.load(numbers + 2)
    top_p = tl.load(numbers + 3).to(tl.float64)
    prob_H = tl.exp(logq_H)
    tl.store(probs_H + column_H, prob_H)
    tl.debug_barrier()
    rank_H = tl.zeros([WIDTH], tl.int32)
    for start in range(0, num_held, OTHERS):
        other_O = start + tl.arange(0, OTHERS)
        prob_O = tl.load(probs_H + other_O, mask=other_O < num_held, other=0.0)
        is_more_HO = prob_O[None, :] > prob_H[:, None]
        is_equal_HO = (prob_O[None, :] == prob_H[:, None]) & (other_O[None, :] < column_H[:, None])
        is_before_HO = (is_more_HO | is_equal_HO) & (other_O < num_held)[None, :]
        rank_H += tl.sum(is_before_HO.to(tl.int32), 1)
    is_kept_H = (prob_H > 0.0) & (rank_H.to(tl.float32) < top_k)
    prob_H = tl.where(is_kept_H, prob_H, 0.0)
    tl.debug_barrier()
    tl.store(probs_H + column_H, prob_H)
    tl.debug_barrier()
    before_H = tl.zeros([WIDTH], tl.float64)
    for start in range(0, num_held, OTHERS):
        other_O = start + tl.arange(0, OTHERS)
        prob_O = tl.load(probs_H + other_O, mask=other_O < num_held, other=0.0)
        is_more_HO = prob_O[None, :] > prob_H[:, None]
        is_equal_HO = (prob_O[None, :] == prob_H[:, None]) & (other_O[None, :] < column_H[:, None])
        before_H += tl.sum(tl.where(is_more_HO | is_equal_HO, prob_O[None, :].to(tl.float64), 0.0), 1)
    total = tl.sum(prob_H.to(tl.float64), 0)
    # Beyond every possible mass where the row has no top-p.
    limit = tl.where(top_p >= 1.0, 2.0, top_p) * total
    is_kept_H = is_kept_H & (before_H < limit)
    return log_softmax(tl.where(is_kept_H, logq_H, float("-inf")))


@triton.jit(do_not_specialize=["num_rows", "has_penalty", "has_banned", "has_exempt", "has_top"])
def draw_kernel(
    ids_BH,
    logprobs_KBH,
    sizes_B,
    numbers_BF,
    uniform_B,
    is_seen_BV,
    is_banned_BV,
    is_exempt_BV,
    probs_BH,
    record_BR,
    num_rows,
    vocab_size,
    has_penalty,
    has_banned,
    has_exempt,
    has_top,
    NUM_NETWORKS: tl.constexpr,
    NUM_NUMBERS: tl.constexpr,
    WIDTH: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """One row: scores, penalty, temperature, top-k and top-p, the draw, and its record.

    The row's numbers are floor, temperature (0 = greedy), top-k, top-p, penalty, its rule (0 additive, 1
    multiplicative, 2 reference), then the networks' weights. What rows ask for, 1 or 0, is no constant: the first
    request that asks for something else would wait for a compilation.
    """
    row = tl.program_id(0).to(tl.int64)
    numbers = numbers_BF + row * NUM_NUMBERS
    floor = tl.load(numbers)
    temperature = tl.load(numbers + 1)
    is_greedy = temperature == 0.0
    size = tl.load(sizes_B + row).to(tl.int32)
    # What a set that does not fit draws is not used, but must not read beyond its row.
    num_held = tl.minimum(size, WIDTH)
    column_H = tl.arange(0, WIDTH)
    is_there_H = column_H < num_held
    cell_H = row * WIDTH + column_H
    id_H = tl.load(ids_BH + cell_H, mask=is_there_H, other=0)
    anchor_H = tl.load(logprobs_KBH + cell_H, mask=is_there_H, other=0.0)
    # A mask that nobody gave is not read.
    is_exempt_H = tl.load(is_exempt_BV + row * vocab_size + id_H, mask=column_H < num_held * has_exempt, other=0) != 0
    is_banned_H = tl.load(is_banned_BV + row * vocab_size + id_H, mask=column_H < num_held * has_banned, other=0) != 0

    score_H = tl.load(numbers + 6) * anchor_H
    shift = 0.0
    for network in tl.static_range(1, NUM_NETWORKS):
        plain_H = tl.load(logprobs_KBH + network * num_rows * WIDTH + cell_H, mask=is_there_H, other=0.0)
        other_H = tl.where(is_exempt_H, anchor_H, plain_H)
        weight = tl.load(numbers + 6 + network)
        score_H = score_H + weight * tl.maximum(other_H, floor)
        if has_penalty != 0:
            inside = tl.sum(tl.where(is_there_H, tl.exp(plain_H), 0.0), 0)
            outside = (vocab_size - size).to(tl.float32) * 0.99900049983337499  # e ** -0.001
            shift -= weight * tl.log(inside + outside)
    score_H = tl.where(is_there_H, score_H, float("-inf"))

    if has_penalty != 0:
        penalty = tl.load(numbers + 4)
        rule = tl.load(numbers + 5)
        is_seen_H = tl.load(is_seen_BV + row * vocab_size + id_H, mask=is_there_H, other=0) != 0
        shifted_H = score_H + tl.where(rule == 2.0, shift, 0.0)
        multiplied_H = tl.where(shifted_H > 0.0, shifted_H / penalty, shifted_H * penalty)
        penalized_H = tl.where(rule != 0.0, multiplied_H, score_H - tl.log(penalty))
        score_H = tl.where(is_seen_H & is_there_H, penalized_H, tl.where(rule != 0.0, shifted_H, score_H))
    allowed_H = tl.where(is_banned_H, float("-inf"), score_H)
    score_H = tl.where(tl.max(allowed_H, 0) == float("-inf"), score_H, allowed_H)

    logq_H = log_softmax(score_H / tl.where(is_greedy, 1.0, temperature))
    told = tl.sum(logq_H, 0)  # not a number where logits are none
    if has_top != 0:
        logq_H = keep_top(logq_H, probs_BH + row * WIDTH, numbers, num_held, WIDTH, OTHERS)

    best = tl.min(tl.where(score_H == tl.max(score_H, 0), column_H, WIDTH), 0)
    logq_H = tl.where(is_greedy, tl.where(column_H == best, 0.0, float("-inf")), logq_H)
    cumulative_H = tl.cumsum(tl.exp(logq_H).to(tl.float64), 0)
    total = tl.max(cumulative_H, 0)
    target = tl.load(uniform_B + row) * total
    found = tl.min(tl.where(cumulative_H > target, column_H, WIDTH), 0)
    last = tl.min(tl.where(cumulative_H >= total, column_H, WIDTH), 0)
    chosen = tl.minimum(found, last)

    is_chosen_H = column_H == chosen
    token = tl.sum(tl.where(is_chosen_H, id_H, 0), 0)
    record = record_BR + row * (3 + NUM_NETWORKS)
    tl.store(record, token.to(tl.float64))
    tl.store(record + 1, size.to(tl.float64))
    mixture = tl.sum(tl.where(is_chosen_H, logq_H, 0.0), 0)
    tl.store(record + 2, tl.where(told == told, mixture, told).to(tl.float64))
    for network in tl.static_range(0, NUM_NETWORKS):
        logprob_H = tl.load(
            logprobs_KBH + network * num_rows * WIDTH + cell_H, mask=is_chosen_H & is_there_H, other=0.0
        )
        tl.store(record + 3 + network, tl.sum(logprob_H, 0).to(tl.float64))
