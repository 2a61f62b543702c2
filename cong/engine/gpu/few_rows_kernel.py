"""The Triton kernel of a product of few rows, whose programs share out the inputs too.

Importing this needs triton. Legend: S networks, N rows, I and O widths of a product, M rows of a tile, B inputs read
together, T outputs of a tile.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows", "num_parts", "blocks_of_part"])
def product_kernel(
    hidden_SNI,
    weight_SIO,
    bias_SO,
    out_SNO,
    parts,
    arrivals,
    num_rows,
    num_inputs,
    num_outputs,
    num_parts,
    blocks_of_part,
    HAS_PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """One part of one tile; with the last of them to be through, the tile."""
    tile, part = tl.program_id(0), tl.program_id(1)
    network = tl.program_id(2).to(tl.int64)
    row_M = tl.arange(0, ROWS)
    output_T = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    is_row_M, is_output_T = row_M < num_rows, output_T < num_outputs
    hidden_row_M = hidden_SNI + (network * num_rows + row_M) * num_inputs
    weight = weight_SIO + network * num_inputs * num_outputs
    total_MT = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    first = part * blocks_of_part * INPUTS
    for start in range(first, tl.minimum(first + blocks_of_part * INPUTS, num_inputs), INPUTS):
        input_B = start + tl.arange(0, INPUTS)
        is_input_B = input_B < num_inputs
        hidden_MB = tl.load(
            hidden_row_M[:, None] + input_B[None, :], mask=is_row_M[:, None] & is_input_B[None, :], other=0.0
        )
        # Read once, and not to push out what is read again.
        weight_BT = tl.load(
            weight + input_B[:, None].to(tl.int64) * num_outputs + output_T[None, :],
            mask=is_input_B[:, None] & is_output_T[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        total_MT = tl.dot(hidden_MB, weight_BT, total_MT)
    cell_MT = row_M[:, None] * num_outputs + output_T[None, :]
    is_cell_MT = is_row_M[:, None] & is_output_T[None, :]
    is_last = True
    if HAS_PARTS:
        size = num_rows * num_outputs
        own = parts + network * num_parts * size
        tl.store(own + part * size + cell_MT, total_MT, mask=is_cell_MT)
        tl.debug_barrier()  # every thread's numbers are there before the arrival is told
        arrival = arrivals + network * tl.num_programs(0) + tile
        is_last = tl.atomic_add(arrival, 1, sem="acq_rel") == num_parts - 1
        if is_last:
            # In the order of the parts, whoever came last: the same every time.
            total_MT = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
            for other in range(num_parts):
                # Past the first cache, which does not see what other processors write.
                total_MT += tl.load(own + other * size + cell_MT, mask=is_cell_MT, other=0.0, cache_modifier=".cg")
            tl.store(arrival, 0)
    if is_last:
        if HAS_BIAS:
            bias_T = tl.load(bias_SO + network * num_outputs + output_T, mask=is_output_T, other=0.0)
            total_MT += bias_T.to(tl.float32)[None, :]
        out = out_SNO + network * num_rows * num_outputs
        tl.store(out + cell_MT, total_MT.to(out_SNO.dtype.element_ty), mask=is_cell_MT)
