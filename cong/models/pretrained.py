"""What transformers makes of a folder: its configuration, and a frozen model of which no tensor is left at random.

Which configurations are wanted is decided by whoever asks.
"""

import itertools
import logging
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from cong.errors import ConfigError, ModelError, UnsupportedModel
from cong.models.artefact import Artefact
from cong.models.silence import silence

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(name: str) -> torch.dtype:
    """The dtype of a name from a configuration."""
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def parse_device(name: str) -> torch.device:
    """The device of a name from a configuration, if it is there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}; give cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; give cpu, cuda or cuda:0")
    num_devices = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_devices:
        raise ConfigError(f"device is {name!r}, and torch sees {num_devices} CUDA devices here; use cpu")
    return device


def read_config(artefact: Artefact) -> Any:
    """The folder's configuration, without running any code of it."""
    try:
        with silence():
            return transformers.AutoConfig.from_pretrained(
                str(artefact.folder), trust_remote_code=False, local_files_only=True
            )
    except (StrictDataclassError, ValueError, KeyError, TypeError, OSError) as error:
        raise UnsupportedModel(
            f"{artefact.name} cannot be used: transformers {transformers.__version__} cannot read its config.json "
            f"({error})"
        ) from error


def build_without_weights(config: Any, name: str, dtype: torch.dtype | None = None) -> nn.Module:
    """The causal language model of a configuration on torch's meta device: shapes only, in no time and no memory."""
    maker: Any = transformers.AutoModelForCausalLM
    try:
        with silence(), torch.device("meta"):
            # Attention by code of transformers' own, whatever config.json wishes for and this machine lacks.
            model: nn.Module = maker.from_config(config, dtype=dtype, attn_implementation="eager")
    except Exception as error:  # in the code of any family, where a number of the configuration makes no sense
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UnsupportedModel(
            f"{name} cannot be used: transformers {transformers.__version__} makes no causal language model of its "
            f"config.json ({reason})"
        ) from error
    return model.eval().requires_grad_(False)


def load_weights(auto_class: Any, artefact: Artefact, config: Any, dtype: torch.dtype) -> nn.Module:
    """The model that an auto class of transformers makes of safetensors files, frozen, in evaluation mode."""
    try:
        with silence():
            model, report = auto_class.from_pretrained(
                str(artefact.folder),
                config=config,
                dtype=dtype,
                attn_implementation=None,  # transformers chooses, whatever config.json says
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (ValueError, RuntimeError, OSError, ImportError, KeyError) as error:
        raise UnsupportedModel(f"{artefact.name} cannot be loaded: {error}") from error
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing or report["mismatched_keys"]:
        raise ModelError(
            f"{artefact.folder} lacks {len(missing)} tensors of its architecture ({', '.join(missing[:3])}), which "
            "would be left at random; fetch or save the folder again, whole"
        )
    if unexpected:
        logger.warning("%s: %d stored tensors are not used (%s)", artefact.name, len(unexpected), unexpected[:3])
    module: nn.Module = model.eval().requires_grad_(False)
    return module


def own_weights(model: nn.Module, device: torch.device) -> None:
    """Move the weights to the device, and on the CPU out of the mapped file.

    Mapped weights change or kill the process when the file is written in place while the network is in use.
    """
    if device.type != "cpu":
        model.to(device)
        return
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        # Storage that torch did not allocate itself cannot be resized.
        if not tensor.untyped_storage().resizable():
            tensor.data = tensor.data.clone()
