"""The seam between transformers' modelling code and a cache of one's own: attention is replaced by name.

Knows nothing of blocks, sequences or what the functions do.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from cong.errors import UnsupportedModel
from cong.models.network import Network
from cong.models.silence import silence

# B sequences, H query heads, K key heads, T positions, D width of a head

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""Called as f(module, query_BHTD, key_BKTD, value_BKTD, attention_mask, scaling=..., **others); returns out_BTHD and
the attention weights or None. `module.layer_idx` says which layer asks; no mask is built for it."""


def register_attention(name: str, function: AttentionFunction) -> None:
    """Make an attention function available to every network under a name of its own."""
    transformers.AttentionInterface.register(name, function)


def use_attention(network: Network, name: str) -> None:
    """Compute a network's attention by a registered function, or by `sdpa` or `eager`."""
    model: Any = network.model
    with silence():
        model.set_attn_implementation(name)
    if model.config.get_text_config(decoder=True)._attn_implementation != name:
        raise UnsupportedModel(
            f"{network.name} ({network.architecture.model_type}) computes attention in code of its own and not through "
            "transformers' attention interface; it cannot be served by an engine with its own cache"
        )
