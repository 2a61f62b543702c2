"""Asking networks the world's prompts: samples with their text and gold judgement, and what is said of many of them.

Legend: B rows, T positions, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn

from cong.lab.networks import EOS_ID, decode, prompt_ids
from cong.lab.sampler import ReferenceSample, reference_sample
from cong.lab.world import BAD_OPENING, GOOD_OPENING, Judgement, derived_seed, judge
from cong.schemas import SamplingParameters
from cong.telemetry import track

BATCH_SIZE = 250


@dataclass(frozen=True)
class Answer:
    """One sample with its text and what the gold reward says of it."""

    prompt: str
    text: str
    sample: ReferenceSample
    judgement: Judgement

    @property
    def reward(self) -> float:
        """Gold reward, 0..1."""
        return self.judgement.reward

    @property
    def is_truncated(self) -> bool:
        """True where the length limit ended the sample."""
        return self.sample.finish_reason == "length"

    @property
    def implicit_reward_sum(self) -> float:
        """log p_first - log p_second of the whole sample; the first two networks are the weak pair."""
        aligned, base = self.sample.logprobs[:2]
        return math.fsum(aligned) - math.fsum(base)

    @property
    def implicit_reward_mean(self) -> float:
        """Implicit reward per token."""
        return self.implicit_reward_sum / len(self.sample.token_ids)


def ask(
    networks: Sequence[nn.Module],
    prompts: Sequence[str],
    parameters: SamplingParameters,
    purpose: str,
    seed: int,
    label: str | None = None,
) -> list[Answer]:
    """One answer per prompt from the mixture of the networks, with a progress bar if there is a label for it.

    The place of a prompt in the list is its sample index: with one index for all, every prompt would be answered with
    the same random numbers. Sets asked for the same purpose share theirs, place by place, which pairs comparisons.
    """
    seeded = parameters.model_copy(update={"seed": derived_seed(purpose, seed)})
    answers = []
    for start in track(range(0, len(prompts), BATCH_SIZE), label or "", unit="batches", is_quiet=label is None):
        part = prompts[start : start + BATCH_SIZE]
        indices = range(start, start + len(part))
        samples = reference_sample(
            networks, [prompt_ids(prompt) for prompt in part], [seeded] * len(part), indices, [EOS_ID]
        )
        for prompt, sample in zip(part, samples, strict=True):
            text = decode(sample.token_ids)
            answers.append(Answer(prompt, text, sample, judge(prompt, text)))
    return answers


@dataclass(frozen=True)
class Summary:
    """What is said of a set of answers; shares are of answers."""

    reward: float
    good_opening_share: float
    exact_body_share: float
    good_ending_share: float
    mean_num_tokens: float
    empty_share: float
    """Answers that end at once: a preference loss may leak probability there, because no pair contains it."""
    truncated_share: float
    stray_share: float
    """Answers that begin with neither opening: where probability goes that a preference loss pushed off both."""


def summarize(answers: Sequence[Answer]) -> Summary:
    """Means over a set of answers."""
    return Summary(
        reward=fmean(answer.reward for answer in answers),
        good_opening_share=fmean(answer.judgement.has_good_opening for answer in answers),
        exact_body_share=fmean(answer.judgement.is_body_exact for answer in answers),
        good_ending_share=fmean(answer.judgement.has_good_ending for answer in answers),
        mean_num_tokens=fmean(len(answer.sample.token_ids) for answer in answers),
        empty_share=fmean(not answer.text for answer in answers),
        truncated_share=fmean(answer.is_truncated for answer in answers),
        stray_share=fmean(not answer.text.startswith((GOOD_OPENING, BAD_OPENING)) for answer in answers),
    )


@dataclass(frozen=True)
class HeadHealth:
    """Whether contrast had anything to act on; means over all drawn tokens."""

    mean_head_size: float
    single_head_share: float
    """Steps whose head set is one token: contrast cannot act there."""
    changed_pick_share: float
    """Tokens drawn that are not the aligned model's best."""
    num_floored: int


@torch.no_grad()
def head_health(aligned: nn.Module, answers: Sequence[Answer]) -> HeadHealth:
    """Health of the head set over a set of contrastive answers."""
    head_sizes = [size for answer in answers for size in answer.sample.head_sizes]
    num_changed = 0
    for answer in answers:
        prompt = prompt_ids(answer.prompt)
        token_ids = answer.sample.token_ids
        logits_TV = aligned(input_ids=torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1]
        num_changed += int((logits_TV.argmax(-1) != torch.tensor(token_ids)).sum())
    return HeadHealth(
        mean_head_size=fmean(head_sizes),
        single_head_share=fmean(size == 1 for size in head_sizes),
        changed_pick_share=num_changed / len(head_sizes),
        num_floored=sum(answer.sample.num_floored for answer in answers),
    )
