"""What a run runs on: versions and machine, for its folder and for the card of what it makes."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from cong import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "peft", "deepspeed", "ray")


def environment() -> dict[str, str]:
    """Package -> version, and the machine."""
    found = {"cong": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["platform"] = platform.platform()
    found["cores"] = str(os.cpu_count())
    found["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found
