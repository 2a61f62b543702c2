"""Tiny networks of the lab, untrained but not uniform, and one thread for all of it."""

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaForCausalLM

from cong.lab.networks import build_network


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def lively_network(seed: int, hidden_size: int = 16, num_layers: int = 2) -> LlamaForCausalLM:
    """A network with fresh weights, scaled so that its distributions are neither uniform nor certain."""
    network = build_network(hidden_size, num_layers, 2, 24, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "embed_tokens" in name:
                parameter.mul_(20.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(6.0)
    return network


@pytest.fixture(scope="session")
def networks() -> list[LlamaForCausalLM]:
    return [lively_network(seed) for seed in range(3)]
