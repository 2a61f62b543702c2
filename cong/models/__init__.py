"""Weights, tokenizers and chat templates, from folders or the hub to networks that are checked and ready to run.

The one place that imports transformers besides the lab. Safetensors only, remote code off; knows no engine and no
training.
"""

from cong.models.architecture import Architecture, describe_architecture
from cong.models.artefact import Artefact, open_artefact, weight_files
from cong.models.attention import register_attention, use_attention
from cong.models.blueprint import make_blueprint, open_blueprint
from cong.models.chat import TEMPLATE_DATE, prompt_token_ids, render_chat, render_text
from cong.models.deployment import ROLES, describe_networks, load_networks, require_weights, roles_of
from cong.models.fingerprint import fingerprint_adapter, fingerprint_tokenizer, fingerprint_weights
from cong.models.network import (
    Network,
    attach_adapter,
    describe_network,
    load_network,
    save_network,
)
from cong.models.network_set import NetworkSet, join_networks
from cong.models.pretrained import DTYPES
from cong.models.reward_model import RewardModel, check_reward_model, fingerprint_reward_model, load_reward_model
from cong.models.tokenizer import (
    Tokenizer,
    detokenize,
    encode_completion,
    encode_prompt,
    load_tokenizer,
    token_texts,
)
from cong.models.weight_count import Experts, WeightCount, count_weights
from cong.models.weights import MemoryEstimate, available_memory, estimate_memory, read_tensors

__all__ = [
    "DTYPES",
    "ROLES",
    "TEMPLATE_DATE",
    "Architecture",
    "Artefact",
    "Experts",
    "MemoryEstimate",
    "Network",
    "NetworkSet",
    "RewardModel",
    "Tokenizer",
    "WeightCount",
    "attach_adapter",
    "available_memory",
    "check_reward_model",
    "count_weights",
    "describe_architecture",
    "describe_network",
    "describe_networks",
    "detokenize",
    "encode_completion",
    "encode_prompt",
    "estimate_memory",
    "fingerprint_adapter",
    "fingerprint_reward_model",
    "fingerprint_tokenizer",
    "fingerprint_weights",
    "join_networks",
    "load_network",
    "load_networks",
    "load_reward_model",
    "load_tokenizer",
    "make_blueprint",
    "open_artefact",
    "open_blueprint",
    "prompt_token_ids",
    "read_tensors",
    "register_attention",
    "render_chat",
    "render_text",
    "require_weights",
    "roles_of",
    "save_network",
    "token_texts",
    "use_attention",
    "weight_files",
]
