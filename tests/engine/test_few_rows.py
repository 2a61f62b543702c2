"""Products of few rows whose inputs are shared out, by Triton's interpreter where there is no GPU, against torch's."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from torch._dynamo.testing import CompileCounterWithBackend

from cong.engine.gpu import sharing
from cong.engine.gpu.few_rows import ROW_LIMITS, FewRows, Plan, Workspace, multiply, plans_for, torch_product
from cong.engine.gpu.sharing import share_products
from cong.engine.plain.layout import lay_out_plainly
from cong.engine.pool import places_of
from cong.engine.runner import Runner
from cong.engine.stack import StackedLinear
from tests.engine.conftest import World
from tests.engine.test_decoder import answers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
on_the_cpu = pytest.mark.skipif(DEVICE.type == "cuda", reason="tests/engine/test_gpu.py does it on the device")
"""Its networks are there, in float32, which a GPU does not share out."""


@pytest.mark.parametrize("num_rows", [1, 13, 64])
@pytest.mark.parametrize("plan", [Plan(32, 1), Plan(32, 2), Plan(64, 3)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_parts_add_up_to_the_product_again_and_again(num_rows: int, plan: Plan, has_bias: bool) -> None:
    """Widths that fill no tile and no block; three parts are more than there are blocks."""
    generator = torch.Generator().manual_seed(1)
    # In float32 a GPU multiplies in fewer bits than torch.
    dtype, tolerance = (torch.float32, 1e-4) if DEVICE.type == "cpu" else (torch.bfloat16, 0.02)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    weight_SIO, bias_S1O = numbers(2, 100, 90), numbers(2, 1, 90) if has_bias else None
    meeting = Workspace(DEVICE)
    meeting.make_room(plan, weight_SIO)
    for _ in range(3):
        hidden_SNI = numbers(2, num_rows, 100)
        product = multiply(hidden_SNI, weight_SIO, bias_S1O, plan, meeting.parts, meeting.arrivals)
        expected = torch_product(hidden_SNI, weight_SIO, bias_S1O)
        torch.testing.assert_close(product, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
        again = multiply(hidden_SNI, weight_SIO, bias_S1O, plan, meeting.parts, meeting.arrivals)
        assert torch.equal(product, again), "added up in the same order, whoever came last"


@pytest.mark.parametrize("widths", [(896, 896), (896, 9728), (4864, 896), (3072, 5120), (64, 64)])
def test_plans_keep_every_processor_busy_with_parts_worth_reading(widths: tuple[int, int]) -> None:
    num_processors = 132
    plans = plans_for(torch.empty(2, *widths, device="meta"), num_processors)
    assert len(set(plans)) == len(plans) <= 6
    for plan in plans:
        num_tiles = 2 * -(-widths[1] // plan.tile_outputs)
        blocks_of_part = widths[0] / plan.num_parts / 64
        assert blocks_of_part >= 2 or plan.num_parts == 1
        assert plan.num_parts * num_tiles <= 6 * num_processors or plan.num_parts == 1
    if widths != (64, 64):
        assert any(plan.num_parts * 2 * -(-widths[1] // plan.tile_outputs) >= num_processors * 2 / 3 for plan in plans)


class Clock:
    """Tells of each product how long it takes, as it is told to: torch's a second, up to so many rows others less."""

    def __init__(self, shared_s: float, limits: Sequence[int] = ROW_LIMITS) -> None:
        self.shared_s = shared_s
        self.limits = limits

    def __call__(self, product: sharing.Product, _: Sequence[StackedLinear], hidden_SNI: Tensor) -> float:
        return 1.0 if product is sharing.by_torch or hidden_SNI.shape[1] not in self.limits else self.shared_s


def runner_of(world: World, family: str, num_layers: int = 2) -> Runner:
    folders = [world.folder(family, seed, num_hidden_layers=num_layers) for seed in range(2)]
    runner = Runner(world.networks(*folders).networks, kernel="torch", joins_products=True)
    runner.prepare(48, 4)
    return runner


def shared(model: nn.Module) -> list[FewRows]:
    return [module for module in model.modules() if isinstance(module, FewRows)]


IDS = [3 + (7 * position) % 50 for position in range(18)]


@on_the_cpu
@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "gpt2", "gpt-neox", "opt"])
def test_a_stack_with_shared_products_answers_as_before(world: World, family: str) -> None:
    runner, plain = runner_of(world, family), runner_of(world, family)
    model = runner.stacks[0].model
    share_products(model, torch.float32, 8, Clock(0.5))
    assert len(shared(model)) >= 2 * 4
    heads = [module for name, module in model.named_modules() if name.endswith(("lm_head", "embed_out"))]
    are_tied = family not in ("llama", "qwen2", "gpt-neox")
    assert any(isinstance(head, FewRows) for head in heads) != are_tied
    for counts in ([10, 1], [1] * 3):
        for ours, theirs in zip(answers(runner, IDS, counts), answers(plain, IDS, counts), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@on_the_cpu
def test_a_product_stays_torch_s_where_sharing_is_no_faster(world: World) -> None:
    model = runner_of(world, "llama").stacks[0].model
    share_products(model, torch.bfloat16, 8, Clock(0.5))
    assert not shared(model), "its weights are of another type"
    share_products(model, torch.float32, 8, Clock(0.97))
    assert not shared(model)
    share_products(model, torch.float32, 8, Clock(0.5, limits=(32,)))
    assert len({id(few) for few in shared(model)}) == 9
    for few in shared(model):
        assert [bool(number) for number in few._plans] == [False] * 2 + [True] * 2 + [False] * 2


@on_the_cpu
def test_a_device_that_refuses_a_kernel_computes_as_before(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def refuses(*_: Any) -> float:
        raise RuntimeError("out of resources")

    model = runner_of(world, "llama").stacks[0].model
    with caplog.at_level(logging.WARNING):
        share_products(model, torch.float32, 8, refuses)
    assert not shared(model)
    assert "are torch's own: out of resources" in caplog.text


@on_the_cpu
def test_all_layers_share_a_compilation_of_shared_products(world: World) -> None:
    """As many graphs for four layers as for two, whatever the rows."""
    counts = []
    for num_layers in (2, 4):
        torch.compiler.reset()
        runner = runner_of(world, "llama", num_layers)
        model: Any = runner.stacks[0].model
        share_products(model, torch.float32, 8, Clock(0.5))
        counter = CompileCounterWithBackend("eager")
        for layer in next(module for name, module in model.named_modules() if name.endswith(".layers")):
            layer.compile(backend=counter)
        with torch.inference_mode():
            for num_rows in (4, 40, 80):
                ids = torch.arange(num_rows) % 50
                blocks = [[number % 40] for number in range(num_rows)]
                layout = lay_out_plainly(places_of(blocks), [0] * num_rows, [1] * num_rows, num_rows, 4, runner.device)
                runner._run(ids, torch.zeros_like(ids), layout, None)
        counts.append(counter.frame_count)
    torch.compiler.reset()
    assert counts[0] == counts[1]
