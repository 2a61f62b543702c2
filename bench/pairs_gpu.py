"""Pairs of random networks of the shapes of real ones, for benchmarks on a GPU, and a tiny one to try these with.

The last norm is scaled so that distributions are about as peaked as a trained network's: with flat ones every token
would be plausible, which no network is.
"""

import tempfile
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers.models import WordLevel

from cong.models import Network, NetworkSet, count_weights, describe_architecture, join_networks
from cong.models.artefact import Artefact
from cong.models.tokenizer import Tokenizer, load_tokenizer
from cong.schemas import Role

STEEPNESS = 4.0
LLAMA = {"model_type": "llama", "vocab_size": 128_256, "head_dim": 64, "rope_theta": 500_000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4_864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "Llama-3.2-1B": LLAMA
    | {
        "hidden_size": 2_048,
        "intermediate_size": 8_192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "Llama-3.2-3B": LLAMA
    | {
        "hidden_size": 3_072,
        "intermediate_size": 8_192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
TINY = LLAMA | {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
"""Of nobody's; to try this program with."""


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """So many words."""
    folder = Path(tempfile.mkdtemp())
    words = {f"w{number}": number for number in range(vocab_size)}
    core = tokenizers.Tokenizer(WordLevel(words, unk_token="w2"))
    make: Any = transformers.PreTrainedTokenizerFast
    make(tokenizer_object=core, bos_token="w0", eos_token="w1", pad_token="w2").save_pretrained(folder)
    return load_tokenizer(str(folder))


def make_model(shape: dict[str, Any], seed: int, dtype: torch.dtype, device: str) -> Any:
    """Random weights, made where they are used."""
    config = transformers.AutoConfig.for_model(**shape, tie_word_embeddings=True, max_position_embeddings=4_096)
    torch.manual_seed(seed)
    auto: Any = transformers.AutoModelForCausalLM
    with torch.device(device):
        model = auto.from_config(config, dtype=dtype).eval().requires_grad_(False)
    model.model.norm.weight.fill_(STEEPNESS)
    return model


def make_pair(
    shape: dict[str, Any], tokenizer: Tokenizer, device: str, dtype: torch.dtype = torch.bfloat16
) -> NetworkSet:
    """Two networks of one shape."""
    networks = []
    roles: tuple[Role, Role] = ("aligned", "base")
    for seed, role in enumerate(roles):
        model = make_model(shape, seed, dtype, device)
        networks.append(
            Network(
                role=role,
                name=role,
                fingerprint=f"random-{seed}",
                model=model,
                tokenizer=tokenizer,
                architecture=describe_architecture(model),
                eos_ids=frozenset({1}),
                dtype=dtype,
                device=torch.device(device),
                weights=count_weights(model),
                own_bytes=sum(p.nbytes for p in model.parameters()),
                artefact=Artefact(Path(), role),
            )
        )
    return join_networks(networks)


def prompts(count: int, length: int, seed: int, vocab_size: int) -> list[tuple[int, ...]]:
    """Random prompts without a common beginning."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, min(vocab_size, 30_000), (count, length), generator=generator)
    return [tuple(row) for row in words.tolist()]
