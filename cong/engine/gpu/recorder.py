"""Functions of tensors that stay where they are, as CUDA graphs: one launch instead of thousands."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Compute = Callable[[], tuple[Tensor, ...]]
"""Logits [N, V] of every network, from tensors that stay where they are."""


class Recorder:
    """Makes graphs that share their memory and the place of their results. The largest comes first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        # One stream for all: torch keeps a workspace of cuBLAS, 32 MiB on a large GPU, for every stream ever used.
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._logits: tuple[Tensor, ...] = ()
        """Of the latest replay: one place for all graphs, for each would keep its own."""

    def record(self, compute: Compute) -> Compute:
        """What says the same as `compute` in one launch, until the next one is; elsewhere than on a GPU no graph."""

        def keep() -> tuple[Tensor, ...]:
            logits = compute()
            self._logits = self._logits or tuple(torch.empty_like(each) for each in logits)
            kept = tuple(each[: len(made)] for each, made in zip(self._logits, logits, strict=True))
            for each, made in zip(kept, logits, strict=True):
                each.copy_(made)
            return kept

        side = self._side
        if side is None:
            keep()
            return keep
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            keep()  # compiles what it needs, and allocates what it keeps
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            kept = keep()
        self._pool = self._pool or graph.pool()

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return kept

        return replay
