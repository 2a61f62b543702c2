"""What the machine can move and compute at most, measured once: what the speed of steps is held against."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_RUNS = 4


@dataclass(frozen=True)
class Ceiling:
    """Rates of one device in one dtype."""

    bytes_per_s: float
    """Of a large copy, what is read and what is written counted."""
    operations_per_s: float
    """Of a large matrix product."""

    def seconds(self, num_bytes: int, num_operations: int) -> float:
        """The least that so much work can take: whichever is scarcer decides."""
        return max(num_bytes / self.bytes_per_s, num_operations / self.operations_per_s)


@functools.cache
def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """The rates of this device, in a tenth of a second; the best of a few runs, for others may use it, too."""
    is_on_gpu = device.type == "cuda"
    num_bytes, width = (2**28, 4096) if is_on_gpu else (2**25, 768)
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    factor = torch.full((width, width), 0.5, dtype=dtype, device=device)
    return Ceiling(
        bytes_per_s=2 * num_bytes / _best_seconds(lambda: target.copy_(source), device),
        operations_per_s=2 * width**3 / _best_seconds(lambda: factor @ factor, device),
    )


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    def seconds() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return min(seconds() for _ in range(_RUNS))
