"""What a step's matrix products need, against torch's own count of those that a network computes."""

from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from cong.train.arithmetic import StepArithmetic
from tests.models.mixtures import MIXTURES, SMALL

NUM_TOKENS = 16
CONFIGS: dict[str, Any] = {"llama": lambda: transformers.LlamaConfig(**SMALL)} | MIXTURES


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
