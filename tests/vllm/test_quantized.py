"""A quantized pair passes through: what vLLM makes of it stays near the same pair with its weights multiplied out."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cong.config import EngineConfig
from cong.engine import Engine, LocalEngine, Rate, Rated
from cong.schemas import Prompt, Role, Score
from tests.vllm.conftest import VllmWorld

EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**EIGHT_BITS, "strategy": "channel", "dynamic": False},
            "input_activations": {**EIGHT_BITS, "strategy": "token", "dynamic": True},
        }
    },
}
"""Weights and activations in 8 bits, which vLLM computes on a CPU too."""


def quantize(folder: Path, target: Path) -> tuple[Path, Path]:
    """The network with weights of 8 bits, and with the same weights multiplied out."""
    quantized, plain = (shutil.copytree(folder, target / name) for name in ("quantized", "plain"))
    stored = load_file(folder / "model.safetensors")
    small, large = dict(stored), dict(stored)
    for name, weight in stored.items():
        if name.endswith("_proj.weight"):
            scale = weight.abs().amax(1, keepdim=True) / 127
            small[name] = (weight / scale).round().to(torch.int8)
            small[f"{name}_scale"] = scale
            large[name] = small[name] * scale
    save_file(small, quantized / "model.safetensors", metadata={"format": "pt"})
    save_file(large, plain / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTIZATION}))
    return quantized, plain


def score(engine: LocalEngine) -> Score:
    engine.score(Rate("s", Prompt(token_ids=tuple(range(3, 30))), tuple(range(8, 40))))
    happened = [event for _ in range(4) for event in engine.events()]
    (rated,) = [event for event in happened if isinstance(event, Rated)]
    return rated.score


def test_a_quantized_pair_answers_like_the_weights_it_stands_for(world: VllmWorld, tmp_path: Path) -> None:
    pairs = [quantize(world.folder("llama", seed), tmp_path / str(seed)) for seed in (1, 2)]
    quantized, plain = zip(*pairs, strict=True)
    expected = score(Engine(world.networks(*plain), EngineConfig(kv_memory_bytes=2**22)))
    found = score(world.new_engine(*quantized))
    roles: tuple[tuple[Role, Role], ...] = (("aligned", "base"), ("base", "aligned"))
    for role, other in roles:
        torch.testing.assert_close(found.logprobs[role], expected.logprobs[role], atol=0.5, rtol=0)
        apart = torch.tensor(found.logprobs[role]) - torch.tensor(expected.logprobs[other])
        assert apart.abs().mean() > 1.0, "the two networks differ by far more than rounding does"
