"""Weights to a frozen network that is ready to run, with the facts that an engine plans by.

One network at a time; whether several fit together is decided in `network_set`, and how attention is computed in
`attention`.
"""

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from cong.errors import ArtefactMissing, ConfigError, ModelError, UnsupportedModel
from cong.files import make_folder
from cong.models.adapter import Adapter, apply_adapter, open_adapter, require_own_base, share_weights
from cong.models.architecture import Architecture, describe_architecture
from cong.models.artefact import Artefact, open_artefact, read_json, weight_files
from cong.models.fingerprint import fingerprint_adapted, fingerprint_adapter, fingerprint_weights
from cong.models.pretrained import (
    build_without_weights,
    load_weights,
    own_weights,
    parse_device,
    parse_dtype,
    read_config,
)
from cong.models.silence import silence
from cong.models.tokenizer import Tokenizer, end_ids, has_tokenizer, tokenizer_of
from cong.models.weight_count import WeightCount, count_weights
from cong.models.weights import estimate_memory, read_tensors, require_memory
from cong.schemas import NetworkIdentity, Role

_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True, eq=False)
class Network:
    """A frozen network in evaluation mode; call `model.requires_grad_(True)` to train it."""

    role: Role
    name: str
    fingerprint: str
    """Names the stored weights; the dtype they run in is not part of it."""
    model: nn.Module = field(repr=False)
    """A transformers causal LM; answers `model(input_ids=..., ...).logits`."""
    tokenizer: Tokenizer
    architecture: Architecture
    eos_ids: frozenset[int]
    dtype: torch.dtype
    device: torch.device
    weights: WeightCount
    own_bytes: int
    """Memory of its own weights; those shared with another network are counted there."""
    artefact: Artefact
    base_fingerprint: str | None = None
    """Fingerprint of the network whose weights this one shares; None = it has its own."""

    @property
    def num_parameters(self) -> int:
        """All weights, those included that it shares with another network."""
        return self.weights.num_parameters

    @property
    def identity(self) -> NetworkIdentity:
        """What a sample record says about this network."""
        return NetworkIdentity(role=self.role, name=self.name, fingerprint=self.fingerprint)


def load_network(
    source: str,
    *,
    role: Role,
    dtype: str,
    device: str,
    revision: str | None = None,
    adapter: str | None = None,
    adapter_revision: str | None = None,
    root: Path | None = None,
    cache_dir: Path | None = None,
    chat_template: str | None = None,
) -> Network:
    """Load a causal language model from a folder or hub id, after everything that can be checked first has been.

    An `adapter` is merged into this network's own weights; `attach_adapter` shares them instead.
    """
    torch_dtype, torch_device = parse_dtype(dtype), parse_device(device)
    artefact = open_artefact(source, revision=revision, root=root, cache_dir=cache_dir)
    config = _check_config(artefact)
    opened = None
    if adapter is not None:
        opened = open_adapter(adapter, revision=adapter_revision, root=root, cache_dir=cache_dir)
    tensors = read_tensors(weight_files(artefact.folder))
    tokenizer = tokenizer_of(artefact, chat_template=chat_template)
    estimate = estimate_memory(tensors, torch_dtype)
    require_memory(estimate, torch_dtype, torch_device, artefact.name)
    model = load_weights(transformers.AutoModelForCausalLM, artefact, config, torch_dtype)
    own_weights(model, torch_device)
    network = Network(
        role=role,
        name=artefact.name,
        fingerprint=fingerprint_weights(artefact.folder),
        model=model,
        tokenizer=tokenizer,
        architecture=describe_architecture(model),
        eos_ids=_end_ids(artefact.folder, tokenizer),
        dtype=torch_dtype,
        device=torch_device,
        weights=count_weights(model),
        own_bytes=_num_bytes(model),
        artefact=artefact,
    )
    if opened is None:
        return network
    return _with_adapter(network, opened, role, root, chat_template, is_merged=True)


def describe_network(
    source: str,
    *,
    role: Role,
    dtype: str,
    revision: str | None = None,
    root: Path | None = None,
    cache_dir: Path | None = None,
    chat_template: str | None = None,
) -> Network:
    """A network without its weights, for an engine that loads them itself: the model lies on torch's meta device.

    It may be quantized, since nothing of it is computed here.
    """
    torch_dtype = parse_dtype(dtype)
    artefact = open_artefact(source, revision=revision, root=root, cache_dir=cache_dir)
    config = _check_config(artefact, may_be_quantized=True)
    tokenizer = tokenizer_of(artefact, chat_template=chat_template)
    estimate = estimate_memory(read_tensors(weight_files(artefact.folder)), torch_dtype)
    model = build_without_weights(config, artefact.name, torch_dtype)
    return Network(
        role=role,
        name=artefact.name,
        fingerprint=fingerprint_weights(artefact.folder),
        model=model,
        tokenizer=tokenizer,
        architecture=describe_architecture(model),
        eos_ids=_end_ids(artefact.folder, tokenizer),
        dtype=torch_dtype,
        device=torch.device("meta"),
        weights=count_weights(model),
        own_bytes=estimate.weights_bytes,
        artefact=artefact,
    )


