"""How much arithmetic a step needs at least, and how much the device can do: the share that training reaches."""

import time

import torch
from torch import nn

from cong.config.train import Precision
from cong.models import count_weights

PEAK_TERAFLOPS = {
    # Dense bfloat16 matrix products, as the makers state them.
    "H200": 989.0,
    "H100": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
}
_MEASURED_S = 0.05
_SIDE = 512


class StepArithmetic:
    """Operations of a training step of one network, counted in matrix products alone."""

    def __init__(self, model: nn.Module, *, is_recomputed: bool) -> None:
        """Taken before a backend divides the weights; `is_recomputed`: activations are computed twice."""
        self._weights = count_weights(model)
        has_frozen = any(
            not weight.requires_grad
            for name, weight in model.named_parameters()
            if weight.ndim > 1 and not name.endswith("bias")
        )
        # Forward, gradients of activations, gradients of weights; an adapter's base has no gradients of its own.
        self._passes = 2 + 2 + (0 if has_frozen else 2) + (2 if is_recomputed else 0)

    def operations(self, num_tokens: int, num_response_tokens: int) -> float:
        """Floating-point operations of a step."""
        weights = self._weights
        return float(self._passes * (weights.num_body * num_tokens + weights.num_head * num_response_tokens))


def peak_operations_per_s(device: torch.device, precision: Precision, stated_teraflops: float = 0.0) -> float:
    """What one device can do: stated, known by its name, or measured with one matrix product."""
    if stated_teraflops:
        return stated_teraflops * 1e12
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [peak for part, peak in PEAK_TERAFLOPS.items() if part in name]
        if known:
            # Float32 products run on the tensor cores at half the rate where they are allowed to, and slower elsewhere.
            return known[0] * 1e12 * (1.0 if precision == "bfloat16" else 0.5)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype, device=device)
    best, until_s = 0.0, time.perf_counter() + _MEASURED_S
    while time.perf_counter() < until_s:
        started_s = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = max(best, 2.0 * _SIDE**3 / (time.perf_counter() - started_s))
    return best
