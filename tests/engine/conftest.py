"""Pairs of tiny random networks of every tested architecture, as ordinary folders, and plain copies for the oracle."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import nn

from cong.models import Network, NetworkSet, join_networks, load_network, use_attention
from cong.schemas import Role
from tests.models.mixtures import SMALL

VOCAB, EOS = SMALL["vocab_size"], SMALL["eos_token_id"]
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,;!?"

PLAIN = {name: value for name, value in SMALL.items() if name not in ("num_key_value_heads",)}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama-tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True, attention_bias=True),
    "mistral-window": lambda: transformers.MistralConfig(**SMALL, sliding_window=9),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=11, max_window_layers=1),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, head_dim=8, sliding_window=7, attn_logit_softcapping=5.0),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=7),
    "phi3": lambda: transformers.Phi3Config(**SMALL),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**PLAIN),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=160, bos_token_id=0, eos_token_id=EOS
    ),
    "opt": lambda: transformers.OPTConfig(
        **{name: value for name, value in PLAIN.items() if name != "intermediate_size"},
        ffn_dim=48,
        word_embed_proj_dim=32,
    ),
}


def save_tokenizer(folder: Path) -> None:
    """One character, one token; <s> in front of every text."""
    words = ["<s>", "</s>", "<pad>", *ALPHABET]
    core = tokenizers.Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = Split(tokenizers.Regex("."), "isolated")
    core.decoder = tokenizers.decoders.Fuse()
    make: Any = transformers.PreTrainedTokenizerFast
    wrapped = make(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>")
    wrapped.save_pretrained(folder)


def save_network(folder: Path, config: Any, seed: int, scale: float = 0.3) -> Path:
    """A random network with its tokenizer."""
    torch.manual_seed(seed)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * scale)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_adapter(folder: Path, base: Path, target_modules: list[str]) -> Path:
    """A LoRA adapter with random factors on some layers of a base."""
    import peft  # not in the environment of the vLLM back end, whose tests share this file

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(str(base))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a name that transformers is about to drop
        adapted: Any = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=4,
                lora_alpha=8,
                target_modules=target_modules,
                fan_in_fan_out="c_attn" in target_modules,
                task_type="CAUSAL_LM",
            ),
        )
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    adapted.save_pretrained(folder)
    return folder


def load(folder: Path, role: Role = "aligned", dtype: str = "float32", device: str = "cpu") -> Network:
    """The network that lies in a folder."""
    return load_network(str(folder), role=role, dtype=dtype, device=device)


class World:
    """Folders of networks, made once; fresh networks for an engine, and plain ones for the oracle."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, family: str, seed: int, **changes: Any) -> Path:
        """The folder of a random network."""
        name = f"{family}-{seed}-" + "-".join(f"{key}{value}" for key, value in sorted(changes.items()))
        path = self._root / name
        if not path.exists():
            config = FAMILIES[family]()
            for key, value in changes.items():
                setattr(config, key, value)
            save_network(path, config, seed)
        return path

    def networks(self, *folders: Path, dtype: str = "float32", device: str = "cpu") -> NetworkSet:
        """Freshly loaded networks, checked as one set."""
        roles: tuple[Role, ...] = {1: ("aligned",), 2: ("aligned", "base"), 3: ("strong", "aligned", "base")}[  # type: ignore[assignment]
            len(folders)
        ]
        return join_networks([load(folder, role, dtype, device) for folder, role in zip(folders, roles, strict=True)])

    def oracle(self, *folders: Path) -> list[nn.Module]:
        """The same networks as the reference sampler takes them."""
        networks = [load(folder) for folder in folders]
        for network in networks:
            use_attention(network, "eager")
        return [network.model for network in networks]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("networks"))
