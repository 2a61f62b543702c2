"""Loss, metrics and implicit reward on examples that are never trained on.

Legend: N response tokens of a micro-batch, S its responses.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cong.config.train import BatchSettings
from cong.objectives import LossShare, Mean, Objective, ResponseTokens, policy_scores
from cong.train.backend import Backend
from cong.train.data.batch import Example, make_batch
from cong.train.data.feed import count_units, plan_passes
from cong.train.loop import total_of


def is_held_out(prompt_id: str, share: float) -> bool:
    """Whether a prompt is kept for evaluation: by a hash of its id, so it is so in every run and on every rank."""
    number = int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:8], "big")
    return number < share * 2**64


class Validation:
    """A fixed set of examples and how they are judged."""

    def __init__(
        self, backend: Backend, objective: Objective, examples: Sequence[Example], settings: BatchSettings
    ) -> None:
        """`examples` carry the log-probs that the objective needs, and those of the network as it was at the start."""
        needs = objective.needs
        self._objective = objective
        self._backend = backend
        names = tuple(dict.fromkeys((*needs.frozen, "reference")))
        plans = plan_passes(
            [example.num_tokens for example in examples], backend.world_size, settings.max_tokens_per_micro_batch
        )
        self._batches = [
            make_batch([examples[place] for place in places], names, is_packed=settings.is_packed)
            for places in plans[backend.rank]
        ]
        self._num_units = count_units(examples, needs.unit)

    def __call__(self, progress: float) -> Mapping[str, float]:
        """Judge the weights as they are; all ranks call it."""
        shares = []
        for batch in self._batches:
            on_device = batch.to(self._backend.device)
            with torch.no_grad():
                scores = policy_scores(self._backend.predict(on_device), on_device.responses, self._objective.needs)
                share = self._objective(scores, on_device.responses, progress=progress)
            rewards = _implicit_rewards(scores.logprobs_N, on_device.responses)
            shares.append(LossShare(share.loss_sum, {**share.metrics, **rewards}))
        loss, metrics = total_of(self._backend, shares, self._num_units)
        return {"loss": loss, **metrics}


def _implicit_rewards(logprobs_N: Tensor, responses: ResponseTokens) -> dict[str, Mean]:
    """How much likelier training has made the responses: log p now - log p at the start, for each response."""
    ratios_S = responses.sequence_sums(logprobs_N - responses.frozen_logprobs("reference"))
    chosen_P, rejected_P = responses.chosen_and_rejected(ratios_S)
    return {
        "implicit_reward": Mean.of(ratios_S),
        "implicit_reward_per_token": Mean(
            ratios_S.sum().float(), torch.tensor(float(logprobs_N.shape[0]), device=logprobs_N.device)
        ),
        "implicit_reward_margin": Mean.of(chosen_P - rejected_P),
    }