def attach_adapter(
    base: Network,
    adapter: str,
    *,
    role: Role,
    revision: str | None = None,
    root: Path | None = None,
    cache_dir: Path | None = None,
    chat_template: str | None = None,
) -> Network:
    """The base with a LoRA adapter on top, as a second network whose base weights are the same tensors in memory.

    Both stay callable at any time and in any order: the adapter lives in the new module tree, and nothing is toggled.
    """
    if base.base_fingerprint is not None:
        raise ConfigError(f"{base.name} already has an adapter; attach {adapter!r} to the base itself")
    opened = open_adapter(adapter, revision=revision, root=root, cache_dir=cache_dir)
    return _with_adapter(base, opened, role, root, chat_template, is_merged=False)


def _with_adapter(
    base: Network, opened: Adapter, role: Role, root: Path | None, chat_template: str | None, *, is_merged: bool
) -> Network:
    require_own_base(opened, base.artefact, base.fingerprint, base.model, root=root)
    estimate = estimate_memory(opened.tensors, base.dtype)
    require_memory(estimate, base.dtype, base.device, opened.artefact.name)
    tree = base.model if is_merged else share_weights(base.model)
    model = apply_adapter(tree, opened, base.dtype, is_merged=is_merged)
    brings_tokenizer = has_tokenizer(opened.artefact.folder)
    tokenizer = base.tokenizer
    if brings_tokenizer or chat_template is not None:
        tokenizer = tokenizer_of(opened.artefact if brings_tokenizer else base.artefact, chat_template=chat_template)
    return replace(
        base,
        role=role,
        name=f"{base.name}+{opened.artefact.name}",
        fingerprint=fingerprint_adapted(base.fingerprint, fingerprint_adapter(opened.artefact.folder)),
        model=model,
        tokenizer=tokenizer,
        eos_ids=base.eos_ids | end_ids(tokenizer.eos_id),
        weights=count_weights(model),
        own_bytes=_num_bytes(model) if is_merged else _num_bytes(model, beside=base.model),
        base_fingerprint=None if is_merged else base.fingerprint,
    )


def _check_config(artefact: Artefact, *, may_be_quantized: bool = False) -> Any:
    """The configuration of a decoder-only causal language model; anything else is refused by name."""
    folder = artefact.folder
    stored = read_json(folder / "config.json")
    has_adapter = (folder / "adapter_config.json").exists()
    if not stored:
        remedy = "give its base, and this folder as the adapter" if has_adapter else "give a Hugging Face folder"
        what = "an empty config.json" if (folder / "config.json").exists() else "no config.json"
        raise ArtefactMissing(f"{folder} holds {what}; {remedy}")
    if has_adapter:
        raise ConfigError(f"{folder} holds a network and an adapter; keep the adapter in a folder of its own")
    if stored.get("quantization_config") and not may_be_quantized:
        _refuse(artefact, "its weights are quantized; load the unquantized network with dtype bfloat16")
    config = read_config(artefact)
    declared = list(stored.get("architectures") or [])
    if getattr(config, "is_encoder_decoder", False):
        _refuse(artefact, f"{config.model_type} is an encoder-decoder; a decoder-only network is needed")
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        _refuse(artefact, f"transformers has no causal language model of type {config.model_type!r}")
    if declared and not any(name.endswith(_CAUSAL_ENDINGS) for name in declared):
        _refuse(artefact, f"its weights are those of {declared[0]}, which has no language-model head")
    # Encoders have a causal class too; unless is_decoder is set, their attention sees the future.
    is_encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    if is_encoder and getattr(config, "is_decoder", True) is False:
        _refuse(artefact, f"{config.model_type} attends to both sides (is_decoder is false)")
    return config


def _refuse(artefact: Artefact, reason: str) -> NoReturn:
    raise UnsupportedModel(f"{artefact.name} cannot be used: {reason}")


def _num_bytes(model: nn.Module, beside: nn.Module | None = None) -> int:
    """Memory of a model's parameters, without those that it shares with another model."""
    shared = set() if beside is None else {parameter.data_ptr() for parameter in beside.parameters()}
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.data_ptr() not in shared)


def _end_ids(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Ends of sequence that the artefact states itself; defaults of the library do not count."""
    config = read_json(folder / "config.json")
    return end_ids(
        read_json(folder / "generation_config.json").get("eos_token_id"),
        config.get("eos_token_id"),
        (config.get("text_config") or {}).get("eos_token_id"),
        tokenizer.eos_id,
    )


def save_network(network: Network, folder: Path) -> None:
    """Write a network and its tokenizer as a Hugging Face folder, which appears whole or not at all."""
    if network.base_fingerprint is not None:
        raise ConfigError(f"{network.name} shares the weights of its base; load it with the adapter merged to save it")
    if folder.exists():
        raise ConfigError(f"{folder} exists; give a new folder")
    make_folder(folder.parent)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    model: Any = network.model
    try:
        with silence():
            model.save_pretrained(unfinished)
            network.tokenizer.backend.save_pretrained(unfinished)
        unfinished.rename(folder)
    except SafetensorError as error:
        raise ModelError(f"{folder} cannot be written: {error}; make room, and run the same command again") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
