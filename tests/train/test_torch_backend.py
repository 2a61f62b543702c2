"""In bfloat16 the network computes with rounded copies of float32 weights, and trains as float32 does.

The oracle of precision is autocast: float32 weights in the network itself, rounded on their way into each product.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cong.config.train import OptimizerSettings, Precision
from cong.lab.networks import build_network, prompt_ids, response_ids
from cong.lab.world import draw_prompts, generator, ideal_response
from cong.models import register_attention
from cong.objectives import SFT, Scorer, fused_scores, policy_scores
from cong.train.data.batch import Example, MicroBatch, make_batch
from cong.train.data.packing import ATTENTION_NAME, attend_packed
from cong.train.forward import response_logits
from cong.train.loop import loss_share
from cong.train.torch_backend import TorchBackend
from tests.train.deepspeed.worlds import adapted_network, batches_of, num_units_of, steps
from tests.train.test_packing import NETWORKS, examples_of, network

OPTIMIZER = OptimizerSettings(weight_decay=0.0)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]
STEP = 8
"""Examples of one."""


class Autocast(TorchBackend):
    """The oracle."""

    def logits(self, batch: MicroBatch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return response_logits(self._model, batch)


def tiny_network() -> Any:
    """The same weights every time; its embedding is its head."""
    register_attention(ATTENTION_NAME, attend_packed)
    model = build_network(32, 2, 2, 64, torch.Generator().manual_seed(0))
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def backend(precision: Precision, device: str = "cpu") -> TorchBackend:
    return TorchBackend(tiny_network(), OPTIMIZER, precision=precision, device=device)


def examples(num_examples: int) -> list[Example]:
    """The lab's prompts and their best answers."""

    def ids(found: Sequence[int]) -> Any:
        return np.array(found, dtype=np.int32)

    return [
        Example(prompt, prompt, ids(prompt_ids(prompt)), (ids(response_ids(ideal_response(prompt))),))
        for prompt in draw_prompts(generator("torch backend", 0), num_examples)
    ]


def add_gradients(trained: TorchBackend, batches: Sequence[Sequence[Example]], score: Scorer = policy_scores) -> float:
    """The loss of one step over these micro-batches, whose gradients are added up."""
    made = [make_batch(batch, is_packed=True).to(trained.device) for batch in batches]
    num_units = sum(sum(batch.responses.lengths) for batch in made)
    losses = [loss_share(trained.logits, SFT(), batch, 0.0, score).loss(num_units) for batch in made]
    for loss in losses:
        trained.backward(loss, is_last=loss is losses[-1])
    return sum(loss.item() for loss in losses)


def train(trained: TorchBackend, num_steps: int, learning_rate: float) -> list[float]:
    """The losses of some steps of two micro-batches."""
    found, losses = examples(num_steps * STEP), []
    for first in range(0, len(found), STEP):
        losses.append(add_gradients(trained, [found[first : first + 3], found[first + 3 : first + STEP]]))
        trained.step(learning_rate)
    return losses


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])


def weights_of(trained: TorchBackend) -> Tensor:
    return flat([weight for _, weight in trained.weights()])


def gradients_of(trained: TorchBackend) -> Tensor:
    return flat([weight.grad for weight in trained._trained.values() if weight.grad is not None])


def test_losses_stay_near_those_of_autocast_and_of_float32() -> None:
    exact, by_autocast, rounded = (
        train(each, 40, 3e-3)
        for each in (backend("float32"), Autocast(tiny_network(), OPTIMIZER, precision="float32"), backend("bfloat16"))
    )
    assert exact[-1] < 0.6 * exact[0]
    assert rounded == pytest.approx(exact, abs=0.03)
    assert rounded == pytest.approx(by_autocast, abs=0.03)
    assert rounded != exact


def test_steps_that_bfloat16_cannot_see_are_not_lost() -> None:
    start = flat(list(tiny_network().parameters()))
    exact, rounded = backend("float32"), backend("bfloat16")
    copies = flat(list(rounded._model.parameters()))
    for each in (exact, rounded):
        train(each, 20, 1e-6)
    moved, wanted = weights_of(rounded) - start, weights_of(exact) - start
    assert torch.cosine_similarity(moved, wanted, 0) > 0.999
    assert moved.norm().item() == pytest.approx(wanted.norm().item(), rel=0.01)
    # Weights that are bfloat16 themselves would nearly all have stayed, as most copies have.
    assert (flat(list(rounded._model.parameters())) == copies).float().mean() > 0.9


