"""The training loop: take a step's batch, train on it, tell everybody, until the plan is done or somebody stops it.

Knows no method, no files, no trackers and no ranks: those are collaborators. Legend: N response tokens, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from cong.errors import CongError
from cong.objectives import LossShare, Objective, Scorer, policy_scores
from cong.train.backend import Backend
from cong.train.data.batch import MicroBatch
from cong.train.data.feed import Feed, StepBatch
from cong.train.progress import Progress


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did, over all ranks."""

    step: int
    """Counted from 1."""
    loss: float | None
    """None: nothing of the step was left to train on."""
    learning_rate: float
    grad_norm: float | None
    metrics: Mapping[str, float]
    keys: Sequence[str]
    num_tokens: int
    num_response_tokens: int
    num_micro_batches: int
    wait_s: float
    compute_s: float

    @property
    def numbers(self) -> dict[str, float]:
        """What there is of loss, norm of the gradients and the method's metrics."""
        found = {"loss": self.loss, "grad_norm": self.grad_norm, **self.metrics}
        return {name: value for name, value in found.items() if value is not None}


class Observer(Protocol):
    """Whoever wants to know of every step: logs, evaluation, checkpoints."""

    def __call__(self, progress: Progress, report: StepReport) -> None:
        """Called on every rank after every step."""
        ...


def run(
    backend: Backend,
    objective: Objective,
    feed: Feed,
    progress: Progress,
    learning_rate: Callable[[int], float],
    observers: Sequence[Observer],
    should_stop: Callable[[], bool] = lambda: False,
    score: Scorer = policy_scores,
) -> Progress:
    """Train from where `progress` stands; returns how far it went."""
    while progress.step < progress.num_steps and (batch := feed.next()) is not None:
        report = train_step(backend, objective, batch, learning_rate(progress.step), progress, score)
        progress = progress.after(batch)
        for observer in observers:
            observer(progress, report)
        if should_stop():
            break
    return progress


def train_step(
    backend: Backend,
    objective: Objective,
    batch: StepBatch,
    learning_rate: float,
    progress: Progress,
    score: Scorer = policy_scores,
) -> StepReport:
    """One optimiser step over all its micro-batches."""
    started_s = time.perf_counter()
    loss, grad_norm, metrics = _train_on(backend, objective, batch, learning_rate, progress, score)
    return StepReport(
        step=progress.step + 1,
        loss=loss,
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        metrics=metrics,
        keys=batch.keys,
        num_tokens=batch.num_tokens,
        num_response_tokens=batch.num_response_tokens,
        num_micro_batches=len(batch.micro_batches),
        wait_s=batch.wait_s,
        compute_s=time.perf_counter() - started_s,
    )


def _train_on(
    backend: Backend,
    objective: Objective,
    batch: StepBatch,
    learning_rate: float,
    progress: Progress,
    score: Scorer,
) -> tuple[float | None, float | None, Mapping[str, float]]:
    if not batch.num_units:
        return None, None, {}
    shares = []
    # All are sent before the first is computed: later ones would wait for it.
    micro_batches = [each.to(backend.device) for each in batch.micro_batches]
    for number, micro_batch in enumerate(micro_batches):
        share = loss_share(backend.logits, objective, micro_batch, progress.share, score)
        loss = share.loss(batch.num_units, backend.num_averaged(len(micro_batches)))
        backend.backward(loss, is_last=number == len(micro_batches) - 1)
        shares.append(LossShare(share.loss_sum.detach(), share.metrics))
    loss_value, metrics = total_of(backend, shares, batch.num_units)
    if not math.isfinite(loss_value):
        raise CongError(
            f"training diverged: the loss is {loss_value} at step {progress.step + 1}; lower the learning rate"
        )
    grad_norm = backend.step(learning_rate)
    if not math.isfinite(grad_norm):
        raise CongError(
            f"training diverged: the gradients' norm is {grad_norm} at step {progress.step + 1}; lower the learning "
            "rate and resume from the last checkpoint"
        )
    return loss_value, grad_norm, metrics


def loss_share(
    logits: Callable[[MicroBatch], torch.Tensor],
    objective: Objective,
    batch: MicroBatch,
    progress: float,
    score: Scorer = policy_scores,
) -> LossShare:
    """What one micro-batch adds to the loss of its step."""
    scores = score(logits(batch), batch.responses, objective.needs)
    return objective(scores, batch.responses, progress=progress)


def total_of(backend: Backend, shares: Sequence[LossShare], num_units: int) -> tuple[float, dict[str, float]]:
    """Loss and metrics over the shares of all ranks."""
    # Every share of every rank has the same metrics, so their sums can be added without saying what they are.
    names = list(shares[0].metrics)
    sums = torch.stack(
        [
            sum_of
            for share in shares
            for sum_of in (
                share.loss_sum.double(),
                *(
                    value.double()
                    for name in names
                    for value in (share.metrics[name].total, share.metrics[name].weight)
                ),
            )
        ]
    ).view(len(shares), -1)
    totals = backend.total(sums.sum(0)).tolist()
    pairs = zip(names, totals[1::2], totals[2::2], strict=True)
    return totals[0] / num_units, {name: total / weight for name, total, weight in pairs if weight}
