"""Data parallelism in threads: every rank holds the network, and sums are taken at barriers. The training is real."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from cong.config.train import TrainConfig
from cong.train.backend import Backend, BackendFactory
from cong.train.data.batch import MicroBatch
from cong.train.torch_backend import TorchBackend

T = TypeVar("T")

LIMIT_S = 60.0


class Meeting:
    """Where the ranks of one run meet."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._barrier = threading.Barrier(world_size, timeout=LIMIT_S)
        self._given: list[object] = [None] * world_size

    def exchange(self, rank: int, value: T) -> list[T]:
        """What every rank gives, on every rank."""
        self._given[rank] = value
        self._barrier.wait()
        found = list(self._given)
        self._barrier.wait()
        return found  # type: ignore[return-value]

    def leave(self) -> None:
        """A rank has failed: the others must not wait for it."""
        self._barrier.abort()


class ThreadBackend:
    """One rank: gradients are summed over the ranks before the step."""

    def __init__(self, inner: TorchBackend, rank: int, meeting: Meeting) -> None:
        self._inner = inner
        self._meeting = meeting
        self.rank = rank
        self.world_size = meeting.world_size
        self.device = inner.device
        self.num_passes = 0
        """Forward passes, of training and prediction."""

    def logits(self, batch: MicroBatch) -> Tensor:
        self.num_passes += 1
        return self._inner.logits(batch)

    def predict(self, batch: MicroBatch) -> Tensor:
        self.num_passes += 1
        return self._inner.predict(batch)

    def num_averaged(self, num_micro_batches: int) -> int:
        return self.world_size

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._inner.backward(loss, is_last=is_last)

    def step(self, learning_rate: float) -> float:
        passes = self._meeting.exchange(self.rank, self.num_passes)
        assert len(set(passes)) == 1, f"ranks made {passes} passes; ZeRO-3 would hang"
        for weight in self._inner._trained.values():
            assert weight.grad is not None, "every weight has a gradient on every rank, an empty batch too"
            grads = self._meeting.exchange(self.rank, weight.grad)
            total = torch.stack(grads).sum(0) / self.world_size
            self._meeting.exchange(self.rank, None)
            weight.grad = total
        return self._inner.step(learning_rate)

    def total(self, values: Tensor) -> Tensor:
        return torch.stack(self._meeting.exchange(self.rank, values)).sum(0)

    def from_first(self, text: str) -> str:
        return self._meeting.exchange(self.rank, text)[0]

    def save(self, folder: Path) -> None:
        if self.rank == 0:
            self._inner.save(folder)

    def load(self, folder: Path) -> None:
        self._inner.load(folder)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return self._inner.weights()

    def close(self) -> None:
        self._inner.close()


def on_ranks(world_size: int, work: Callable[[BackendFactory], T]) -> list[T]:
    """Do the work on so many ranks; each is given what makes its backend."""
    meeting = Meeting(world_size)

    def one(rank: int) -> T:
        def make(model: nn.Module, settings: TrainConfig) -> Backend:
            return ThreadBackend(TorchBackend(model, settings.optimizer, precision=settings.precision), rank, meeting)

        try:
            return work(make)
        except BaseException:
            meeting.leave()
            raise

    with ThreadPoolExecutor(world_size) as pool:
        futures: Sequence[object] = [pool.submit(one, rank) for rank in range(world_size)]
        return [future.result(timeout=5 * LIMIT_S) for future in futures]  # type: ignore[attr-defined]
