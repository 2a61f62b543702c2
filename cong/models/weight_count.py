"""How many weights a network has, and which of them a token meets: all but experts that it is not sent to.

The one place that counts; who asks turns the counts into bytes, operations or hours. Experts are found as tensors that
hold a matrix of each, beside the router that says how many of them a token is sent to.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd


@dataclass(frozen=True)
class Experts:
    """The experts of all layers that have the same number of them and send a token to the same number."""

    num_experts: int
    """Of one layer."""
    num_met: int
    """Of one layer, by a token."""
    num_parameters: int
    """Of one expert, in all these layers together."""
    num_matrix_entries: int
    """The same without biases."""
    num_matrices: int
    """The same, counted in matrices."""

    def num_distinct(self, num_tokens: float) -> float:
        """How many of a layer so many tokens meet: expected, where each expert is as likely as any other."""
        missed = math.pow(1.0 - self.num_met / self.num_experts, num_tokens)
        return self.num_experts * (1.0 - missed)


@dataclass(frozen=True)
class WeightCount:
    """The weights of a decoder, each counted once."""

    num_parameters: int
    num_head: int
    """Of the output head, whether it is the embedding or not."""
    num_shared: int
    """Entries of matrices that every token is multiplied with before the head; embeddings are only looked up."""
    experts: tuple[Experts, ...] = ()

    @property
    def num_body(self) -> int:
        """Entries of matrices that one token is multiplied with before the head."""
        return self.num_shared + sum(one.num_met * one.num_matrix_entries for one in self.experts)

    @property
    def num_active(self) -> int:
        """All weights but those of experts that a token does not meet."""
        unmet = sum((one.num_experts - one.num_met) * one.num_parameters for one in self.experts)
        return self.num_parameters - unmet

    def num_read(self, num_tokens: float) -> float:
        """All weights but those of experts that none of so many tokens is expected to meet."""
        unmet = sum((one.num_experts - one.num_distinct(num_tokens)) * one.num_parameters for one in self.experts)
        return self.num_parameters - unmet


def count_weights(model: nn.Module) -> WeightCount:
    """Of a causal language model of transformers, with or without an adapter; torch's meta device will do."""
    network: Any = model
    head = network.get_output_embeddings().weight
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} - {id(head)}
    routed = {id(one.weight): one for one in _routed(network)}
    groups: dict[tuple[int, int], list[_Routed]] = defaultdict(list)
    num_parameters = num_shared = 0
    for name, weight in model.named_parameters():
        num_parameters += weight.numel()
        if id(weight) in routed:
            one = routed[id(weight)]
            groups[one.num_experts, one.num_met].append(one)
        elif weight.ndim == 2 and not name.endswith("bias") and weight is not head and id(weight) not in looked_up:
            num_shared += weight.numel()
    return WeightCount(
        num_parameters=num_parameters,
        num_head=head.numel(),
        num_shared=num_shared,
        experts=tuple(_experts(*numbers, tensors) for numbers, tensors in groups.items()),
    )


@dataclass(frozen=True)
class _Routed:
    """A tensor that holds something of every expert of a layer."""

    weight: nn.Parameter
    num_experts: int
    num_met: int
    is_matrix: bool

    @property
    def num_each(self) -> int:
        """Entries of one expert."""
        return self.weight.numel() // self.num_experts


def _experts(num_experts: int, num_met: int, tensors: list[_Routed]) -> Experts:
    return Experts(
        num_experts,
        num_met,
        num_parameters=sum(one.num_each for one in tensors),
        num_matrix_entries=sum(one.num_each for one in tensors if one.is_matrix),
        num_matrices=sum(one.is_matrix for one in tensors),
    )


def _routed(model: Any) -> Iterator[_Routed]:
    for path, module in model.named_modules():
        own = [weight for weight in module.parameters(recurse=False) if weight.ndim > 1]
        sizes = {len(weight) for weight in own if weight.ndim == 3 and not isinstance(module, _ConvNd)}
        num_met = _num_met(model, path) if sizes else 0
        for weight in own:
            if len(weight) in sizes and 0 < num_met <= len(weight):
                yield _Routed(weight, len(weight), num_met, weight.ndim == 3)
        # An adapter of one tensor, as peft builds it, has factors for every expert in it.
        if hasattr(module, "get_param") and module.get_param().ndim == 3:
            num_experts, num_met = len(module.get_param()), _num_met(model, path)
            for factor in (*module.lora_A.parameters(), *module.lora_B.parameters()):
                yield _Routed(factor, num_experts, num_met, is_matrix=True)


def _num_met(model: Any, path: str) -> int:
    """What the router nearest to a module says; 0 = there is none."""
    while path:
        path = path.rpartition(".")[0]
        for module in model.get_submodule(path).modules():
            num_met = getattr(module, "top_k", None)
            if isinstance(num_met, int):
                return num_met
    return 0
