"""Triton kernels of paged attention: keep keys and values, attend tile by tile, join the parts of a long context.

Importing this needs triton. Legend: S networks of a stack, Q query heads, H key-value heads, G query heads of one
key-value head, N tokens of a step, D head width. A tile is a few consecutive tokens of one sequence; the kernels find
the keys of a sequence through its row of the block table.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["table_stride"])
def keep_kernel(
    key,
    value,
    keys,
    values,
    table,
    sequence_N,
    position_N,
    num_heads,
    key_stride_s,
    key_stride_h,
    key_stride_n,
    value_stride_s,
    value_stride_h,
    value_stride_n,
    table_stride,
    PAGE: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One token's key and value of one head of one network to their place."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)  # of all networks
    network, own_head = head // num_heads, head % num_heads
    position = tl.load(position_N + token).to(tl.int64)
    sequence = tl.load(sequence_N + token).to(tl.int64)
    place = tl.load(table + sequence * table_stride + position // PAGE).to(tl.int64)
    row = (place * tl.num_programs(1) + head) * PAGE + position % PAGE
    column = tl.arange(0, WIDTH)
    key_row = key + network * key_stride_s + own_head * key_stride_h + token * key_stride_n
    number = tl.load(key_row + column, mask=column < KEY_WIDTH)
    tl.store(keys + row * KEY_WIDTH + column, number, mask=column < KEY_WIDTH)
    value_row = value + network * value_stride_s + own_head * value_stride_h + token * value_stride_n
    number = tl.load(value_row + column, mask=column < VALUE_WIDTH)
    tl.store(values + row * VALUE_WIDTH + column, number, mask=column < VALUE_WIDTH)


@triton.jit
def tanh(x):
    """From the exponential, and near 0, where that cancels, from the series."""
    size = tl.abs(x)
    decay = tl.exp(-2.0 * size)
    far = (1.0 - decay) / (1.0 + decay)
    square = x * x
    near = size * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * 17.0 / 315.0)))
    value = tl.where(size < 0.2, near, far)
    return tl.where(x < 0.0, -value, value)


@triton.jit(do_not_specialize=["num_rows", "table_stride", "num_splits"])  # they change from step to step
def attend_kernel(
    query,
    key,
    value,
    keys,
    values,
    out,
    part_sum,
    part_max,
    part_total,
    table,
    row_T,
    count_T,
    first_T,
    sequence_T,
    num_heads,
    num_rows,
    query_stride_s,
    query_stride_q,
    query_stride_n,
    key_stride_s,
    key_stride_h,
    key_stride_n,
    value_stride_s,
    value_stride_h,
    value_stride_n,
    table_stride,
    num_splits,
    scaling,
    softcap,
    window,
    PAGE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    KEY_WIDTH_PADDED: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUE_WIDTH_PADDED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    KEEPS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """A tile's queries of one key-value head of one network against one share of the tile's context.

    A row of the products is one query head of one token. Where nothing is split the answer is final; otherwise each
    share leaves its weighted sum, its largest score and its total weight. With KEEPS, tile n is the nth sequence's one
    token: its own key and value are kept here, and the first share begins with them instead of reading them back.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1)  # of all networks
    split = tl.program_id(2)
    network, own_head = head // num_heads, head % num_heads
    first = tl.load(first_T + tile).to(tl.int32)
    if KEEPS:
        row, count, sequence = tile.to(tl.int64), 1, tile.to(tl.int64)
    else:
        row = tl.load(row_T + tile).to(tl.int64)
        count = tl.load(count_T + tile).to(tl.int32)
        sequence = tl.load(sequence_T + tile).to(tl.int64)

    number_M = tl.arange(0, TOKENS * GROUP_PADDED)
    token_M, member_M = number_M // GROUP_PADDED, number_M % GROUP_PADDED
    is_row_M = (token_M < count) & (member_M < GROUP)
    query_head_M = own_head * GROUP + member_M
    column_D = tl.arange(0, KEY_WIDTH_PADDED)
    column_E = tl.arange(0, VALUE_WIDTH_PADDED)
    query_MD = tl.load(
        query
        + network * query_stride_s
        + query_head_M[:, None] * query_stride_q
        + (row + token_M)[:, None] * query_stride_n
        + column_D[None, :],
        mask=is_row_M[:, None] & (column_D < KEY_WIDTH)[None, :],
        other=0.0,
    )
    position_M = first + token_M

    start, stop = 0, first + count
    if HAS_WINDOW:
        start = tl.maximum(first - window + 1, 0)
    if KEEPS:
        stop = first
    begin, end = start, stop
    if IS_SPLIT:
        share = tl.cdiv(tl.cdiv(stop - start, num_splits), KEYS) * KEYS
        begin = start + split * share
        end = tl.minimum(begin + share, stop)

    max_M = tl.full([TOKENS * GROUP_PADDED], float("-inf"), tl.float32)
    total_M = tl.zeros([TOKENS * GROUP_PADDED], tl.float32)
    sum_ME = tl.zeros([TOKENS * GROUP_PADDED, VALUE_WIDTH_PADDED], tl.float32)
    page_stride = tl.num_programs(1) * PAGE
    table += sequence * table_stride
    number_C = tl.arange(0, KEYS)
    # Places are looked up an iteration before their keys are read: a chain of two loads would not be read ahead.
    page_C = (begin + number_C) // PAGE
    place_C = tl.load(table + page_C, mask=page_C < table_stride, other=0)
    if KEEPS:  # noqa: SIM102 a constant leaves out what follows; with `and` it would be compiled all the same
        if split == 0:
            key += network * key_stride_s + own_head * key_stride_h + row * key_stride_n
            value += network * value_stride_s + own_head * value_stride_h + row * value_stride_n
            key_D = tl.load(key + column_D, mask=column_D < KEY_WIDTH, other=0.0)
            value_E = tl.load(value + column_E, mask=column_E < VALUE_WIDTH, other=0.0)
            place = tl.load(table + first // PAGE).to(tl.int64)
            line = place * page_stride + head * PAGE + first % PAGE
            tl.store(keys + line * KEY_WIDTH + column_D, key_D, mask=column_D < KEY_WIDTH)
            tl.store(values + line * VALUE_WIDTH + column_E, value_E, mask=column_E < VALUE_WIDTH)
            max_M = tl.sum(query_MD.to(tl.float32) * key_D.to(tl.float32)[None, :], 1) * scaling
            if HAS_SOFTCAP:
                max_M = softcap * tanh(max_M / softcap)
            total_M += 1.0
            sum_ME += value_E.to(tl.float32)[None, :]

    for offset in range(begin, end, KEYS):
        position_C = offset + number_C
        is_there_C = position_C < end
        line_C = place_C.to(tl.int64) * page_stride + head * PAGE + position_C % PAGE
        place_C = tl.load(table + (position_C + KEYS) // PAGE, mask=position_C + KEYS < end, other=0)
        key_DC = tl.load(
            keys + line_C[None, :] * KEY_WIDTH + column_D[:, None],
            mask=is_there_C[None, :] & (column_D < KEY_WIDTH)[:, None],
            other=0.0,
        )
        score_MC = tl.dot(query_MD, key_DC, input_precision="ieee") * scaling
        if HAS_SOFTCAP:
            score_MC = softcap * tanh(score_MC / softcap)
        is_seen_MC = is_there_C[None, :] & (position_C[None, :] <= position_M[:, None])
        if HAS_WINDOW:
            is_seen_MC = is_seen_MC & (position_C[None, :] > position_M[:, None] - window)
        score_MC = tl.where(is_seen_MC, score_MC, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(score_MC, 1))
        safe_max_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)
        weight_MC = tl.exp(score_MC - safe_max_M[:, None])
        decay_M = tl.exp(max_M - safe_max_M)
        total_M = total_M * decay_M + tl.sum(weight_MC, 1)
        value_CE = tl.load(
            values + line_C[:, None] * VALUE_WIDTH + column_E[None, :],
            mask=is_there_C[:, None] & (column_E < VALUE_WIDTH)[None, :],
            other=0.0,
        )
        sum_ME = sum_ME * decay_M[:, None]
        sum_ME = tl.dot(weight_MC.to(value_CE.dtype), value_CE, sum_ME, input_precision="ieee")
        max_M = new_max_M

    num_query_heads = num_heads * GROUP
    slot_M = (network * num_rows + row + token_M) * num_query_heads + query_head_M  # of out [S, N, Q]
    is_cell_ME = is_row_M[:, None] & (column_E < VALUE_WIDTH)[None, :]
    if not IS_SPLIT:
        mixed_ME = sum_ME / tl.where(total_M == 0.0, 1.0, total_M)[:, None]
        tl.store(
            out + slot_M[:, None] * VALUE_WIDTH + column_E[None, :], mixed_ME.to(out.dtype.element_ty), mask=is_cell_ME
        )
    else:
        part_M = slot_M * num_splits + split
        tl.store(part_sum + part_M[:, None] * VALUE_WIDTH + column_E[None, :], sum_ME, mask=is_cell_ME)
        tl.store(part_max + part_M, max_M, mask=is_row_M)
        tl.store(part_total + part_M, total_M, mask=is_row_M)


@triton.jit(do_not_specialize=["num_rows"])
def join_kernel(
    out,
    part_sum,
    part_max,
    part_total,
    row_T,
    num_rows,
    num_query_heads,
    VALUE_WIDTH: tl.constexpr,
    VALUE_WIDTH_PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The shares of one query head of one token as one answer."""
    row = tl.load(row_T + tl.program_id(0)).to(tl.int64)
    head = tl.program_id(1)  # of all networks
    network, own_head = head // num_query_heads, head % num_query_heads
    slot = (network * num_rows + row) * num_query_heads + own_head
    share_P = slot * SPLITS + tl.arange(0, SPLITS)
    max_P = tl.load(part_max + share_P)
    weight_P = tl.exp(max_P - tl.max(max_P, 0))
    total = tl.sum(tl.load(part_total + share_P) * weight_P, 0)
    column_E = tl.arange(0, VALUE_WIDTH_PADDED)
    sum_PE = tl.load(
        part_sum + share_P[:, None] * VALUE_WIDTH + column_E[None, :],
        mask=(column_E < VALUE_WIDTH)[None, :],
        other=0.0,
    )
    mixed_E = tl.sum(sum_PE * weight_P[:, None], 0) / total
    tl.store(out + slot * VALUE_WIDTH + column_E, mixed_E.to(out.dtype.element_ty), mask=column_E < VALUE_WIDTH)
