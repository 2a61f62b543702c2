"""The sizes of a decoder that its configuration states: layers, heads, widths, kinds of attention. Knows no weights."""

from dataclasses import dataclass
from typing import Any

_PAGEABLE_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


@dataclass(frozen=True)
class Architecture:
    """Sizes of a network; what attention does in each layer is learned by running it."""

    model_type: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    """As attention gets them: compressed keys and values are expanded before, to as many as there are heads."""
    head_dim: int
    """Of queries and keys."""
    value_dim: int
    """Of values: another width only where they are compressed."""
    vocab_width: int
    """Width of the logits, padding included."""
    context_length: int | None
    """Longest sequence whose numbers do not hang on its company; None = the configuration sets no limit."""
    stated_context_length: int | None
    """What the configuration calls the limit. It is higher where long sequences turn all their positions by other
    angles than short ones (longrope): keys that are kept were turned before it is known how long theirs becomes."""
    layer_kinds: tuple[str, ...]
    """transformers' name of each layer's kind of attention or state."""
    is_recurrent: bool
    """Some layer keeps a state that is not keys and values per position, so the network cannot be paged."""

    @property
    def num_attention_layers(self) -> int:
        """Layers that keep keys and values."""
        return sum(kind in _PAGEABLE_LAYERS for kind in self.layer_kinds)

    @property
    def num_kept_per_token(self) -> int:
        """Numbers that a cache keeps of one token: keys and values of every layer."""
        return self.num_attention_layers * self.num_kv_heads * (self.head_dim + self.value_dim)


def describe_architecture(model: Any) -> Architecture:
    """Of a causal language model of transformers."""
    config = model.config.get_text_config(decoder=True)
    # A purely recurrent network has no heads.
    num_layers, num_heads = int(config.num_hidden_layers), int(getattr(config, "num_attention_heads", 0))
    default_kind = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    layer_kinds = tuple(getattr(config, "layer_types", None) or (default_kind,) * num_layers)
    stated = getattr(config, "max_position_embeddings", None)
    limits = [int(limit) for limit in (stated, *_lengths_of_equal_angles(config)) if limit is not None]
    num_kv_heads = int(getattr(config, "num_key_value_heads", None) or num_heads)
    head_dim = value_dim = int(getattr(config, "head_dim", None) or config.hidden_size // max(1, num_heads))
    if getattr(config, "kv_lora_rank", None):
        num_kv_heads = num_heads
        head_dim, value_dim = int(config.qk_nope_head_dim + config.qk_rope_head_dim), int(config.v_head_dim)
    return Architecture(
        model_type=str(config.model_type),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        vocab_width=int(model.get_output_embeddings().weight.shape[0]),
        context_length=min(limits, default=None),
        stated_context_length=None if stated is None else int(stated),
        layer_kinds=layer_kinds,
        is_recurrent=bool(getattr(model, "_is_stateful", False)) or not _PAGEABLE_LAYERS.issuperset(layer_kinds),
    )


def _lengths_of_equal_angles(config: Any) -> list[int | None]:
    """Up to where a network with two sets of angles takes the first; some have one such setting per kind of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    each = [one for one in (settings, *settings.values()) if isinstance(one, dict)]
    return [one.get("original_max_position_embeddings") for one in each if one.get("rope_type") == "longrope"]
