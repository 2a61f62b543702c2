"""What an objective is, what it asks for, what it returns, and the one rule by which shares of a batch become a loss.

The loss of an optimiser step is a mean over all its units (`Needs.unit`), wherever they lie. A micro-batch returns a
sum, never a mean, so that ranks and micro-batches of unequal size cannot weigh wrongly. Knows no network and no loop.
Legend: N response tokens of a micro-batch, V vocabulary.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from cong.objectives.logprobs import gather_logprobs
from cong.objectives.responses import FrozenNetwork, ResponseTokens, Unit


@dataclass(frozen=True)
class Needs:
    """What has to be there before an objective can be computed."""

    unit: Unit
    """What the loss is a mean over; its total over all ranks and micro-batches must be known before backward."""
    frozen: tuple[FrozenNetwork, ...] = ()
    """Networks whose log-probs of the response tokens are read: from the records, or computed once and kept."""
    own_prediction: bool = False
    """The policy's most likely token at each position."""
    distribution: bool = False
    """The policy's whole distribution, and the weak model's beside it."""


@dataclass(frozen=True)
class PolicyScores:
    """What the network in training says of the response tokens; carries gradients."""

    logprobs_N: Tensor
    own_logprobs_N: Tensor | None = None
    """Log-probability of the most likely token; the choice of that token has no gradient."""
    distribution_NV: Tensor | None = None
    """Log-probabilities of every token."""


def policy_scores(logits_NV: Tensor, responses: ResponseTokens, needs: Needs) -> PolicyScores:
    """Score the logits at the response tokens (`responses.rows`); computes nothing that is not needed."""
    if needs.distribution:
        dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
        distribution_NV = torch.log_softmax(logits_NV, -1, dtype=dtype)
        logprobs_N = distribution_NV.gather(-1, responses.token_ids_N[:, None])[:, 0]
        own_logprobs_N = distribution_NV.amax(-1) if needs.own_prediction else None
        return PolicyScores(logprobs_N, own_logprobs_N, distribution_NV)
    if not needs.own_prediction:
        return PolicyScores(gather_logprobs(logits_NV, responses.token_ids_N[:, None])[:, 0])
    own_ids_N = logits_NV.detach().argmax(-1)
    logprobs_N2 = gather_logprobs(logits_NV, torch.stack([responses.token_ids_N, own_ids_N], -1))
    return PolicyScores(logprobs_N2[:, 0], logprobs_N2[:, 1])


@dataclass(frozen=True)
class Mean:
    """A metric as a total and the weight it is to be divided by; adding both over shares gives the metric of all."""

    total: Tensor
    weight: Tensor

    @staticmethod
    def of(values: Tensor) -> "Mean":
        """The mean over all entries of a tensor, which may be empty."""
        detached = values.detach().float()
        # Filled on the device: a number sent there would wait for all that it still computes.
        return Mean(detached.sum(), torch.full((), float(values.numel()), device=values.device))


@dataclass(frozen=True)
class LossShare:
    """What one micro-batch adds to the loss of its optimiser step."""

    loss_sum: Tensor
    """Sum over the micro-batch's units; differentiable even where it holds none."""
    metrics: Mapping[str, Mean]
    """The same names for every batch, an empty one too, so that ranks can add them up without asking."""

    def loss(self, num_units: int, num_averaged: int = 1) -> Tensor:
        """The scalar to call backward on, so that gradients of all shares combine into that of the whole mean.

        `num_units` counts the units of the whole optimiser step, over all ranks and micro-batches. `num_averaged` is
        the number of shares whose gradients get averaged: world size under data parallelism, times the accumulation
        steps where the backend divides by them (DeepSpeed does), 1 where gradients are only added up.
        """
        assert num_units > 0, "an optimiser step without a single unit has no loss"
        return self.loss_sum * (num_averaged / num_units)


def combine_metrics(shares: Iterable[Mapping[str, Mean]]) -> dict[str, float]:
    """Metrics of all shares together; one that nothing contributed to is left out."""
    totals: dict[str, float] = {}
    weights: dict[str, float] = {}
    for metrics in shares:
        for name, mean in metrics.items():
            totals[name] = totals.get(name, 0.0) + mean.total.item()
            weights[name] = weights.get(name, 0.0) + mean.weight.item()
    return {name: totals[name] / weights[name] for name in totals if weights[name] != 0.0}


class Objective(Protocol):
    """A training method as a value: its parameters, what it needs, and its loss."""

    name: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """What has to be there before the call."""
        ...

    def __call__(self, policy: PolicyScores, responses: ResponseTokens, *, progress: float) -> LossShare:
        """The share of one micro-batch; `progress` is the share of all optimiser steps that lies behind, 0 to 1."""
        ...
