"""The networks of a deployment as one vLLM model: each an instance of its own registered class, under its own prefix.

vLLM's cache manager finds the layers of all of them and gives every token one place in each, so that the networks stay
in lockstep. The hidden states lie side by side, and so do the logits. Knows nothing of what is drawn from them.
Legend: N tokens of a step, R rows with logits, K networks, V tokens of the shared vocabulary.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.config.utils import replace
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model
from vllm.transformers_utils.config import get_config

_SOURCE_MARK = "cong-network:"
"""Stands before the role in the names of all weights that do not come from the first network's folder."""


class MixedForCausalLM(nn.Module):
    """K networks that read the same tokens."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        assert not prefix, "the mixed model is not a part of another"
        config = vllm_config.model_config.hf_config
        self.vocab_size: int = config.cong_vocab_size
        self.roles: list[str] = [network["role"] for network in config.cong_networks]
        self.secondary_weights = [
            DefaultModelLoader.Source(
                network["folder"], None, prefix=f"{_SOURCE_MARK}{network['role']}:", fall_back_to_pt=False
            )
            for network in config.cong_networks[1:]
        ]
        """What vLLM's loader reads beside the first network's folder."""
        for network in config.cong_networks:
            self.add_module(network["role"], _build(vllm_config, network["role"], network["folder"]))
        self._widths: list[int] = []
        """Of each network's hidden states; known from the first forward on."""

    @property
    def networks(self) -> list[Any]:
        """In the order of a mixture's weights; each of its own class of vLLM's."""
        return [self.get_submodule(role) for role in self.roles]

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """The first network's embeddings; vLLM asks every model for the method."""
        embedded: Tensor = self.networks[0].embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of every network side by side, [N, sum of their widths]."""
        hidden = [network(input_ids, positions) for network in self.networks]
        self._widths = [states_ND.shape[-1] for states_ND in hidden]
        return torch.cat(hidden, dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits of every network side by side, each cut to the shared vocabulary, [R, K * V]."""
        parts = torch.split(hidden_states, self._widths, dim=-1)
        logits = [
            network.compute_logits(states_RD.contiguous())
            for network, states_RD in zip(self.networks, parts, strict=True)
        ]
        if any(logits_RV is None for logits_RV in logits):
            return None  # vLLM gathers logits on one rank only on some platforms
        return torch.cat([logits_RV[:, : self.vocab_size] for logits_RV in logits], dim=-1)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Hand each network the weights of its own folder; returns the names of what was filled."""
        loaded: set[str] = set()
        for role, own in itertools.groupby(weights, key=lambda item: self._role_of(item[0])):
            stored = ((name.removeprefix(f"{_SOURCE_MARK}{role}:"), tensor) for name, tensor in own)
            network: Any = self.get_submodule(role)
            loaded |= {f"{role}.{name}" for name in network.load_weights(stored)}
        return loaded

    def _role_of(self, name: str) -> str:
        return name.split(":")[1] if name.startswith(_SOURCE_MARK) else self.roles[0]


def _build(vllm_config: VllmConfig, role: str, folder: str) -> nn.Module:
    """One network of the class that vLLM has registered for it.

    Compiled code holds the names of the layers whose cache it reads, and is kept on disk under a hash of the
    configuration: twins need hashes and tags of their own, or one would run with the other's cache.
    """
    own = replace(vllm_config, additional_config={**vllm_config.additional_config, "cong_role": role})
    with set_model_tag(f"cong-{role}"):
        module: nn.Module = init_vllm_registered_model(
            own, prefix=role, hf_config=get_config(folder, trust_remote_code=False)
        )
    return module
