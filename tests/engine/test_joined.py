"""Products of one input as one: which they are, that they answer as each by itself, and that weights are held once."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers.models.llama.modeling_llama import LlamaMLP

from cong.engine.gpu.joined import FirstProduct, LaterProduct, join_products
from cong.engine.plain.layout import lay_out_plainly
from cong.engine.pool import places_of
from cong.engine.runner import Runner
from cong.models import NetworkSet, attach_adapter, join_networks
from tests.engine.conftest import FAMILIES, World, load, save_adapter
from tests.engine.test_decoder import answers

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
"""torch's own code warns when its compiler is first imported."""

SEPARATE = {"llama", "llama-tied", "mistral-window", "qwen2", "qwen3", "gemma2", "gemma3"}
IDS = [3 + (7 * position) % 50 for position in range(18)]


def runner_of(networks: NetworkSet, *, has_tiles: bool = False, **options: Any) -> Runner:
    runner = Runner(networks.networks, kernel="torch", **options)
    runner.has_tiles = has_tiles
    runner.prepare(48, 4)
    return runner


def modules_of(runner: Runner) -> Iterator[nn.Module]:
    for stack in runner.stacks:
        yield from stack.model.modules()


def widths_in(runner: Runner) -> list[int]:
    """How many products each joint one stands for."""
    return [len(module.widths) for module in modules_of(runner) if isinstance(module, FirstProduct)]


def expect_alike(joined: Runner, separate: Runner, counts: tuple[int, ...] = (6, 1, 1, 10), others: int = 1) -> None:
    """A prompt in chunks, some of one token, beside other sequences."""
    for ours, theirs in zip(*(answers(each, IDS, [*counts], others) for each in (joined, separate)), strict=True):
        torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), rtol=0, atol=1e-5)
    assert all(module.kept is None for module in modules_of(joined) if isinstance(module, LaterProduct))


def held_bytes(networks: NetworkSet, runner: Runner) -> int:
    """Memory of everything that the networks and their stacks hold, keys and values aside."""
    sizes: dict[int, int] = {}
    for module in [*modules_of(runner), *(m for network in networks.networks for m in network.model.modules())]:
        changes = [tensor for pair in getattr(module, "changes", {}).values() for tensor in pair]
        for tensor in [*module._parameters.values(), *module._buffers.values(), *vars(module).values(), *changes]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


