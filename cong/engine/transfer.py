"""Numbers to a device and back without waiting for what it computes: from and into pinned memory."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On a GPU a copy that its stream makes when it gets there; elsewhere the tensor itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Staged:
    """A tensor that stays where it is on a device and is written from the host, which does not wait for the device."""

    def __init__(self, tensor: Tensor) -> None:
        self.there = tensor
        self._here = tensor.to("cpu", copy=True)
        if tensor.is_cuda:
            self._here = self._here.pin_memory()
        self._is_read = Mark(tensor.device)

    def numbers(self) -> NDArray[Any]:
        """The same on the host, to be written into before `send`."""
        self._is_read.wait()  # the last transfer has read what is overwritten now
        return self._here.numpy()

    def send(self, count: int | None = None) -> None:
        """All of it, or the first so many rows."""
        self.there[:count].copy_(self._here[:count], non_blocking=True)
        self._is_read.set()


def select_rows(tensor: Tensor, rows: list[int]) -> Tensor:
    """Some rows in their order; the tensor itself where they are all."""
    return tensor if len(rows) == len(tensor) else tensor[to_device(torch.tensor(rows), tensor.device)]


class Mark:
    """A point in what a GPU does, which the host can wait for; elsewhere it is passed when it is set."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def set(self) -> None:
        """Behind everything that has been launched."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until the device has got there, if it was ever set."""
        if self._event is not None:
            self._event.synchronize()


class Arriving:
    """A tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._here = tensor
        self._has_come = Mark(tensor.device)
        if tensor.is_cuda:
            self._here = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            self._has_come.set()

    def get(self) -> Tensor:
        """The tensor once it is here."""
        self._has_come.wait()
        return self._here
