"""Weights that are counted, against those that networks hold and the products that they compute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from cong.models import Experts, count_weights
from cong.models.silence import silence
from tests.engine.conftest import FAMILIES
from tests.models.mixtures import MIXTURES

NUM_TOKENS = 16
NETWORKS: Any = transformers.AutoModelForCausalLM
every_mixture = pytest.mark.parametrize("make", MIXTURES.values(), ids=MIXTURES)


@pytest.mark.parametrize("make", [*FAMILIES.values(), *MIXTURES.values()], ids=[*FAMILIES, *MIXTURES])
def test_each_weight_is_counted_once(make: Callable[[], Any]) -> None:
    model = NETWORKS.from_config(make())
    assert count_weights(model).num_parameters == sum(weight.numel() for weight in model.parameters())


@every_mixture
def test_a_token_is_multiplied_with_the_experts_that_it_is_sent_to(make: Callable[[], Any]) -> None:
    model = NETWORKS.from_config(make())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(NUM_TOKENS)[None])
    counted = {str(name): number for name, number in counter.get_flop_counts()["Global"].items()}
    # Attention's own products have other names, and are no weights'.
    forward = counted.get("aten.mm", 0) + counted.get("aten.addmm", 0)
    weights = count_weights(model)
    assert 2 * NUM_TOKENS * (weights.num_body + weights.num_head) == forward


@every_mixture
def test_a_network_that_sends_tokens_everywhere_is_active_as_a_whole(make: Callable[[], Any]) -> None:
    config = make()
    few = count_weights(NETWORKS.from_config(config))
    config.num_experts_per_tok = 8
    every = count_weights(NETWORKS.from_config(config))
    assert few.num_active < few.num_parameters == every.num_parameters == every.num_active
    assert sum(one.num_parameters * 6 for one in few.experts) == few.num_parameters - few.num_active
    assert few.num_read(1) == few.num_active


def test_biases_of_experts_are_theirs() -> None:
    with_biases = count_weights(NETWORKS.from_config(MIXTURES["gpt-oss"]()))
    (experts,) = with_biases.experts
    # In each of 2 layers: 3 matrices of 32 by 48, with as many biases as they have outputs
    assert experts == Experts(8, 2, 2 * (3 * 32 * 48 + 2 * 48 + 32), 2 * 3 * 32 * 48, num_matrices=4)


def test_an_adapter_of_experts_is_met_as_they_are() -> None:
    peft = pytest.importorskip("peft")
    model = NETWORKS.from_config(MIXTURES["mixtral"]())
    plain = count_weights(model)
    with silence():
        model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_parameters=["experts.down_proj"]))
    adapted = count_weights(model)
    # In each of 2 layers 8 experts, of which 2 are met, with 3 numbers for each of 48 inputs and 32 outputs.
    assert adapted.num_parameters - plain.num_parameters == 2 * 8 * 3 * (48 + 32)
    assert adapted.num_body - plain.num_body == 2 * 2 * 3 * (48 + 32)
    assert adapted.num_active - plain.num_active == 2 * 2 * 3 * (48 + 32)


def test_convolutions_are_no_experts() -> None:
    # Layers of linear attention hold a convolution each, whose weights have three dimensions, beside a router.
    config = transformers.Qwen3NextConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    )
    with torch.device("meta"):
        (experts,) = count_weights(NETWORKS.from_config(config)).experts
    assert experts.num_parameters == 2 * 3 * 32 * 24


def test_distinct_experts_of_some_tokens_are_those_that_chance_would_choose() -> None:
    experts = Experts(num_experts=16, num_met=3, num_parameters=1, num_matrix_entries=1, num_matrices=1)
    generator = torch.Generator().manual_seed(0)
    for num_tokens in (1, 4, 20):
        scores_RNE = torch.rand(4000, num_tokens, 16, generator=generator)
        met_RE = torch.zeros(4000, 16).scatter(1, scores_RNE.topk(3).indices.flatten(1), 1.0)
        # Of 4,000 draws the mean strays by less than a fortieth.
        assert experts.num_distinct(num_tokens) == pytest.approx(met_RE.sum(-1).mean().item(), abs=0.1)
    assert experts.num_distinct(1) == pytest.approx(3)
