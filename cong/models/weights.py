"""What a safetensors file says about itself: which tensors, how large, and whether they fit into memory.

Reads headers only; no tensor is loaded, and nothing here knows an architecture.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cong.errors import ArtefactMissing, NotEnoughMemory

GIB = 2**30
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""
_FLOAT_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: its description and the bytes it occupies there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    """Offset of its first byte in the file."""
    end: int

    @property
    def num_elements(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def read_tensors(paths: Iterable[Path]) -> tuple[StoredTensor, ...]:
    """Every tensor of some safetensors files, sorted by name."""
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        for tensor in _read_header(path):
            if tensor.name in tensors:
                raise ArtefactMissing(
                    f"{tensor.name} is in {tensors[tensor.name].path} and in {path}; fetch the folder again, whole"
                )
            tensors[tensor.name] = tensor
    return tuple(tensors[name] for name in sorted(tensors))


def _read_header(path: Path) -> list[StoredTensor]:
    num_file_bytes = path.stat().st_size
    with path.open("rb") as file:
        first_bytes = file.read(8)
        num_header_bytes = int.from_bytes(first_bytes, "little")
        if first_bytes == b"version ":
            raise ArtefactMissing(f"{path} is a Git LFS pointer, not the weights; fetch them with: git lfs pull")
        if num_header_bytes > min(_MAX_HEADER_BYTES, num_file_bytes - 8):
            raise ArtefactMissing(
                f"{path} is not a whole safetensors file ({num_file_bytes} bytes, and its header would be "
                f"{num_header_bytes}); fetch or save it again"
            )
        header_bytes = file.read(num_header_bytes)
    data_start = 8 + num_header_bytes
    tensors = []
    try:
        for name, entry in json.loads(header_bytes).items():
            if name == "__metadata__":
                continue
            start, end = (data_start + offset for offset in entry["data_offsets"])
            tensors.append(StoredTensor(name, entry["dtype"], tuple(entry["shape"]), path, start, end))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtefactMissing(f"{path} has a damaged safetensors header ({error!r}); fetch or save it again") from error
    num_wanted_bytes = max((tensor.end for tensor in tensors), default=data_start)
    if num_wanted_bytes > num_file_bytes:
        raise ArtefactMissing(
            f"{path} is cut short: {num_file_bytes} of {num_wanted_bytes} bytes; fetch or save it again"
        )
    return tensors


@dataclass(frozen=True)
class MemoryEstimate:
    """What loading some weights will take, known from their headers alone."""

    num_parameters: int
    weights_bytes: int
    """Resident once loaded, in the dtype asked for."""
    transient_bytes: int
    """Largest tensor: it exists twice for a moment while it is converted or copied."""
    is_converted: bool
    """Some floating-point tensor is stored in another dtype, so loading makes host copies whatever the device."""


def estimate_memory(tensors: Sequence[StoredTensor], dtype: torch.dtype) -> MemoryEstimate:
    """Bytes that these tensors take once their floating-point members are in `dtype`."""

    def loaded_bytes(tensor: StoredTensor) -> int:
        is_float = tensor.dtype in _FLOAT_TYPES
        return tensor.num_elements * dtype.itemsize if is_float else tensor.end - tensor.start

    return MemoryEstimate(
        num_parameters=sum(tensor.num_elements for tensor in tensors),
        weights_bytes=sum(map(loaded_bytes, tensors)),
        transient_bytes=max(map(loaded_bytes, tensors), default=0),
        is_converted=any(_FLOAT_TYPES.get(tensor.dtype, dtype) != dtype for tensor in tensors),
    )


def require_memory(estimate: MemoryEstimate, dtype: torch.dtype, device: torch.device, what: str) -> None:
    """Refuse to load what would not fit, before a byte of it is read."""
    needs = [(device, estimate.weights_bytes + estimate.transient_bytes)]
    if device.type != "cpu" and estimate.is_converted:
        needs.append((torch.device("cpu"), estimate.weights_bytes))
    for place, needed_bytes in needs:
        available_bytes = available_memory(place)
        if needed_bytes > available_bytes:
            raise NotEnoughMemory(
                f"{what} needs {needed_bytes / GIB:.2f} GiB on {place} ({estimate.num_parameters / 1e9:.3f} billion "
                f"parameters in {str(dtype).removeprefix('torch.')}), and {available_bytes / GIB:.2f} GiB is "
                "available; use bfloat16, a smaller network, a pair that shares its base through a LoRA adapter, or "
                "a machine with more memory"
            )


def available_memory(device: torch.device, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be allocated on a device; on the host the limits of its control groups count too."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        reusable_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free_bytes + reusable_bytes
    lines = (proc / "meminfo").read_text().splitlines()
    kibibytes = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines if ":" in line)}
    return min([kibibytes["MemAvailable"] * 1024, *_control_group_rooms(proc, cgroups)])


def _control_group_rooms(proc: Path, cgroups: Path) -> list[int]:
    """Bytes left in each control group (version 2, then 1) around this process that sets a limit."""
    membership = proc / "self" / "cgroup"
    rooms = []
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit_name, usage_name, cache_name = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit_name = cgroups / "memory", "memory.limit_in_bytes"
            usage_name, cache_name = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # Inside a container the listed path may not exist below the mount, and the mount itself is the group.
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            limit = _read_word(folder / limit_name)
            if limit.isdigit():
                used_bytes = int(_read_word(folder / usage_name) or 0) - _read_statistic(folder, cache_name)
                rooms.append(max(0, int(limit) - used_bytes))
            if folder == mount:
                break
    return rooms


def _read_word(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _read_statistic(folder: Path, name: str) -> int:
    lines = _read_word(folder / "memory.stat").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
