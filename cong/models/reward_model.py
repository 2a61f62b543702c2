"""Reward models: sequence classifiers with one output, from a folder or hub id to a number per sequence.

Knows no prompts and no answers; what a sequence is made of is decided by whoever asks.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from torch import nn

from cong.errors import UnsupportedModel
from cong.models.artefact import Artefact, open_artefact, read_json, weight_files
from cong.models.fingerprint import fingerprint_weights
from cong.models.pretrained import load_weights, own_weights, parse_device, parse_dtype, read_config
from cong.models.tokenizer import Tokenizer, tokenizer_of
from cong.models.weights import estimate_memory, read_tensors, require_memory
from cong.schemas import content_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A frozen reward model in evaluation mode."""

    name: str
    fingerprint: str
    model: nn.Module = field(repr=False)
    tokenizer: Tokenizer
    context_length: int | None
    """None = the configuration sets no limit."""
    pad_id: int | None
    """None = sequences of different length cannot share a batch."""
    device: torch.device

    @torch.no_grad()
    def rewards(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each sequence of token ids; padded on the right, which changes none of them."""
        if self.pad_id is None and len(sequences) > 1:
            return [reward for sequence in sequences for reward in self.rewards([sequence])]
        longest = max(len(sequence) for sequence in sequences)
        # B sequences, T positions.
        ids_BT = torch.full((len(sequences), longest), self.pad_id or 0, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, sequence in enumerate(sequences):
            ids_BT[row, : len(sequence)] = torch.tensor(sequence)
            mask_BT[row, : len(sequence)] = 1
        output = self.model(input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device))
        return [float(reward) for reward in output.logits[:, 0].float().cpu()]


def fingerprint_reward_model(folder: Path) -> str:
    """Fingerprint of a reward model: its weights, and the padding token, by which it finds a sequence's end."""
    return "r1-" + content_key([fingerprint_weights(folder), read_json(folder / "config.json").get("pad_token_id")])


def load_reward_model(
    source: str,
    *,
    dtype: str,
    device: str,
    revision: str | None = None,
    root: Path | None = None,
    cache_dir: Path | None = None,
    chat_template: str | None = None,
) -> RewardModel:
    """Load a reward model from a folder or hub id: safetensors only, remote code off, every tensor accounted for."""
    torch_dtype, torch_device = parse_dtype(dtype), parse_device(device)
    artefact = open_artefact(source, revision=revision, root=root, cache_dir=cache_dir)
    config = check_reward_model(artefact)
    tensors = read_tensors(weight_files(artefact.folder))
    tokenizer = tokenizer_of(artefact, chat_template=chat_template)
    require_memory(estimate_memory(tensors, torch_dtype), torch_dtype, torch_device, artefact.name)
    model = load_weights(transformers.AutoModelForSequenceClassification, artefact, config, torch_dtype)
    own_weights(model, torch_device)
    text_config = config.get_text_config()
    if text_config.pad_token_id is None and tokenizer.pad_id not in (None, tokenizer.eos_id):
        # The model takes the last token that is no padding for the end, so the end of sequence must not be padding.
        text_config.pad_token_id = tokenizer.pad_id
    if text_config.pad_token_id is None:
        logger.warning("%s has no padding token of its own; sequences are read one at a time", artefact.name)
    limit = getattr(text_config, "max_position_embeddings", None)
    return RewardModel(
        name=artefact.name,
        fingerprint=fingerprint_reward_model(artefact.folder),
        model=model,
        tokenizer=tokenizer,
        context_length=None if limit is None else int(limit),
        pad_id=text_config.pad_token_id,
        device=torch_device,
    )


def check_reward_model(artefact: Artefact) -> Any:
    """The configuration of a sequence classifier with one output; anything else is refused by name."""
    stored = read_json(artefact.folder / "config.json")
    if not stored:
        _refuse(artefact, "it holds no config.json")
    if stored.get("quantization_config"):
        _refuse(artefact, "its weights are quantized; use the unquantized model")
    config = read_config(artefact)
    declared = list(stored.get("architectures") or [])
    if declared and not any(name.endswith("ForSequenceClassification") for name in declared):
        _refuse(artefact, f"its weights are those of {declared[0]}; a sequence classifier is needed")
    is_encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True)
    if is_encoder or type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        # An encoder wants its texts as a pair with separators, which is another rendering.
        _refuse(artefact, f"{config.model_type} is an encoder; a decoder-only one is needed")
    if type(config) not in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        _refuse(artefact, f"transformers has no sequence classifier of type {config.model_type!r}")
    if config.num_labels != 1:
        _refuse(artefact, f"it has {config.num_labels} outputs per sequence; a reward model has 1")
    return config


def _refuse(artefact: Artefact, reason: str) -> NoReturn:
    raise UnsupportedModel(f"{artefact.name} is no reward model: {reason}")
