"""LoRA adapters: found, checked against their base, and put on top of it, sharing its weights or merged into them.

Knows module trees and peft, which is imported only when an adapter is applied.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cong.errors import AdapterMismatch, ArtefactMissing, ModelError, UnsupportedModel
from cong.models.artefact import Artefact, open_artefact, read_json, weight_files
from cong.models.fingerprint import fingerprint_weights
from cong.models.silence import silence
from cong.models.weights import StoredTensor, read_tensors
from cong.wording import require_installed

logger = logging.getLogger(__name__)

_KEY_PREFIX = "base_model.model."
"""What peft writes in front of a module's path in the base."""
_INERT_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""The others (pissa, olora, loftq, corda, ...) rewrite the base's own weights when an adapter is applied."""
_UNSUPPORTED_SETTINGS = (
    "alora_invocation_tokens",
    "arrow_config",
    "ensure_weight_tying",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that has been opened: its settings and what it stores."""

    artefact: Artefact
    settings: dict[str, Any]
    tensors: tuple[StoredTensor, ...]


def open_adapter(
    source: str, *, revision: str | None = None, root: Path | None = None, cache_dir: Path | None = None
) -> Adapter:
    """Find a LoRA adapter and refuse what is not one, or could change the base it is put on."""
    require_installed("lora", "peft")
    artefact = open_artefact(source, revision=revision, root=root, cache_dir=cache_dir)
    settings = read_json(artefact.folder / "adapter_config.json")
    if not settings:
        raise ArtefactMissing(f"{artefact.folder} holds no adapter_config.json; give the folder that peft saved")
    name = artefact.name
    if settings.get("peft_type") != "LORA":
        raise UnsupportedModel(f"adapter {name} is of type {settings.get('peft_type')!r}; only LORA can be used")
    if settings.get("init_lora_weights", True) not in _INERT_INITIALISATIONS:
        raise UnsupportedModel(
            f"adapter {name} was initialised by {settings['init_lora_weights']!r}, which changes the base's weights; "
            "merge it into its base and give the merged network"
        )
    unsupported = [setting for setting in _UNSUPPORTED_SETTINGS if settings.get(setting)]
    if unsupported or settings.get("bias", "none") != "none":
        raise UnsupportedModel(
            f"adapter {name} sets {', '.join(unsupported) or 'bias'}, which is not supported; merge it into its base "
            "and give the merged network"
        )
    return Adapter(artefact, settings, read_tensors(weight_files(artefact.folder, "adapter_model")))


def require_own_base(
    adapter: Adapter, base: Artefact, base_fingerprint: str, model: nn.Module, *, root: Path | None = None
) -> None:
    """Refuse an adapter whose tensors do not fit this base, or that names another base."""
    name = adapter.artefact.name
    for tensor in adapter.tensors:
        path = _module_path(tensor)
        try:
            fits = _fits(tensor, model.get_submodule(path))
        except (AttributeError, IndexError, ValueError):
            fits = False  # no such layer, or one without two sides
        if not fits:
            raise AdapterMismatch(
                f"adapter {name} has {tensor.name} of shape {list(tensor.shape)}, and {base.name} has no layer that it "
                "fits; give the base that the adapter was trained on"
            )
    named = str(adapter.settings.get("base_model_name_or_path") or "")
    is_another = _is_another_base(named, base, base_fingerprint, root)
    if is_another:
        raise AdapterMismatch(f"adapter {name} was trained on {named}, which is not {base.name}; give that base")
    if is_another is None:
        logger.warning(
            "adapter %s says that its base is %r; whether that is %s cannot be checked beyond the shapes, which fit",
            name,
            named,
            base.name,
        )


def _module_path(tensor: StoredTensor) -> str:
    """Path in the base of the module that a stored tensor belongs to."""
    path = tensor.name.removeprefix(_KEY_PREFIX)
    if ".lora_" in path:
        return path.partition(".lora_")[0]
    # Beside LoRA factors peft stores modules that were trained whole, and embeddings that have factors once more.
    return path.rpartition(".")[0].removesuffix(".base_layer")


def _fits(tensor: StoredTensor, module: nn.Module) -> bool:
    if ".lora_" not in tensor.name:
        return tuple(module.get_parameter(tensor.name.rpartition(".")[2]).shape) == tensor.shape
    part = tensor.name.rpartition(".lora_")[2].removesuffix(".weight")
    # nn.Linear stores (out, in); embeddings and GPT-2's Conv1D store (in, out).
    weight_shape = tuple(module.get_parameter("weight").shape)
    num_out, num_in = weight_shape if isinstance(module, nn.Linear) else weight_shape[::-1]
    if part in ("A", "embedding_A"):
        return tensor.shape[1] == num_in
    return tensor.shape[0] == num_out


def _is_another_base(named: str, base: Artefact, base_fingerprint: str, root: Path | None) -> bool | None:
    """Whether the base that an adapter names is another one; None = it cannot be told."""
    folder = Path(named).expanduser()
    # A folder that an artefact names is looked into only where no root confines what may be opened.
    if named and root is None and (folder / "config.json").exists():
        if folder.resolve() == base.folder.resolve():
            return False
        try:
            return fingerprint_weights(folder) != base_fingerprint
        except ModelError:
            return None
    if base.commit is not None and named.count("/") == 1 and not named.startswith((".", "/")):
        return named.casefold() != base.name.casefold()
    has_same_name = Path(named).name.casefold() == Path(base.name).name.casefold()
    return False if has_same_name else None


def share_weights(model: nn.Module) -> nn.Module:
    """A second module tree over the same parameters: changing its layers leaves the first tree as it is."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def apply_adapter(tree: nn.Module, adapter: Adapter, dtype: torch.dtype, *, is_merged: bool) -> nn.Module:
    """Put an adapter on a module tree: as layers of its own, or merged into the tree's weights."""
    from peft import PeftModel

    folder = adapter.artefact.folder
    try:
        with silence():
            wrapped: Any = PeftModel.from_pretrained(
                cast(Any, tree), str(folder), low_cpu_mem_usage=True, autocast_adapter_dtype=False
            )
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise AdapterMismatch(f"adapter {adapter.artefact.name} cannot be put on its base: {error}") from error
    stored = {_module_path(tensor) for tensor in adapter.tensors if ".lora_" in tensor.name}
    wanted = {name.partition(".lora_")[0] for name, _ in tree.named_parameters() if ".lora_" in name}
    if stored != wanted:
        path = sorted(stored ^ wanted)[0]
        raise AdapterMismatch(
            f"adapter {adapter.artefact.name} has weights for {len(stored)} layers, and its settings target "
            f"{len(wanted)} layers of this base (the first that differs is {path}); give the base that the adapter "
            "was trained on"
        )
    if is_merged:
        model: nn.Module = wrapped.merge_and_unload()
    else:
        model = wrapped.get_base_model()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)
