"""What a training loop asks of whatever holds the weights, the gradients and the optimiser.

One process with plain torch and many with DeepSpeed ZeRO answer to the same verbs; the loop knows neither.
Legend: N response tokens of a micro-batch, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from cong.config.train import TrainConfig
from cong.train.data.batch import MicroBatch


class Backend(Protocol):
    """A network in training. Unless said otherwise a verb is collective: every rank calls it equally often."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """Processes that hold this network together."""
        ...

    @property
    def device(self) -> torch.device:
        """Where micro-batches belong."""
        ...

    def logits(self, batch: MicroBatch) -> Tensor:
        """Logits [N, V] that predict the response tokens; carries gradients."""
        ...

    def predict(self, batch: MicroBatch) -> Tensor:
        """The same logits from the weights as they are, without gradients and without dropout."""
        ...

    def num_averaged(self, num_micro_batches: int) -> int:
        """How many shares of an optimiser step the backend averages: `LossShare.loss` undoes it."""
        ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add a micro-batch's gradients; `is_last` ends the optimiser step's accumulation."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip, update the weights, forget the gradients; returns the gradients' norm before clipping."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over all ranks, on every rank; nobody returns before all have called."""
        ...

    def from_first(self, text: str) -> str:
        """The text that rank 0 gives, on every rank; what the others give is ignored."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights and optimiser into a folder that every rank sees; each rank writes its own part."""
        ...

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote, by any number of ranks; refuses what is torn.

        Called before the first step at most; `predict` may have been called before.
        """
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained tensor under its name in the network, whole and on the CPU, on every rank that iterates."""
        ...

    def close(self) -> None:
        """Let go of process groups and memory. Not collective."""
        ...


class BackendFactory(Protocol):
    """Makes the backend of this process."""

    def __call__(self, model: nn.Module, settings: TrainConfig, /) -> Backend:
        """Take over a network on the CPU whose trained parameters, and only those, require gradients.

        Its attention, its adapter and its activation checkpointing are set up already.
        """
        ...
