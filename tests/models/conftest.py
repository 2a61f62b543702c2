"""Tiny random networks with a tokenizer of the Llama 3 kind, as the folders that users have."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from cong.models import Network, load_network

SPECIAL_TOKENS = ["<|begin|>", "<|end|>", "<|head|>", "<|/head|>", "<|turn|>", "<|pad|>"]

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if strftime_now is defined %}{{- 'Today: ' + strftime_now('%d %b %Y') + '\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}{{- raise_exception('no tools here') }}{%- endif %}"
    "{{- '<|head|>' + message.role + '<|/head|>' + message.content + '<|turn|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>' }}{%- endif %}"
)

MakeNetwork = Callable[..., Path]


def train_tokenizer(folder: Path) -> Path:
    """A byte-level BPE tokenizer that puts <|begin|> in front of every text."""
    core = tokenizers.Tokenizer(BPE())
    core.pre_tokenizer = ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=290, special_tokens=SPECIAL_TOKENS, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(["the cat sat on the mat, and the dog ran to the user and the assistant."] * 4, trainer)
    core.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", core.token_to_id("<|begin|>"))]
    )
    wrap: Any = transformers.PreTrainedTokenizerFast
    wrapped = wrap(tokenizer_object=core, bos_token="<|begin|>", eos_token="<|turn|>", pad_token="<|pad|>")
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
    return folder


def build_llama(folder: Path, *, seed: int = 0, width: int = 300, tied: bool = False, **config: Any) -> Path:
    """The weights of a random Llama, and nothing else."""
    settings = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(seed)
    llama_config = transformers.LlamaConfig(vocab_size=width, tie_word_embeddings=tied, **(settings | config))
    model: Any = transformers.LlamaForCausalLM(llama_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors only lose by threads."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a chat template that writes its own beginning-of-sequence token."""
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A complete network; tests that change it work on a copy."""
    folder = build_llama(tmp_path_factory.mktemp("llama") / "tiny-llama")
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def llama_copy(llama_folder: Path, tmp_path: Path) -> Path:
    """The complete network in a folder that the test may spoil."""
    return Path(shutil.copytree(llama_folder, tmp_path / "tiny-llama"))


@pytest.fixture
def make_network(tokenizer_folder: Path, tmp_path: Path) -> MakeNetwork:
    """Builds a random Llama of given settings with the shared tokenizer."""

    def build(name: str, **settings: Any) -> Path:
        folder = build_llama(tmp_path / name, **settings)
        return Path(shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True))

    return build


@pytest.fixture(scope="session")
def recurrent_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A complete network whose first layer keeps a recurrent state and whose second attends."""
    config = transformers.Qwen3NextConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    )
    folder = tmp_path_factory.mktemp("recurrent") / "tiny-next"
    model: Any = transformers.Qwen3NextForCausalLM(config)
    model.save_pretrained(folder)
    return Path(shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> Network:
    """The complete network, loaded."""
    return load_network(str(llama_folder), role="base", dtype="float32", device="cpu")
