"""The reference trainer: one process, whole examples padded on the right, AdamW, a warm-up and a cosine.

Plain and meant to be obviously right: the oracle for the training loop that follows. It is given its objective and
knows no method; frozen networks are asked once, before the loop.
Legend: B rows, T positions, N response tokens, V vocabulary.
"""

import contextlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cong.config.lab import Precision, TrainingSettings
from cong.errors import CongError
from cong.objectives import (
    FrozenNetwork,
    Needs,
    Objective,
    ResponseTokens,
    combine_metrics,
    policy_scores,
    response_tokens,
)

PADDING_ID = 0
FROZEN_BATCH_SIZE = 256


@dataclass(frozen=True)
class Example:
    """A prompt with one response to imitate, or with a chosen and a rejected one."""

    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Batch:
    """Rows of several examples, those of one example next to each other."""

    token_ids_BT: Tensor
    response_mask_BT: Tensor
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TrainingStep:
    """What one optimiser step reports."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    metrics: Mapping[str, float]


def pad_batch(examples: Sequence[Example]) -> Batch:
    """One row per response: prompt, response, padding."""
    rows = [(example.prompt_ids, response) for example in examples for response in example.responses]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    token_ids_BT = torch.full((len(rows), width), PADDING_ID)
    response_mask_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        token_ids_BT[row, :end] = torch.tensor(prompt + response)
        response_mask_BT[row, len(prompt) : end] = True
    is_paired = len(rows) == 2 * len(examples)
    pairs = tuple((row, row + 1) for row in range(0, len(rows), 2)) if is_paired else ()
    return Batch(token_ids_BT, response_mask_BT, pairs)


def learning_rate_share(step: int, num_steps: int, num_warmup_steps: int, final_share: float) -> float:
    """Share of the full learning rate at a step counted from 0: linear warm-up, then a cosine to `final_share`."""
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * progress))


def num_steps_of(num_examples: int, settings: TrainingSettings) -> int:
    """Optimiser steps of a run; the last batch of an epoch may be smaller."""
    return settings.num_epochs * math.ceil(num_examples / settings.batch_size)


def matrix_products_in(precision: Precision) -> contextlib.AbstractContextManager[object]:
    """A context in which matrix products have the given precision; everything else stays in float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")


def response_logits(network: nn.Module, batch: Batch, responses: ResponseTokens, precision: Precision) -> Tensor:
    """Logits [N, V] that predict the response tokens."""
    with matrix_products_in(precision):
        # Without an attention mask: what is padded lies to the right of all that is read.
        logits_BTV = network(input_ids=batch.token_ids_BT).logits
    return responses.rows(logits_BTV)


@torch.no_grad()
def response_logprobs(network: nn.Module, examples: Sequence[Example], precision: Precision) -> list[Tensor]:
    """Log-probabilities of each example's response tokens, its responses one after the other."""
    network.eval()
    logprobs: list[Tensor] = []
    for start in range(0, len(examples), FROZEN_BATCH_SIZE):
        part = examples[start : start + FROZEN_BATCH_SIZE]
        batch = pad_batch(part)
        responses = response_tokens(batch.token_ids_BT, batch.response_mask_BT)
        logits_NV = response_logits(network, batch, responses, precision)
        scores_N = policy_scores(logits_NV, responses, Needs("tokens")).logprobs_N
        logprobs += torch.split(scores_N, [sum(map(len, example.responses)) for example in part])
    return logprobs


def _order_of_batches(num_examples: int, settings: TrainingSettings, rng: random.Random) -> Iterator[list[int]]:
    for _ in range(settings.num_epochs):
        order = list(range(num_examples))
        rng.shuffle(order)
        for start in range(0, num_examples, settings.batch_size):
            yield order[start : start + settings.batch_size]


def train(
    network: nn.Module,
    objective: Objective,
    examples: Sequence[Example],
    settings: TrainingSettings,
    rng: random.Random,
    frozen: Mapping[FrozenNetwork, nn.Module] | None = None,
) -> Iterator[TrainingStep]:
    """Train a network in place, yielding after every optimiser step; `rng` draws the order of the examples.

    `frozen` gives the networks that the objective needs. A reference that is the trained network itself is read
    before the first step, as all frozen networks are.
    """
    known = {
        name: response_logprobs((frozen or {})[name], examples, settings.precision) for name in objective.needs.frozen
    }
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay,
    )
    num_steps = num_steps_of(len(examples), settings)
    network.train()
    for step, places in enumerate(_order_of_batches(len(examples), settings, rng)):
        batch = pad_batch([examples[i] for i in places])
        responses = response_tokens(
            batch.token_ids_BT,
            batch.response_mask_BT,
            pairs=batch.pairs,
            frozen={name: torch.cat([logprobs[i] for i in places]) for name, logprobs in known.items()},
        )
        logits_NV = response_logits(network, batch, responses, settings.precision)
        share = objective(policy_scores(logits_NV, responses, objective.needs), responses, progress=step / num_steps)
        loss = share.loss(responses.count(objective.needs.unit))
        if not torch.isfinite(loss):
            raise CongError(f"training diverged: the loss is {loss.item()} at step {step}; lower the learning rate")
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
        learning_rate = settings.learning_rate * learning_rate_share(
            step, num_steps, settings.num_warmup_steps, settings.final_learning_rate_share
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()
        metrics = combine_metrics([share.metrics])
        yield TrainingStep(step, num_steps, loss.item(), learning_rate, grad_norm.item(), metrics)
    network.eval()
