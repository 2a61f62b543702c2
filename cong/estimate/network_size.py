"""How large a network is: from its folder's config.json and headers, or for a few public families from their name.

Fetches nothing. Counts are those of dense decoders with gated feed-forward layers, which a mixture of experts is taken
for; where the folder holds weights, their headers' count is taken instead.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from cong.config.models import ModelsConfig, NetworkConfig
from cong.errors import ArtefactMissing, ConfigError
from cong.models import read_tensors, weight_files

_BIASED_TYPES = ("qwen2",)
"""Architectures whose queries, keys and values have biases although their configuration does not say so."""


@dataclass(frozen=True)
class NetworkSize:
    """The sizes of a decoder that decide what it costs."""

    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head: int
    mlp: int
    vocabulary: int
    is_tied: bool
    """The output head is the embedding."""
    has_qkv_bias: bool = False
    stated_parameters: int = 0
    """As counted in the weights' headers; 0 = by formula."""

    @property
    def num_layer_matrices(self) -> int:
        """Weights of one layer's matrices."""
        attention = 2 * self.hidden * self.head * (self.num_heads + self.num_kv_heads)
        return attention + 3 * self.hidden * self.mlp

    @property
    def num_body(self) -> int:
        """Weights that every token is multiplied with before the head."""
        return self.num_layers * self.num_layer_matrices

    @property
    def num_head(self) -> int:
        """Weights of the output head."""
        return self.vocabulary * self.hidden

    @property
    def num_parameters(self) -> int:
        """All of them, each counted once."""
        if self.stated_parameters:
            return self.stated_parameters
        biases = (self.num_heads + 2 * self.num_kv_heads) * self.head if self.has_qkv_bias else 0
        norms = (2 * self.num_layers + 1) * self.hidden
        embeddings = self.num_head * (1 if self.is_tied else 2)
        return self.num_body + self.num_layers * biases + norms + embeddings

    @property
    def num_keys_per_token(self) -> int:
        """Numbers that the cache keeps of one token: keys and values of every layer."""
        return 2 * self.num_layers * self.num_kv_heads * self.head

    def num_lora(self, rank: int) -> int:
        """Weights of an adapter on every linear layer but the head."""
        heads, kv_heads = self.num_heads * self.head, self.num_kv_heads * self.head
        shapes = [(self.hidden, heads), (self.hidden, kv_heads), (self.hidden, kv_heads), (heads, self.hidden)]
        shapes += [(self.hidden, self.mlp), (self.hidden, self.mlp), (self.mlp, self.hidden)]
        return self.num_layers * rank * sum(inputs + outputs for inputs, outputs in shapes)


PUBLIC = {
    # By the beginning of a folder's or hub id's last part; longer names first.
    "Llama-3.2-1B": NetworkSize(16, 2048, 32, 8, 64, 8192, 128_256, is_tied=True),
    "Llama-3.2-3B": NetworkSize(28, 3072, 24, 8, 128, 8192, 128_256, is_tied=True),
    "Meta-Llama-3-8B": NetworkSize(32, 4096, 32, 8, 128, 14_336, 128_256, is_tied=False),
    "Llama-3.1-8B": NetworkSize(32, 4096, 32, 8, 128, 14_336, 128_256, is_tied=False),
    "Qwen2.5-0.5B": NetworkSize(24, 896, 14, 2, 64, 4864, 151_936, is_tied=True, has_qkv_bias=True),
    "Qwen2.5-1.5B": NetworkSize(28, 1536, 12, 2, 128, 8960, 151_936, is_tied=True, has_qkv_bias=True),
    "Qwen2.5-3B": NetworkSize(36, 2048, 16, 2, 128, 11_008, 151_936, is_tied=True, has_qkv_bias=True),
    "Qwen2.5-7B": NetworkSize(28, 3584, 28, 4, 128, 18_944, 152_064, is_tied=False, has_qkv_bias=True),
}


def size_like(name: str) -> NetworkSize:
    """The size of a public family, by the beginning of a name."""
    known = [size for family, size in PUBLIC.items() if name.startswith(family)]
    if not known:
        raise ConfigError(f"the size of {name!r} is not known; known are {', '.join(PUBLIC)}")
    return known[0]


def size_of(network: NetworkConfig, models: ModelsConfig, otherwise: NetworkSize | None = None) -> NetworkSize:
    """The size of a network of a configuration; `otherwise` that of one which is not there yet."""
    folder = Path(network.source).expanduser()
    if models.root is not None:
        folder = models.root / network.source
    if (folder / "config.json").is_file():
        return _of_folder(folder)
    known = [size for name, size in PUBLIC.items() if folder.name.startswith(name)]
    if known or otherwise is not None:
        return known[0] if known else cast(NetworkSize, otherwise)
    raise ConfigError(
        f"the size of {network.source!r} is not known: {folder} holds no config.json, and the name is none of "
        f"{', '.join(PUBLIC)}; fetch its config.json, or say which of these it will be like"
    )


def _of_folder(folder: Path) -> NetworkSize:
    path = folder / "config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        heads, hidden = facts["num_attention_heads"], facts["hidden_size"]
        size = NetworkSize(
            num_layers=facts["num_hidden_layers"],
            hidden=hidden,
            num_heads=heads,
            num_kv_heads=facts.get("num_key_value_heads") or heads,
            head=facts.get("head_dim") or hidden // heads,
            mlp=facts["intermediate_size"],
            vocabulary=facts["vocab_size"],
            is_tied=bool(facts.get("tie_word_embeddings", False)),
            has_qkv_bias=bool(facts.get("attention_bias", facts.get("model_type") in _BIASED_TYPES)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} does not give the sizes of a decoder ({error!r}); fetch it again") from error
    try:
        tensors = read_tensors(weight_files(folder))
    except ArtefactMissing:
        return size
    return replace(size, stated_parameters=sum(tensor.num_elements for tensor in tensors))
