"""A trained network as a Hugging Face folder: weights, tokenizer, generation settings, and a card that says its origin.

The folder appears whole or not at all, and loads in transformers and in our engine like any other.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cong.config.models import ModelsConfig
from cong.config.train import TrainConfig
from cong.errors import CheckpointError
from cong.files import remove_folder
from cong.models import Network, open_artefact, read_tensors, save_network, weight_files
from cong.models.silence import silence
from cong.train.lora import add_lora
from cong.train.trainee import load_by, network_settings

ADAPTER = "adapter"

_DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Names of safetensors and ours; of several the widest counts."""


def export_network(
    weights: Iterable[tuple[str, Tensor]],
    train: TrainConfig,
    models: ModelsConfig,
    folder: Path,
    card: str,
) -> None:
    """Write the network with its trained weights; an adapter is merged, and kept beside it by itself.

    `weights` may be gathered from many processes while it is read, so it is read to its end, whatever happens.
    """
    network = load_by(network_settings(train, models), models, dtype=_dtype(train, models))
    model: Any = network.model
    adapted = None if train.lora is None else add_lora(model, train.lora)
    named = dict(model.named_parameters())
    unknown = []
    with torch.no_grad():
        for name, weight in weights:
            if name in named and named[name].shape == weight.shape:
                named[name].copy_(weight)
            else:
                unknown.append(name)
    if unknown:
        raise CheckpointError(f"{len(unknown)} trained weights have no place in {network.name}, first {unknown[0]}")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        if adapted is None:
            _save(network, unfinished)
        else:
            _save_adapted(network, adapted, unfinished)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        remove_folder(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _save(network: Network, folder: Path) -> None:
    model: Any = network.model
    model.config.use_cache = True
    save_network(network, folder)


def _save_adapted(network: Network, adapted: Any, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    adapter = folder.with_name(f"{folder.name}.{ADAPTER}")
    try:
        with silence():
            adapted.save_pretrained(str(adapter))
            adapted.merge_and_unload()
        _save(network, folder)
        adapter.rename(folder / ADAPTER)
    finally:
        shutil.rmtree(adapter, ignore_errors=True)


def _dtype(train: TrainConfig, models: ModelsConfig) -> str:
    """The type of the exported weights by name."""
    if train.export_dtype != "stored":
        return train.export_dtype
    settings = network_settings(train, models)
    artefact = open_artefact(settings.source, revision=settings.revision, root=models.root)
    stored = {tensor.dtype for tensor in read_tensors(weight_files(artefact.folder))}
    return next((_DTYPE_NAMES[name] for name in ("F32", "BF16", "F16") if name in stored), "float32")


def title_of(folder: Path) -> str | None:
    """What the card of a network that cong has trained calls it; None of any other."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((line[2:] for line in lines if line.startswith("# ")), None) if "- cong" in lines else None


def model_card(
    name: str,
    facts: Mapping[str, str | int | float],
    recipe: Mapping[str, Any],
    metrics: Mapping[str, float],
    hub_id: str = "",
) -> str:
    """Where a network comes from, for people and for the hub; `hub_id` is that of the network it was trained from."""
    lines = [
        "---",
        "library_name: transformers",
        *([f"base_model: {hub_id}"] if hub_id else []),
        "tags:",
        "- weak-to-strong",
        "- cong",
        "---",
        "",
        f"# {name}",
        "",
        f"Trained by cong {facts.get('cong', '')} with the objective `{recipe.get('train.objective.name', '')}`.",
        "",
        "## Provenance",
        "",
        "| what | value |",
        "|---|---|",
        *(f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items()),
        "",
        "## Result",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {_cell(key)} | {value:.6g} |" for key, value in metrics.items()),
        "",
        "## Recipe",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {_cell(key)} | {_cell(value)} |" for key, value in recipe.items()),
        "",
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
