"""Functions of tensors that stay where they are, as CUDA graphs: one launch instead of thousands."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Compute = Callable[[], tuple[Tensor, ...]]
"""Logits [N, V] of every network, from tensors that stay where they are."""


class Recorder:
    """Makes graphs that share their memory, that of their results too. The largest comes first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        # One stream for all: torch keeps a workspace of cuBLAS, 32 MiB on a large GPU, for every stream ever used.
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def record(self, compute: Compute) -> Compute:
        """What says the same as `compute` in one launch, until the next one is; elsewhere than on a GPU no graph."""
        side = self._side
        if side is None:
            return compute
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            compute()  # compiles what it needs
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = compute()
        self._pool = self._pool or graph.pool()
        # The memory of the logits goes back to the pool, for the graphs that follow; this one goes on writing there.
        views = tuple(_view_without_claim(each) for each in logits)

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return views

        return replay


class _Address:
    """Where numbers lie, as CUDA's libraries tell each other."""

    def __init__(self, tensor: Tensor) -> None:
        strides = tuple(tensor.element_size() * stride for stride in tensor.stride())
        shape, address = tuple(tensor.shape), (tensor.data_ptr(), False)
        kind = f"<i{tensor.element_size()}"
        self.__cuda_array_interface__ = {
            "shape": shape,
            "strides": strides,
            "typestr": kind,
            "data": address,
            "version": 2,
        }


def _view_without_claim(tensor: Tensor) -> Tensor:
    """The same numbers at the same place, which is free for others as soon as nobody else holds it."""
    return torch.as_tensor(_Address(tensor), device=tensor.device).view(tensor.dtype)
