"""Which products of few rows are shared out: each way is timed on the device at start, and the fastest is taken.

Legend: S networks, N rows, I and O widths of a product.
"""

import logging
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Ordered

import torch
from torch import Tensor, nn

from cong.engine.gpu.few_rows import ROW_LIMITS, FewRows, Plan, Plans, Workspace, multiply, plans_for, torch_product
from cong.engine.stack import StackedLinear

logger = logging.getLogger(__name__)

Product = Callable[[StackedLinear, Tensor], Tensor]
Timer = Callable[[Product, Ordered[StackedLinear], Tensor], float]
"""Seconds that one of these maps takes on this input, each of them reading its weights from memory."""

WORTH = 0.95
"""A plan is taken where it needs at most this share of the time of torch's product: what is as fast stays as it is."""
_TOLERANCE = 0.02
_ROUNDS, _REPLAYS = 5, 4


@torch.inference_mode()
def share_products(model: nn.Module, dtype: torch.dtype, num_processors: int, timer: Timer) -> None:
    """Replace the maps of a stack, of those with weights of this type, whose products are faster shared out."""
    from triton import TritonError

    meeting: Workspace | None = None
    groups: dict[Hashable, list[tuple[nn.Module, str, StackedLinear]]] = defaultdict(list)
    for parent in model.modules():
        for name, child in parent.named_children():
            # What is tied to an embedding lies the other way round.
            if type(child) is StackedLinear and child.weight_SIO.dtype == dtype and child.weight_SIO.is_contiguous():
                groups[child.weight_SIO.shape, child.bias_S1O is None].append((parent, name, child))
    for group in groups.values():
        linears = list({id(linear): linear for _, _, linear in group}.values())
        meeting = meeting or Workspace(linears[0].weight_SIO.device)
        try:
            plans = choose_plans(linears, num_processors, timer, meeting)
        except (RuntimeError, TritonError) as error:  # a device that is too small for a kernel
            logger.warning("products of few rows, %s, are torch's own: %s", tuple(linears[0].weight_SIO.shape), error)
            continue
        if any(plans):
            for parent, name, linear in group:
                setattr(parent, name, FewRows(linear, plans, meeting))


def choose_plans(linears: Ordered[StackedLinear], num_processors: int, timer: Timer, meeting: Workspace) -> Plans:
    """The fastest plan for each limit of rows, for maps of one shape."""
    weight_SIO = linears[0].weight_SIO
    num_networks, num_inputs, num_outputs = weight_SIO.shape
    candidates = plans_for(weight_SIO, num_processors)
    for plan in candidates:
        meeting.make_room(plan, weight_SIO)

    generator = torch.Generator(weight_SIO.device).manual_seed(0)

    def choose(num_rows: int) -> Plan | None:
        shape = num_networks, num_rows, num_inputs
        hidden_SNI = torch.randn(shape, generator=generator, device=weight_SIO.device).to(weight_SIO.dtype)

        def timed(plan: Plan) -> float:
            def product(linear: StackedLinear, hidden_SNI: Tensor) -> Tensor:
                return multiply(hidden_SNI, linear.weight_SIO, linear.bias_S1O, plan, meeting.parts, meeting.arrivals)

            _expect_torch_s(product, linears[0], hidden_SNI, plan)
            return timer(product, linears, hidden_SNI)

        of_torch_s = timer(by_torch, linears, hidden_SNI)
        seconds = {plan: timed(plan) for plan in candidates}
        fastest = min(seconds, key=lambda plan: seconds[plan])
        is_worth_it = seconds[fastest] <= WORTH * of_torch_s
        logger.info(
            "products of up to %d rows, %d x %d x %d: %.1f us by torch, %.1f in %s%s",
            *(num_rows, num_networks, num_inputs, num_outputs, 1e6 * of_torch_s, 1e6 * seconds[fastest], fastest),
            ", which is taken" if is_worth_it else "",
        )
        return fastest if is_worth_it else None

    return tuple(choose(num_rows) for num_rows in ROW_LIMITS)


def by_torch(linear: StackedLinear, hidden_SNI: Tensor) -> Tensor:
    """As it is where nothing is shared out."""
    return torch_product(hidden_SNI, linear.weight_SIO, linear.bias_S1O)


def _expect_torch_s(product: Product, linear: StackedLinear, hidden_SNI: Tensor, plan: Plan) -> None:
    expected = by_torch(linear, hidden_SNI).float()
    for _ in range(2):  # the second time on what the first one left in the workspace
        difference = (product(linear, hidden_SNI).float() - expected).abs().amax()
        if not difference <= _TOLERANCE * expected.abs().amax():
            raise RuntimeError(f"{plan} of a product differ from torch's by {difference:.3g}")


class DeviceTimer:
    """Times products in a captured graph, so that nothing but kernels counts."""

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        """One for all: torch keeps a workspace of cuBLAS for every stream ever used."""

    def __call__(self, product: Product, linears: Ordered[StackedLinear], hidden_SNI: Tensor) -> float:
        """Seconds of one, the median of a few rounds over all maps."""
        current = torch.cuda.current_stream(hidden_SNI.device)
        self._side.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._side):
            product(linears[0], hidden_SNI)  # compiles what it needs
        torch.cuda.synchronize(hidden_SNI.device)
        try:
            with torch.cuda.graph(graph, stream=self._side):
                for linear in linears:
                    product(linear, hidden_SNI)
        except BaseException:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own as the current one
            raise
        graph.replay()  # the first is slower
        return statistics.median(_seconds_of(graph) for _ in range(_ROUNDS)) / len(linears)


def _seconds_of(graph: torch.cuda.CUDAGraph) -> float:
    """Of a replay, one of several behind each other, so that launching them takes no part."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begun.record()
    for _ in range(_REPLAYS):
        graph.replay()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3 / _REPLAYS
