"""What a step's matrix products need, against torch's own count of those that a network computes."""

from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from cong.train.arithmetic import StepArithmetic
from tests.engine.conftest import SMALL

NUM_TOKENS = 16
ROUTED: dict[str, Any] = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=8, **ROUTED),
    "qwen2-moe": lambda: transformers.Qwen2MoeConfig(
        **SMALL, num_experts=8, moe_intermediate_size=24, shared_expert_intermediate_size=40, **ROUTED
    ),
    # Its second layer has no experts.
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **SMALL, num_experts=8, moe_intermediate_size=24, mlp_only_layers=[1], **ROUTED
    ),
    "gpt-oss": lambda: transformers.GptOssConfig(**SMALL, head_dim=8, num_local_experts=8, **ROUTED),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_the_count_is_that_of_the_products_that_a_network_computes(family: str) -> None:
    networks: Any = transformers.AutoModelForCausalLM
    model = networks.from_config(CONFIGS[family]())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(NUM_TOKENS)[None])
    counted = {str(name): number for name, number in counter.get_flop_counts()["Global"].items()}
    # Attention's own products have other names, and are not counted.
    forward = counted.get("aten.mm", 0) + counted.get("aten.addmm", 0)
    arithmetic = StepArithmetic(model, is_recomputed=False)
    assert arithmetic.operations(NUM_TOKENS, NUM_TOKENS) == 3 * forward
