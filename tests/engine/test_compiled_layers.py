"""Which modules are compiled, and when they are not used so."""

import pytest
import torch
from torch import nn

from cong.engine.gpu.compiled_layers import compile_layers
from cong.engine.runner import Runner
from cong.engine.scheduler import Chunk
from cong.engine.sequence import Sequence
from cong.schemas import SamplingParameters
from tests.engine.conftest import World

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
"""torch's own code warns when its compiler is first imported."""


def test_layers_are_found_by_the_attention_that_they_hold(world: World) -> None:
    for family in ("llama", "gpt2", "opt", "gpt-neox"):
        runner = Runner(world.networks(world.folder(family, 1)).networks, kernel="torch")
        (stack,) = runner.stacks
        assert compile_layers(stack.model, stack.probe.modules) == 2


def test_what_stands_beside_the_layers_is_compiled_but_for_tables(world: World) -> None:
    for seeds in ((1,), (1, 2)):
        runner = Runner(world.networks(*(world.folder("llama", seed) for seed in seeds)).networks, kernel="torch")
        (stack,) = runner.stacks
        compile_layers(stack.model, stack.probe.modules)
        compiled = {name for name, module in stack.model.named_modules() if module._compiled_call_impl is not None}
        assert compiled == {"model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb"}


def test_a_model_without_a_list_of_layers_is_left_as_it_is() -> None:
    assert compile_layers(nn.Sequential(nn.Linear(2, 2)), [nn.Linear(2, 2)]) == 0


def test_a_step_that_is_not_captured_compiles_nothing(world: World) -> None:
    def no_compilation(*_: object) -> None:
        raise AssertionError("a step in no captured size was compiled")

    networks = world.networks(world.folder("llama", 1))
    plain = Runner(networks.networks, kernel="torch")
    sequence = Sequence("r", 0, tuple(range(3, 12)), SamplingParameters.plain(), frozenset(), 0, 0.0)
    sequence.blocks = [0, 1, 2]
    chunks = [Chunk(sequence, 0, 9, draws=True)]
    plain.prepare(4, 4)
    expected = plain.forward(chunks).drawing[0]

    runner = Runner(networks.networks, kernel="torch", compiles_layers=True)
    for layer in runner.stacks[0].model.model.layers:  # type: ignore[union-attr]
        layer.compile(backend=no_compilation)
    runner.prepare(4, 4)
    assert torch.equal(runner.forward(chunks).drawing[0], expected)
