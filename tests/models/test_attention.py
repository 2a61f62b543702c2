"""Attention is replaced by name in every architecture that asks the interface for it, and by nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cong.errors import UnsupportedModel
from cong.models import Network, load_network, register_attention, use_attention

# B sequences, H query heads, K key heads, T positions, D width of a head

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}

CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=4),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, sliding_window=4, query_pre_attn_scalar=8),
    "phi3": lambda: transformers.Phi3Config(**GROUPED),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
    ),
    "opt": lambda: transformers.OPTConfig(
        **(SIZES | {"word_embed_proj_dim": 32, "ffn_dim": 48}),
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4),
    "gptj": lambda: transformers.GPTJConfig(vocab_size=300, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
}
REFUSED = ("bloom", "gptj")
SERVED = tuple(name for name in CONFIGS if name not in REFUSED)
KINDS = {
    "mistral": ("sliding_attention", "sliding_attention"),
    "gemma2": ("sliding_attention", "full_attention"),
}
ATTENTION_NAME = "cong_test_attention"


def _network(name: str, folder: Path, tokenizer_folder: Path) -> Network:
    torch.manual_seed(3)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    return load_network(str(folder), role="base", dtype="float32", device="cpu")


def _plain_attention(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention written out, from what the interface hands over and nothing else."""
    assert attention_mask is None
    num_groups = query_BHTD.shape[1] // key_BKTD.shape[1]
    key_BHTD, value_BHTD = (tensor.repeat_interleave(num_groups, dim=1) for tensor in (key_BKTD, value_BKTD))
    scores_BHTT = query_BHTD @ key_BHTD.mT * (query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores_BHTT = softcap * torch.tanh(scores_BHTT / softcap)
    positions_T = torch.arange(query_BHTD.shape[2])
    distance_TT = positions_T[:, None] - positions_T[None]
    hidden_TT = distance_TT < 0
    if sliding_window is not None:
        hidden_TT |= distance_TT >= sliding_window
    weights_BHTT = scores_BHTT.masked_fill(hidden_TT, -torch.inf).softmax(-1)
    return (weights_BHTT @ value_BHTD).transpose(1, 2).contiguous(), None


@torch.inference_mode()
def _logits(network: Network) -> torch.Tensor:
    ids_BT = torch.arange(20).reshape(2, 10) * 7 % 290
    positions_BT = torch.arange(10).expand(2, -1)
    logits: torch.Tensor = network.model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits
    return logits


@pytest.mark.parametrize("name", SERVED)
def test_a_registered_function_computes_the_attention_of_every_layer(
    name: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    network = _network(name, tmp_path, tokenizer_folder)
    use_attention(network, "eager")
    expected = _logits(network)
    calls = []

    def recorded(module: Any, query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> Any:
        kind = "sliding_attention" if options.get("sliding_window") else "full_attention"
        calls.append((module.layer_idx, query.shape[1], key.shape[1], key.shape[3], kind))
        return _plain_attention(module, query, key, *rest, **options)

    register_attention(ATTENTION_NAME, recorded)
    use_attention(network, ATTENTION_NAME)
    torch.testing.assert_close(_logits(network), expected, atol=1e-4, rtol=1e-4)
    facts = network.architecture
    assert facts.layer_kinds == KINDS.get(name, ("full_attention", "full_attention"))
    assert calls == [
        (index, facts.num_heads, facts.num_kv_heads, facts.head_dim, kind)
        for index, kind in enumerate(facts.layer_kinds)
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_with_attention_of_its_own_is_refused_by_name(
    name: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    network = _network(name, tmp_path, tokenizer_folder)
    before = _logits(network)
    register_attention(ATTENTION_NAME, _plain_attention)
    with pytest.raises(UnsupportedModel, match=f"{name}.* computes attention in code of its own"):
        use_attention(network, ATTENTION_NAME)
    assert torch.equal(_logits(network), before)
