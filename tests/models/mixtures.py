"""Tiny networks of every way in which a mixture of experts is built, as configurations of transformers."""

from collections.abc import Callable
from typing import Any

import transformers

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
EAGER: dict[str, Any] = {"experts_implementation": "eager"}
ROUTED: dict[str, Any] = {"num_experts_per_tok": 2} | EAGER
COMPRESSED: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
}

MIXTURES: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=8, **ROUTED),
    "qwen2-moe": lambda: transformers.Qwen2MoeConfig(
        **SMALL, num_experts=8, moe_intermediate_size=24, shared_expert_intermediate_size=40, **ROUTED
    ),
    # Its second layer has no experts.
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **SMALL, num_experts=8, moe_intermediate_size=24, mlp_only_layers=[1], **ROUTED
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**SMALL, num_experts=8, **ROUTED),
    # Experts with biases.
    "gpt-oss": lambda: transformers.GptOssConfig(**SMALL, head_dim=8, num_local_experts=8, **ROUTED),
    # Keys and values compressed, the first layer without experts.
    "deepseek-v3": lambda: transformers.DeepseekV3Config(**SMALL | COMPRESSED, n_group=2, topk_group=1, **ROUTED),
    # A name of its own for every number.
    "ernie": lambda: transformers.Ernie4_5_MoeConfig(
        **SMALL | EAGER,
        moe_num_experts=8,
        moe_k=2,
        moe_intermediate_size=24,
        moe_num_shared_experts=1,
    ),
    # Experts of attention, too.
    "jetmoe": lambda: transformers.JetMoeConfig(
        **{name: number for name, number in SMALL.items() if name != "num_attention_heads"},
        kv_channels=8,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
}
