"""Where the time of a device goes: kernels by their time, and what they are for; on a CPU, torch's operators.

Told apart by their names, as torch, cuBLAS, cutlass and torch.compile give them; what no name tells is the rest.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

REST = "elementwise, norms and the rest"
_PURPOSES = {
    # The first that fits: names of attention tell cutlass's types too.
    "attention": r"flash|fmha|attention",
    "optimizer": r"multi_tensor_apply|adam|optimizer\.step|_foreach_",
    "matrix products": r"gemm|gemv|nvjet|cutlass|xmma|split_?k|aten::(addmm|mm|bmm|baddbmm)\b",
    "log-probs": r"log_?softmax|softmax_?(forward|warp)|cunn_softmax|logsumexp|_arange_",
    "copies and fills": r"mem(cpy|set)",
}


@dataclass(frozen=True)
class Kernel:
    """All calls under one name."""

    name: str
    num_calls: int
    seconds: float

    @property
    def purpose(self) -> str:
        """What it is for."""
        return next((purpose for purpose, names in _PURPOSES.items() if re.search(names, self.name, re.I)), REST)


def kernels_of(work: Callable[[], object], device: str) -> list[Kernel]:
    """The kernels of some work, those that take longest first."""
    activities = torch.profiler.ProfilerActivity
    is_cuda = device == "cuda"
    with torch.profiler.profile(activities=[activities.CPU, *([activities.CUDA] if is_cuda else [])]) as profiler:
        work()
    averages: Sequence[Any] = profiler.key_averages()
    found = [
        Kernel(each.key, each.count, (each.self_device_time_total if is_cuda else each.self_cpu_time_total) / 1e6)
        for each in averages
        # Named ranges have a time on the device too, that of the kernels in them.
        if (each.device_type.name == "CUDA") == is_cuda and not each.is_user_annotation
    ]
    return sorted(found, key=lambda kernel: -kernel.seconds)


def shares_of(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Of all kernels' time, by purpose, the largest first."""
    total = sum(kernel.seconds for kernel in kernels)
    sums = dict.fromkeys([*_PURPOSES, REST], 0.0)
    for kernel in kernels:
        sums[kernel.purpose] += kernel.seconds / total
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def show(kernels: Sequence[Kernel], num_steps: int, num_shown: int = 30) -> None:
    """Two tables, in milliseconds of a step."""
    total = sum(kernel.seconds for kernel in kernels)
    table = Table("ms a step", "share", "calls a step", "for", "kernel, without namespaces")
    for kernel in kernels[:num_shown]:
        numbers = f"{1000 * kernel.seconds / num_steps:.2f}", f"{100 * kernel.seconds / total:.1f} %"
        table.add_row(*numbers, f"{kernel.num_calls / num_steps:,.0f}", kernel.purpose, _bare(kernel.name)[:100])
    Console(width=180).print(table)
    table = Table("for", "ms a step", "share")
    for purpose, share in shares_of(kernels).items():
        table.add_row(purpose, f"{1000 * share * total / num_steps:.2f}", f"{100 * share:.1f} %")
    Console(width=180).print(table)


def _bare(name: str) -> str:
    return re.sub(r"\bvoid |\(anonymous namespace\)::|\b(at|native|c10|cutlass)::", "", name)