def test_the_network_computes_with_the_weights_rounded_once() -> None:
    trained = backend("bfloat16")
    train(trained, 3, 1e-3)
    parameters = dict(trained._model.named_parameters())
    for name, weight in trained.weights():
        assert weight.dtype == torch.float32
        assert torch.equal(parameters[name], weight.bfloat16())
    assert (weights_of(trained) != weights_of(trained).bfloat16()).float().mean() > 0.9
    assert {buffer.dtype for buffer in trained._model.buffers()} == {torch.float32}, "rotary frequencies stay exact"
    assert all(weight.grad is None for weight in parameters.values()), "gradients live in their float32 sums alone"


def test_gradients_of_micro_batches_are_added_up_in_float32() -> None:
    trained, found = backend("bfloat16"), examples(4)
    add_gradients(trained, [found])
    once = gradients_of(trained)
    trained.step(0.0)
    # A power of two, so that each of them rounds as one does; sums in bfloat16 would be off by a hundredth.
    add_gradients(trained, [found] * 64)
    assert (gradients_of(trained) - once).norm() < 1e-6 * once.norm()


@pytest.mark.filterwarnings("ignore")  # warnings of torch's compiler are not ours to heed
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("score", [policy_scores, fused_scores])
def test_micro_batches_together_have_the_gradient_of_one_large_batch(device: str, score: Scorer) -> None:
    found = examples(32)
    whole, split = backend("bfloat16", device), backend("bfloat16", device)
    exact = backend("float32", device)
    loss = add_gradients(whole, [found], score)
    parts = [found[first : first + 4] for first in range(0, 32, 4)]
    assert add_gradients(split, parts, score) == pytest.approx(loss, abs=1e-3)
    add_gradients(exact, [found])
    wanted = gradients_of(exact)
    for each in (whole, split):
        assert (gradients_of(each) - wanted).norm() < 0.02 * wanted.norm()
    assert (gradients_of(split) - gradients_of(whole)).norm() < 0.02 * wanted.norm()


def test_checkpoints_are_those_of_float32_and_are_exchanged_with_it(tmp_path: Path) -> None:
    saved, loaded = backend("float32"), backend("bfloat16")
    train(saved, 2, 1e-3)
    (tmp_path / "float32").mkdir()
    saved.save(tmp_path / "float32")
    loaded.load(tmp_path / "float32")
    assert torch.equal(weights_of(loaded), weights_of(saved))
    assert torch.equal(flat(list(loaded._model.parameters())), weights_of(saved).bfloat16().float())
    (tmp_path / "bfloat16").mkdir()
    loaded.save(tmp_path / "bfloat16")
    for name in ("weights.safetensors", "optimizer.safetensors"):
        first, second = (load_file(tmp_path / precision / name) for precision in ("float32", "bfloat16"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) and second[key].dtype == torch.float32 for key in first)


def test_of_an_adapted_network_only_the_adapter_has_exact_weights_and_gradients() -> None:
    model = adapted_network()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trained = TorchBackend(model, OPTIMIZER, precision="bfloat16")
    for batch in batches_of(steps()[0], 0, 1):
        trained.backward(loss_share(trained.logits, SFT(), batch, 0.0).loss(num_units_of(steps()[0])), is_last=True)
    trained.step(1e-2)
    weights = dict(trained.weights())
    assert weights.keys() == {name for name in before if ".lora_" in name}
    assert any(not torch.equal(weight, before[name]) for name, weight in weights.items())
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, (weights[name] if name in weights else before[name]).bfloat16())


@pytest.mark.parametrize("family", NETWORKS)
def test_every_family_computes_with_rounded_weights(family: str) -> None:
    batch = make_batch(examples_of(np.random.default_rng(0), [(5,), (70,), (3,), (33,)]), is_packed=True)
    losses, gradients = [], []
    for precision in ("float32", "bfloat16"):
        model = network(family).float()
        model.set_attn_implementation(ATTENTION_NAME)
        trained = TorchBackend(model, OPTIMIZER, precision=precision)
        loss = loss_share(trained.logits, SFT(), batch, 0.0).loss(111)
        trained.backward(loss, is_last=True)
        losses.append(loss.item())
        gradients.append(gradients_of(trained))
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
    # Rounding sends some tokens to other experts.
    bound = 0.5 if family == "gpt-oss" else 0.06
    assert (gradients[1] - gradients[0]).norm() < bound * gradients[0].norm()
