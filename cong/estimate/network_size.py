"""How large a network is: from its folder's config.json, or for a few public families from their name.

Fetches nothing, and reads no weights: the network is built without them, and counted as one that runs.
"""

import copy
import functools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cong.config.models import ModelsConfig, NetworkConfig
from cong.config.train import LoraSettings
from cong.errors import ConfigError, ModelError
from cong.models import (
    Architecture,
    WeightCount,
    count_weights,
    describe_architecture,
    make_blueprint,
    open_blueprint,
)
from cong.train.lora import add_lora


@dataclass(frozen=True)
class NetworkSize:
    """The sizes of a decoder that decide what it costs."""

    hidden: int
    architecture: Architecture
    weights: WeightCount
    blueprint: nn.Module = field(repr=False, compare=False)
    """The network without weights."""
    unstated: tuple[str, ...] = ()
    """Sizes that its config.json leaves out, each with the value that transformers gives it."""

    @property
    def num_attended(self) -> int:
        """Products of one token with another that it attends to, scores and values of all heads and layers."""
        shape = self.architecture
        return shape.num_attention_layers * shape.num_heads * (shape.head_dim + shape.value_dim)

    @property
    def num_activations(self) -> int:
        """Numbers of one token that all layers keep for a backward pass, with attention that keeps no square matrix.

        Of every layer: its input and the sum after attention, both normalised ones, and whatever a matrix makes of
        them or makes them of, which is one number for as many weights as a layer is wide. What goes to experts is
        copied for each, and so is what comes from them.
        """
        weights, num_layers = self.weights, self.architecture.num_layers
        copies = sum(one.num_met * one.num_matrices for one in weights.experts)
        return (4 * num_layers + copies) * self.hidden + weights.num_body // self.hidden

    def num_lora(self, settings: LoraSettings) -> int:
        """Weights of an adapter: it is put on the blueprint, for only peft knows what it adapts of experts."""
        with torch.device("meta"):
            adapted = add_lora(copy.deepcopy(self.blueprint), settings)
        return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def _facts(
    model_type: str, layers: int, hidden: int, heads: int, kv_heads: int, mlp: int, vocabulary: int, **others: Any
) -> dict[str, Any]:
    """What a config.json says of a decoder's sizes."""
    return others | {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
    }


def _experts(number: int, met: int, mlp: int, **others: Any) -> dict[str, Any]:
    """The same of experts, as the families of Qwen name them."""
    return others | {"num_experts": number, "num_experts_per_tok": met, "moe_intermediate_size": mlp}


PUBLIC = {
    # By the beginning of a folder's or hub id's last part.
    "Llama-3.2-1B": _facts("llama", 16, 2048, 32, 8, 8192, 128_256, tie_word_embeddings=True),
    "Llama-3.2-3B": _facts("llama", 28, 3072, 24, 8, 8192, 128_256, tie_word_embeddings=True),
    "Meta-Llama-3-8B": _facts("llama", 32, 4096, 32, 8, 14_336, 128_256),
    "Llama-3.1-8B": _facts("llama", 32, 4096, 32, 8, 14_336, 128_256),
    "Qwen2.5-0.5B": _facts("qwen2", 24, 896, 14, 2, 4864, 151_936, tie_word_embeddings=True),
    "Qwen2.5-1.5B": _facts("qwen2", 28, 1536, 12, 2, 8960, 151_936, tie_word_embeddings=True),
    "Qwen2.5-3B": _facts("qwen2", 36, 2048, 16, 2, 11_008, 151_936, tie_word_embeddings=True),
    "Qwen2.5-7B": _facts("qwen2", 28, 3584, 28, 4, 18_944, 152_064),
    "Mixtral-8x7B": _facts("mixtral", 32, 4096, 32, 8, 14_336, 32_000, num_local_experts=8, num_experts_per_tok=2),
    "OLMoE-1B-7B": _facts("olmoe", 16, 2048, 16, 16, 1024, 50_304, num_experts=64, num_experts_per_tok=8),
    "Qwen1.5-MoE-A2.7B": _facts("qwen2_moe", 24, 2048, 16, 16, 5632, 151_936)
    | _experts(60, 4, 1408, shared_expert_intermediate_size=5632),
    "Qwen3-30B-A3B": _facts("qwen3_moe", 48, 2048, 32, 4, 6144, 151_936, head_dim=128) | _experts(128, 8, 768),
    "Qwen3-235B-A22B": _facts("qwen3_moe", 94, 4096, 64, 4, 12_288, 151_936, head_dim=128) | _experts(128, 8, 1536),
}


_DECISIVE = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def size_like(name: str) -> NetworkSize:
    """The size of a public family, by the beginning of a name."""
    known = [family for family in PUBLIC if name.startswith(family)]
    if not known:
        raise ConfigError(f"the size of {name!r} is not known; known are {', '.join(PUBLIC)}")
    return _public(known[0])


def size_of(network: NetworkConfig, models: ModelsConfig, otherwise: NetworkSize | None = None) -> NetworkSize:
    """The size of a network of a configuration; `otherwise` that of one which is not there yet."""
    folder = Path(network.source).expanduser()
    if models.root is not None:
        folder = models.root / network.source
    if (folder / "config.json").is_file():
        return _of_folder(network.source, models.root, folder)
    if any(folder.name.startswith(family) for family in PUBLIC):
        return size_like(folder.name)
    if otherwise is not None:
        return otherwise
    raise ConfigError(
        f"the size of {network.source!r} is not known: {folder} holds no config.json, and the name is none of "
        f"{', '.join(PUBLIC)}; fetch its config.json, or say which of these it will be like"
    )


@functools.cache
def _public(family: str) -> NetworkSize:
    return size_of_blueprint(make_blueprint(family, PUBLIC[family]))


def _of_folder(source: str, root: Path | None, folder: Path) -> NetworkSize:
    try:
        model: Any = open_blueprint(source, root=root)
        return replace(size_of_blueprint(model), unstated=_unstated(model.config, folder))
    except (ModelError, AttributeError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} does not give the sizes of a decoder ({error}); fetch it again"
        ) from error


def _unstated(config: Any, folder: Path) -> tuple[str, ...]:
    content = json.loads((folder / "config.json").read_bytes())
    decoder = config.get_text_config(decoder=True)
    for name in config.sub_configs:
        if getattr(config, name, None) is decoder:
            content = content.get(name) or {}
    usual, found = type(decoder)(), []
    for name in _DECISIVE:
        value = getattr(decoder, name, None)
        is_stated = bool({name, decoder.attribute_map.get(name, name)} & content.keys())
        # Where it is another than the usual one, config.json has said it in words of its own.
        if isinstance(value, int) and value == getattr(usual, name, None) and not is_stated:
            found.append(f"{name} = {value} of {folder.name}")
    return tuple(found)


def size_of_blueprint(model: Any) -> NetworkSize:
    """The size of a causal language model of transformers that has no weights."""
    return NetworkSize(
        hidden=model.config.get_text_config(decoder=True).hidden_size,
        architecture=describe_architecture(model),
        weights=count_weights(model),
        blueprint=model,
    )
