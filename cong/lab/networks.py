"""Tiny Llamas and their character tokenizer, as ordinary Hugging Face objects and folders.

One character of the world is one token. Knows the world's alphabet, torch and transformers; nothing of training.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cong.lab.world import LETTERS

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 25
CHARACTERS = LETTERS + "MOXSRA" + ">!" + "=.;:"
VOCAB = ["<pad>", "<bos>", "<eos>", *CHARACTERS, "<unk>", *(f"<reserved_{i}>" for i in range(26, 32))]
"""Token of each id; the reserved ones round the table up to 32 and stand for nothing."""
CONTEXT_LENGTH = 64
EMBEDDING_STD = 0.02

_ID_OF = {token: i for i, token in enumerate(VOCAB)}


def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text of the world, without special tokens."""
    return tuple(_ID_OF[character] for character in text)


def prompt_ids(prompt: str) -> tuple[int, ...]:
    """Token ids of a prompt, as the tokenizer gives them: begin-of-sequence once, then the characters."""
    return (BOS_ID, *encode(prompt))


def response_ids(response: str) -> tuple[int, ...]:
    """Token ids of a complete response: its characters and the end of the sequence."""
    return (*encode(response), EOS_ID)


def decode(token_ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens."""
    return "".join(VOCAB[i] for i in token_ids if i not in (PAD_ID, BOS_ID, EOS_ID, UNK_ID))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The character tokenizer as a fast tokenizer of transformers."""
    tokenizer = Tokenizer(models.WordLevel(dict(_ID_OF), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS_ID)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=CONTEXT_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _unfilled(config: LlamaConfig) -> LlamaForCausalLM:
    """A network whose weights are still to be given.

    Attention is spelled out in matrix products ("eager"): at these lengths the fused kernel is slower on a CPU.
    """
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights of its own, from the global generator
        network: LlamaForCausalLM = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, attn_implementation="eager", dtype=torch.float32
        )
    network.generation_config = GenerationConfig.from_model_config(config)
    network.train(False)
    return network


def build_network(
    hidden_size: int, num_layers: int, num_heads: int, mlp_size: int, generator: torch.Generator
) -> LlamaForCausalLM:
    """A Llama with fresh weights in float32."""
    config = LlamaConfig(
        vocab_size=len(VOCAB),
        hidden_size=hidden_size,
        intermediate_size=mlp_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=CONTEXT_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    network = _unfilled(config)
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            if parameter.ndim < 2:
                parameter.fill_(1.0)
                continue
            std = EMBEDDING_STD if "embed_tokens" in name else 1.0 / math.sqrt(parameter.shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * num_layers)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return network


def save_network(network: LlamaForCausalLM, folder: Path) -> None:
    """Write a network and the tokenizer as one Hugging Face folder (safetensors)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: parameter.detach().contiguous() for name, parameter in network.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    network.config.save_pretrained(folder)
    network.generation_config.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def load_network(folder: Path) -> LlamaForCausalLM:
    """Read a network of the lab from its folder, in float32."""
    network = _unfilled(LlamaConfig.from_pretrained(folder, local_files_only=True))
    with torch.no_grad():
        weights = load_file(folder / "model.safetensors")
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])
    return network


def clone(network: LlamaForCausalLM) -> LlamaForCausalLM:
    """A network of its own with equal weights."""
    copied: LlamaForCausalLM = copy.deepcopy(network)
    return copied
