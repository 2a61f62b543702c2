"""A matrix product of few rows on a GPU whose programs share out the inputs too: a candidate, measured and not used.

With few rows and few outputs there are fewer tiles than processors, and none of them alone reads as fast as memory can
give. Here several programs compute a tile, each from a part of the inputs; whoever is through last adds the parts up,
in their order, so that a product is the same every time. Importing this needs triton. Legend: S networks, N rows, I and
O widths of a product, M rows of a tile, B inputs read together, T outputs of a tile.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_ROWS = 64


@dataclass(frozen=True)
class Plan:
    """How a product is shared out."""

    num_parts: int
    tile_outputs: int = 64
    block_inputs: int = 64
    num_stages: int = 4


PLANS = (*(Plan(num_parts) for num_parts in (1, 2, 4, 8)), *(Plan(num_parts, 32) for num_parts in (1, 2, 4)))


@triton.jit(do_not_specialize=["blocks_of_part"])
def product_kernel(
    hidden_SNI,
    weight_SIO,
    out_SNO,
    parts,
    arrivals,
    num_rows,
    num_inputs,
    num_outputs,
    blocks_of_part,
    NUM_PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """One part of one tile; with the last of them, the tile."""
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
        weight_BT = tl.load(
            weight + input_B[:, None] * num_outputs + output_T[None, :],
            mask=is_input_B[:, None] & is_output_T[None, :],
            other=0.0,
        )
        total_MT = tl.dot(hidden_MB, weight_BT, total_MT)
    cell_MT = row_M[:, None] * num_outputs + output_T[None, :]
    is_cell_MT = is_row_M[:, None] & is_output_T[None, :]
    is_last = True
    if NUM_PARTS > 1:
        size = num_rows * num_outputs
        own = parts + network * NUM_PARTS * size
        tl.store(own + part * size + cell_MT, total_MT, mask=is_cell_MT)
        tl.debug_barrier()  # every thread's numbers are there before the arrival is told
        arrival = arrivals + network * tl.num_programs(0) + tile
        is_last = tl.atomic_add(arrival, 1, sem="acq_rel") == NUM_PARTS - 1
        if is_last:
            total_MT = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
            for other in range(NUM_PARTS):
                # Past the first cache, which does not see what other processors write.
                total_MT += tl.load(own + other * size + cell_MT, mask=is_cell_MT, other=0.0, cache_modifier=".cg")
            tl.store(arrival, 0)
    if is_last:
        out = out_SNO + network * num_rows * num_outputs
        tl.store(out + cell_MT, total_MT.to(out_SNO.dtype.element_ty), mask=is_cell_MT)


class FewRows:
    """The product under one plan, and the memory in which programs meet: one product at a time uses it."""

    def __init__(self, plan: Plan, like_SIO: Tensor) -> None:
        num_networks, _, num_outputs = like_SIO.shape
        self.plan = plan
        self._parts = like_SIO.new_empty(num_networks * plan.num_parts * MAX_ROWS * num_outputs, dtype=torch.float32)
        self._num_tiles = -(-num_outputs // plan.tile_outputs)
        self._arrivals = like_SIO.new_zeros(num_networks * self._num_tiles, dtype=torch.int32)

    def __call__(self, hidden_SNI: Tensor, weight_SIO: Tensor) -> Tensor:
        """[S, N, I] times [S, I, O], both contiguous, of up to 64 rows."""
        (num_networks, num_rows, num_inputs), num_outputs = hidden_SNI.shape, weight_SIO.shape[2]
        assert num_rows <= MAX_ROWS
        assert hidden_SNI.is_contiguous()
        assert weight_SIO.is_contiguous()
        plan = self.plan
        out_SNO = hidden_SNI.new_empty(num_networks, num_rows, num_outputs)
        product_kernel[self._num_tiles, plan.num_parts, num_networks](
            hidden_SNI,
            weight_SIO,
            out_SNO,
            self._parts,
            self._arrivals,
            num_rows,
            num_inputs,
            num_outputs,
            -(-num_inputs // (plan.block_inputs * plan.num_parts)),
            NUM_PARTS=plan.num_parts,
            ROWS=max(16, triton.next_power_of_2(num_rows)),
            INPUTS=plan.block_inputs,
            OUTPUTS=plan.tile_outputs,
            num_stages=plan.num_stages,
        )
        return out_SNO
