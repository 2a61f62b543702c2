"""Two ranks under ZeRO train what one process trains with plain torch."""

import pytest
import torch

from cong.train.torch_backend import TorchBackend
from cong.train.zero_memory import model_memory
from tests.train.deepspeed.conftest import Results
from tests.train.deepspeed.worker import SETTINGS
from tests.train.deepspeed.worlds import (
    MAX_GRAD_NORM,
    Trained,
    adapted_network,
    settings,
    tiny_network,
    train,
    train_plainly,
)

pytestmark = pytest.mark.slow

FLOAT32 = [name for name in SETTINGS if "bfloat16" not in name]
BFLOAT16 = [name for name in SETTINGS if "bfloat16" in name]


@pytest.fixture(scope="module")
def plain() -> dict[str, Trained]:
    """The same training in this process, by kind of network."""
    return {
        "tied": train_plainly(tiny_network(), settings(0)),
        "untied": train_plainly(tiny_network(is_tied=False), settings(0)),
        "lora": train_plainly(adapted_network(), settings(0)),
    }


def oracle_of(name: str, plain: dict[str, Trained]) -> Trained:
    kind = name.partition("-")[2]
    return plain[kind if kind in plain else "tied"]


def test_the_work_is_a_hard_case(plain: dict[str, Trained]) -> None:
    norms = plain["tied"].norms
    assert min(norms) < MAX_GRAD_NORM < max(norms), "some steps are to be clipped, and some not"


@pytest.mark.parametrize("name", FLOAT32)
def test_every_stage_ends_with_the_weights_of_a_plain_loop(
    name: str, trained: Results, plain: dict[str, Trained]
) -> None:
    expected = oracle_of(name, plain)
    for rank in (0, 1):
        found = trained.of(name, rank=rank)
        assert found.weights.keys() == expected.weights.keys()
        for tensor, weight in expected.weights.items():
            assert (found.weights[tensor] - weight).abs().max() < 1e-5, tensor


@pytest.mark.parametrize("name", FLOAT32)
def test_losses_and_norms_before_clipping_are_those_of_a_plain_loop(
    name: str, trained: Results, plain: dict[str, Trained]
) -> None:
    found, expected = trained.of(name), oracle_of(name, plain)
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.norms == pytest.approx(expected.norms, rel=1e-5)
    assert trained.of(name, rank=1).norms == pytest.approx(found.norms, rel=1e-6)


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_averages_as_float32_does(name: str, trained: Results, plain: dict[str, Trained]) -> None:
    # A factor that is not undone, of two ranks or of up to three micro-batches, would change norms by half at least.
    found, expected = trained.of(name), plain["tied"]
    assert found.norms == pytest.approx(expected.norms, rel=0.03)
    assert found.losses == pytest.approx(expected.losses, rel=0.01)
    moved, wanted = (moves_of(run) for run in (found, expected))
    assert torch.cosine_similarity(moved, wanted, 0) > 0.98
    assert moved.norm().item() == pytest.approx(wanted.norm().item(), rel=0.03)


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_trains_as_the_torch_backend_does(name: str, trained: Results) -> None:
    found, alone = trained.of(name), Trained()
    train(TorchBackend(tiny_network(), SETTINGS[name].optimizer, precision="bfloat16"), done=alone)
    assert found.losses == pytest.approx(alone.losses, rel=3e-4)
    assert found.norms == pytest.approx(alone.norms, rel=3e-3)
    assert torch.cosine_similarity(moves_of(found), moves_of(alone), 0) > 0.999


def moves_of(run: Trained) -> torch.Tensor:
    """How far training has moved the weights, as one vector."""
    before = dict(tiny_network().named_parameters())
    return torch.cat([(weight - before[name].detach()).flatten() for name, weight in run.weights.items()])


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_keeps_exact_copies_of_the_weights(name: str, trained: Results) -> None:
    weights = torch.cat([weight.flatten() for weight in trained.of(name).weights.values()])
    assert weights.dtype == torch.float32
    assert (weights != weights.bfloat16().float()).float().mean() > 0.5


@pytest.mark.parametrize("name", [f"zero{stage}{suffix}" for stage in range(4) for suffix in ("", "-bfloat16")])
def test_every_rank_holds_as_many_bytes_as_foretold(name: str, trained: Results) -> None:
    num_trained = sum(weight.numel() for weight in trained.of(name).weights.values())
    foretold = model_memory(SETTINGS[name], num_trained, 0, 2)
    for rank in (0, 1):
        measured = trained.of(name, rank=rank).num_bytes
        # Divided tensors are padded to equal parts.
        assert measured["parameters"] == pytest.approx(foretold.parameters, rel=0.02)
        assert measured["optimizer"] == pytest.approx(foretold.optimizer, rel=0.02)
        if SETTINGS[name].deepspeed.zero_stage == 3:
            assert measured["gradients"] == pytest.approx(foretold.gradients, rel=0.02)
            assert measured["bucket"] == foretold.bucket


@pytest.mark.parametrize("stage", range(4))
def test_only_the_adapter_is_trained(stage: int, trained: Results) -> None:
    assert all(".lora_" in name for name in trained.of(f"zero{stage}-lora").weights)
