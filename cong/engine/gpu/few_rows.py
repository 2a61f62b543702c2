"""Products of few rows on a GPU whose programs share out the inputs too.

With few rows and few outputs there are fewer tiles than processors, and none of them alone reads as fast as memory can
give. Here several programs compute a tile, each from a part of the inputs; whoever is through last adds the parts up,
in their order, so that a product is the same every time. Legend: S networks, N rows, I and O widths of a product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cong.engine.stack import StackedLinear

ROW_LIMITS = (16, 32, 64)
"""A kernel each, for products of up to so many rows; larger ones are torch's."""
_BLOCK_INPUTS = 64
_NUM_STAGES = 4


@dataclass(frozen=True)
class Plan:
    """How a product is shared out."""

    tile_outputs: int
    num_parts: int

    def __str__(self) -> str:
        return f"{self.num_parts} parts of {self.tile_outputs} outputs"


Plans = tuple[Plan | None, ...]
"""One for each of ROW_LIMITS; None = torch's own product."""


def plans_for(like_SIO: Tensor, num_processors: int) -> list[Plan]:
    """Those that give every processor a program or a few, none of them a part of less than two blocks of inputs."""
    num_networks, num_inputs, num_outputs = like_SIO.shape
    longest = max(1, num_inputs // (2 * _BLOCK_INPUTS))
    found: dict[Plan, None] = {}
    for tile_outputs in (32, 64):
        num_tiles = num_networks * -(-num_outputs // tile_outputs)
        for num_programs in (1, 2, 4):
            num_parts = max(1, round(num_programs * num_processors / num_tiles))
            found[Plan(tile_outputs, min(num_parts, longest))] = None
    return list(found)


class Workspace:
    """Memory in which the programs of a product meet: one product at a time uses it."""

    def __init__(self, device: torch.device) -> None:
        self.parts = torch.zeros(0, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(0, dtype=torch.int32, device=device)

    def make_room(self, plan: Plan, like_SIO: Tensor) -> None:
        """Before anything is captured that uses it."""
        if plan.num_parts == 1:
            return
        num_networks, _, num_outputs = like_SIO.shape
        num_numbers = num_networks * plan.num_parts * ROW_LIMITS[-1] * num_outputs
        num_tiles = num_networks * -(-num_outputs // plan.tile_outputs)
        if num_numbers > len(self.parts):
            self.parts = self.parts.new_zeros(num_numbers)
        if num_tiles > len(self.arrivals):
            self.arrivals = self.arrivals.new_zeros(num_tiles)


def multiply(
    hidden_SNI: Tensor, weight_SIO: Tensor, bias_S1O: Tensor | None, plan: Plan, parts: Tensor, arrivals: Tensor
) -> Tensor:
    """[S, N, I] times [S, I, O] under a plan; `parts` and `arrivals` are a workspace's."""

    from cong.engine.gpu.few_rows_kernel import product_kernel

    (num_networks, num_rows, num_inputs), num_outputs = hidden_SNI.shape, weight_SIO.shape[2]
    hidden_SNI = hidden_SNI.contiguous()
    out_SNO = hidden_SNI.new_empty(num_networks, num_rows, num_outputs)
    product_kernel[-(-num_outputs // plan.tile_outputs), plan.num_parts, num_networks](
        hidden_SNI,
        weight_SIO,
        out_SNO if bias_S1O is None else bias_S1O,
        out_SNO,
        parts,
        arrivals,
        num_rows,
        num_inputs,
        num_outputs,
        plan.num_parts,
        -(-num_inputs // (_BLOCK_INPUTS * plan.num_parts)),
        HAS_PARTS=plan.num_parts > 1,
        HAS_BIAS=bias_S1O is not None,
        ROWS=min(limit for limit in ROW_LIMITS if limit >= num_rows),
        INPUTS=_BLOCK_INPUTS,
        OUTPUTS=plan.tile_outputs,
        num_stages=_NUM_STAGES,
    )
    return out_SNO


def torch_product(hidden_SNI: Tensor, weight_SIO: Tensor, bias_S1O: Tensor | None) -> Tensor:
    """The same by torch."""
    if bias_S1O is None:
        return torch.bmm(hidden_SNI, weight_SIO)
    return torch.baddbmm(bias_S1O, hidden_SNI, weight_SIO)


@torch.library.custom_op("cong::few_rows", mutates_args=("parts", "arrivals"))
def _product(
    hidden_SNI: Tensor,
    weight_SIO: Tensor,
    bias_S1O: Tensor | None,
    parts: Tensor,
    arrivals: Tensor,
    plans: list[int],
) -> Tensor:
    """By the plan for so many rows, or torch's product: opaque to torch's compiler, which would compile for each."""
    num_rows = hidden_SNI.shape[1]
    at = next((at for at, limit in enumerate(ROW_LIMITS) if limit >= num_rows), None)
    if at is None or not plans[2 * at]:
        return torch_product(hidden_SNI, weight_SIO, bias_S1O)
    return multiply(hidden_SNI, weight_SIO, bias_S1O, Plan(*plans[2 * at : 2 * at + 2]), parts, arrivals)


@_product.register_fake
def _(
    hidden_SNI: Tensor,
    weight_SIO: Tensor,
    bias_S1O: Tensor | None,
    parts: Tensor,
    arrivals: Tensor,
    plans: list[int],
) -> Tensor:
    return hidden_SNI.new_empty(*hidden_SNI.shape[:2], weight_SIO.shape[2])


class FewRows(nn.Module):
    """S linear maps, as StackedLinear, by plans."""

    def __init__(self, linear: StackedLinear, plans: Plans, meeting: Workspace) -> None:
        super().__init__()
        self.linear = linear
        self.meeting = meeting
        self._plans = [number for plan in plans for number in _numbers(plan)]

    def forward(self, hidden_SNI: Tensor) -> Tensor:
        """Each network's slice through its own map."""
        weight_SIO, bias_S1O = self.linear.weight_SIO, self.linear.bias_S1O
        if hidden_SNI.dim() == 2:  # some code flattens networks and tokens on the way
            stacked: Tensor = self(hidden_SNI.view(len(weight_SIO), -1, hidden_SNI.shape[1]))
            return stacked.flatten(0, 1)
        meeting = self.meeting
        product: Tensor = torch.ops.cong.few_rows(
            hidden_SNI, weight_SIO, bias_S1O, meeting.parts, meeting.arrivals, self._plans
        )
        return product


def _numbers(plan: Plan | None) -> tuple[int, int]:
    return (0, 0) if plan is None else (plan.tile_outputs, plan.num_parts)
