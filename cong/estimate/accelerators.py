"""Accelerators by name, and how much of what their makers state is taken to be reached."""

from dataclasses import dataclass

from cong.errors import ConfigError


@dataclass(frozen=True)
class Accelerator:
    """One device, as its maker states it."""

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    """Between its memory and its cores."""
    operations_per_s: float
    """Dense bfloat16 matrix products."""


ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator("L4", 24e9, 0.300e12, 121e12),
        Accelerator("L40S", 48e9, 0.864e12, 362e12),
        Accelerator("A100-40GB", 40e9, 1.555e12, 312e12),
        Accelerator("A100-80GB", 80e9, 2.039e12, 312e12),
        Accelerator("H100", 80e9, 3.35e12, 989e12),
        Accelerator("H200", 141e9, 4.8e12, 989e12),
        Accelerator("B200", 180e9, 8.0e12, 2250e12),
    )
}


@dataclass(frozen=True)
class Machines:
    """So many devices of one kind, and the shares of their figures that a run is taken to reach."""

    accelerator: Accelerator
    num_devices: int = 1
    bandwidth_share: float = 0.5
    """Of sampling, which reads weights and keys at every step."""
    sampling_operations_share: float = 0.5
    """Of prompts and large batches."""
    training_operations_share: float = 0.35
    """Of training with its communication."""
    usable_memory_share: float = 0.92
    """The rest is the driver's, the allocator's and the libraries'."""


def machines(name: str, num_devices: int = 1) -> Machines:
    """Devices by their name, with the usual assumptions."""
    if name not in ACCELERATORS:
        raise ConfigError(f"accelerator {name!r} is not known; known are {', '.join(ACCELERATORS)}")
    if num_devices < 1:
        raise ConfigError(f"{num_devices} devices cannot do anything; give at least 1")
    return Machines(ACCELERATORS[name], num_devices)