@pytest.mark.parametrize("num_networks", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_joined_products_answer_as_each_by_itself_from_the_same_memory(
    world: World, family: str, num_networks: int
) -> None:
    folders = [world.folder(family, seed) for seed in range(num_networks)]
    ours, theirs = world.networks(*folders), world.networks(*folders)
    joined, separate = runner_of(ours, joins_products=True), runner_of(theirs)
    of_a_layer = [3, 2] if family in SEPARATE else [3] if family == "opt" else []
    assert widths_in(joined) == 2 * of_a_layer
    expect_alike(joined, separate)
    assert held_bytes(ours, joined) == held_bytes(theirs, separate)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/engine/test_gpu.py does it on the device")
@pytest.mark.parametrize("family", sorted(SEPARATE | {"opt"}))
def test_tiles_read_queries_keys_and_values_where_they_lie_side_by_side(world: World, family: str) -> None:
    folders = [world.folder(family, seed) for seed in range(2)]
    joined = runner_of(world.networks(*folders), has_tiles=True, joins_products=True)
    expect_alike(joined, runner_of(world.networks(*folders)), counts=(10, 1), others=0)


def test_networks_of_different_shapes_are_each_joined_and_keep_their_own_modules(world: World) -> None:
    folders = world.folder("llama", 1), world.folder("qwen3", 2, hidden_size=48), world.folder("gpt2", 3)
    networks = world.networks(*folders)
    before = [network.model.state_dict() for network in networks.networks]
    joined = runner_of(networks, joins_products=True)
    assert widths_in(joined) == [3, 2] * 4
    expect_alike(joined, runner_of(world.networks(*folders)))
    for network, state in zip(networks.networks, before, strict=True):
        after = network.model.state_dict()
        assert list(after) == list(state)
        assert all(torch.equal(after[name], state[name]) for name in state)


def lora_pair(folder: Path, adapter: Path) -> NetworkSet:
    base = load(folder, "base")
    return join_networks([attach_adapter(base, str(adapter), role="aligned"), base])


def test_maps_under_adapters_are_joined_unless_networks_apart_share_them(world: World, tmp_path: Path) -> None:
    folder = world.folder("llama-tied", 1)
    save_adapter(tmp_path, folder, ["q_proj", "v_proj", "gate_proj", "down_proj"])
    for stacks_networks, expected in ((True, [3, 2] * 2), (False, [])):
        ours, theirs = lora_pair(folder, tmp_path), lora_pair(folder, tmp_path)
        joined = runner_of(ours, joins_products=True, stacks_networks=stacks_networks)
        separate = runner_of(theirs, stacks_networks=stacks_networks)
        assert widths_in(joined) == expected
        expect_alike(joined, separate)
        assert held_bytes(ours, joined) == held_bytes(theirs, separate)


def test_an_adapted_network_by_itself_is_joined(world: World, tmp_path: Path) -> None:
    folder = world.folder("llama", 1)
    save_adapter(tmp_path, folder, ["k_proj", "up_proj"])

    def alone() -> NetworkSet:
        return join_networks([attach_adapter(load(folder, "base"), str(tmp_path), role="aligned")])

    joined = runner_of(alone(), joins_products=True)
    assert widths_in(joined) == [3, 2] * 2
    expect_alike(joined, runner_of(alone()))


class Attention(nn.Module):
    """Three maps of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(4, width) for width in (3, 3, 2))

    def forward(self, hidden: Tensor) -> list[Tensor]:
        return [self.two(hidden), self.one(hidden), self.three(hidden)]


def join(model: Attention) -> Any:
    return join_products(model, [model], [], lambda: model(torch.zeros(1, 4)))


@torch.inference_mode()
def test_a_part_is_given_for_the_tensor_that_it_was_made_of_alone_and_once() -> None:
    plain = Attention()
    joined = join(plain)
    assert isinstance(joined.two, FirstProduct), "the first that is called"
    hidden, other = torch.randn(2, 4), torch.randn(2, 4)
    joined.two(hidden)
    torch.testing.assert_close(joined.one(other), plain.one(other))
    torch.testing.assert_close(joined.one(hidden), plain.one(hidden))
    part = joined.three(hidden)
    assert part.untyped_storage().nbytes() == 2 * 8 * 4, "a part of all three"
    hidden.mul_(2.0)
    torch.testing.assert_close(joined.three(hidden), plain.three(hidden))
    torch.testing.assert_close(part, plain.three(hidden / 2))
    joined.two(other)
    joined.two(hidden)
    torch.testing.assert_close(joined.three(hidden), plain.three(hidden))


def test_tied_maps_maps_of_other_tensors_and_maps_called_twice_are_left_alone() -> None:
    tied, twice, copied = Attention(), Attention(), Attention()
    tied.one.weight = tied.two.weight
    assert join(tied) is tied
    assert join_products(twice, [twice], [], lambda: [twice(torch.zeros(1, 4)) for _ in range(2)]) is twice
    three = copied.three
    copied.three = nn.Sequential(nn.Identity(), three)  # type: ignore[assignment]
    joined = join_products(copied, [copied], [], lambda: copied(torch.zeros(1, 4)))
    assert widths(joined) == [[3, 3]]
    assert joined.get_submodule("three.1").weight is three.weight


def widths(model: nn.Module) -> list[list[int]]:
    return [module.widths for module in model.modules() if isinstance(module, FirstProduct)]


class ChangesItsInput(LlamaMLP):
    def forward(self, hidden: Tensor) -> Tensor:
        gate = self.act_fn(self.gate_proj(hidden))
        product: Tensor = self.down_proj(gate * self.up_proj(hidden.mul_(0.5)))
        return product


class WantsWholeRows(LlamaMLP):
    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        product: Tensor = self.down_proj((self.act_fn(gate.view(-1)) * up.view(-1)).view(gate.shape))
        return product


@pytest.mark.parametrize(
    ("mlp", "reason"), [(ChangesItsInput, "they answer differently"), (WantsWholeRows, "view size is not compatible")]
)
def test_code_that_joined_products_do_not_suit_runs_without(
    world: World, mlp: type[LlamaMLP], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def pair() -> NetworkSet:
        networks = world.networks(world.folder("llama", 1), world.folder("llama", 2))
        for network in networks.networks:
            for module in network.model.modules():
                if isinstance(module, LlamaMLP):
                    module.__class__ = mlp
        return networks

    joined = runner_of(pair(), joins_products=True)
    assert widths_in(joined) == []
    assert reason in caplog.text
    expect_alike(joined, runner_of(pair()))


def layers_of(model: nn.Module) -> Any:
    return next(module for name, module in model.named_modules() if name.endswith(".layers"))


@pytest.mark.parametrize("num_networks", [1, 2])
def test_all_layers_share_a_compilation_of_joined_products(world: World, num_networks: int) -> None:
    """As many graphs for four layers as for two."""
    counts = []
    for num_layers in (2, 4):
        torch.compiler.reset()
        folders = [world.folder("llama", seed, num_hidden_layers=num_layers) for seed in range(num_networks)]
        runner = runner_of(world.networks(*folders), joins_products=True)
        counter = CompileCounterWithBackend("eager")
        for layer in layers_of(runner.stacks[0].model):
            layer.compile(backend=counter)
        ids = torch.arange(3, 7)
        layout = lay_out_plainly(places_of([[0], [1], [2], [3]]), [0] * 4, [1] * 4, 4, 4, runner.device)
        with torch.inference_mode():
            runner._run(ids, torch.zeros_like(ids), layout, None)
        counts.append(counter.frame_count)
    torch.compiler.reset()
    assert counts[0] == counts[1]


@torch.inference_mode()
@pytest.mark.parametrize("family", sorted(SEPARATE | {"opt"}))
def test_a_layer_is_one_graph_with_four_products(world: World, family: str) -> None:
    """With attention of torch's own in it, that is: ours stands outside."""
    runner = runner_of(world.networks(*(world.folder(family, seed) for seed in range(2))), joins_products=True)
    model: Any = runner.stacks[0].model
    model.set_attn_implementation("eager")
    ids = torch.tensor(IDS).expand(2, -1)
    expected = model(input_ids=ids, use_cache=False).logits
    num_products = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        num_products.append(sum(node.target in (torch.bmm, torch.baddbmm) for node in graph.graph.nodes))
        return graph.forward

    torch.compiler.reset()
    for layer in layers_of(model):
        layer.compile(backend=count, fullgraph=True)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, expected)
    torch.compiler.reset()
    assert set(num_products) == {4}
