"""The network that is trained, set up so that a backend can take it over: weights, adapter, attention, activations."""

import logging
from typing import Any

import numpy as np
import torch
from torch import nn

from cong.config.models import ModelsConfig, NetworkConfig
from cong.config.train import TrainConfig
from cong.errors import ConfigError, UnsupportedModel
from cong.models import (
    Network,
    fingerprint_adapter,
    fingerprint_weights,
    load_network,
    open_artefact,
    register_attention,
    use_attention,
)
from cong.models.fingerprint import fingerprint_adapted
from cong.models.silence import silence
from cong.train.data.batch import Example, make_batch
from cong.train.data.packing import ATTENTION_NAME, attend_packed
from cong.train.forward import response_logits
from cong.train.lora import add_lora

logger = logging.getLogger(__name__)

COMPARED_FAMILIES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt_neox", "gpt2", "opt"}
    | {"gpt_oss"}
)
"""Packed attention is compared with these networks' own in the tests; with any other, when it is loaded."""


def network_settings(train: TrainConfig, models: ModelsConfig) -> NetworkConfig:
    """Where the network lies that is trained."""
    found = train.network if train.network.source else models.strong
    if not found.source:
        raise ConfigError("there is nothing to train: give train.network.source or models.strong.source")
    return found


def load_by(settings: NetworkConfig, models: ModelsConfig, *, dtype: str, device: str = "cpu") -> Network:
    """A network of the configuration; an adapter is merged."""
    template = None if models.chat_template is None else models.chat_template.read_text(encoding="utf-8")
    return load_network(
        settings.source,
        role="strong",
        dtype=dtype,
        device=device,
        revision=settings.revision,
        adapter=settings.adapter,
        root=models.root,
        chat_template=template,
    )


def fingerprint_of(settings: NetworkConfig, models: ModelsConfig) -> str:
    """Fingerprint of a network of the configuration, without loading it."""
    artefact = open_artefact(settings.source, revision=settings.revision, root=models.root)
    fingerprint = fingerprint_weights(artefact.folder)
    if settings.adapter is None:
        return fingerprint
    adapter = open_artefact(settings.adapter, root=models.root)
    return fingerprint_adapted(fingerprint, fingerprint_adapter(adapter.folder))


def prepare(train: TrainConfig, models: ModelsConfig) -> Network:
    """Load the network on the CPU and set it up; with an adapter only that requires gradients."""
    # Weights that an adapter leaves alone need no more than the precision that they are multiplied in.
    dtype = "bfloat16" if train.lora is not None and train.precision == "bfloat16" else "float32"
    network = load_by(network_settings(train, models), models, dtype=dtype)
    if train.batches.is_packed:
        pack_attention(network)
    model: Any = network.model
    model.requires_grad_(train.lora is None)
    if train.lora is not None:
        add_lora(model, train.lora)
    if train.has_activation_checkpointing:
        with silence():  # newer versions have another name for it, which older ones do not know
            model.gradient_checkpointing_enable({"use_reentrant": False})
    if train.is_compiled:
        compile_layers(model)
    model.config.use_cache = False
    return network


def compile_layers(model: nn.Module) -> None:
    """Compile each decoder layer of a transformers network in place; layers of one kind share what is compiled."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UnsupportedModel(
            f"{type(model).__name__} does not say which of its modules are layers; set train.is_compiled=false"
        )
    for layer in layers:
        # Rows differ in length from step to step.
        layer.compile(dynamic=True)


def pack_attention(network: Network) -> None:
    """Let a network attend to packed sequences, after comparing with its own attention where that is not known."""
    if network.architecture.is_recurrent:
        raise UnsupportedModel(
            f"{network.name} ({network.architecture.model_type}) keeps a state between tokens, which would run on from "
            "one packed sequence to the next; set train.batches.is_packed=false"
        )
    register_attention(ATTENTION_NAME, attend_packed)
    if network.architecture.model_type in COMPARED_FAMILIES:
        use_attention(network, ATTENTION_NAME)
        return
    rng = np.random.default_rng(0)
    width = network.architecture.vocab_width
    examples = [
        Example(str(length), str(length), *_random_ids(rng, width, 2), (_random_ids(rng, width, length)[0],))
        for length in (5, 11)
    ]
    with torch.no_grad():
        alone = [response_logits(network.model, make_batch([example], is_packed=False)) for example in examples[::-1]]
        use_attention(network, ATTENTION_NAME)
        packed = response_logits(network.model, make_batch(examples, is_packed=True))
    difference = (torch.cat(alone).float() - packed.float()).abs().max().item()
    scale = torch.cat(alone).float().abs().max().item()
    bound = (1e-4 if network.dtype == torch.float32 else 5e-2) * max(1.0, scale)
    if not difference <= bound:
        raise UnsupportedModel(
            f"{network.name} ({network.architecture.model_type}) gives other logits for packed sequences: they differ "
            f"by {difference:.2g}, and {bound:.2g} would be rounding; set train.batches.is_packed=false"
        )
    logger.info("%s: packed sequences compared, logits differ by %.1e at most", network.name, difference)


def _random_ids(rng: np.random.Generator, width: int, length: int) -> tuple[Any]:
    return (rng.integers(0, width, length).astype(np.int32),)
