"""Asking networks the world's prompts: samples with their text and gold judgement."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from cong.lab.networks import EOS_ID, decode, prompt_ids
from cong.lab.sampler import ReferenceSample, reference_sample
from cong.lab.world import Judgement, derived_seed, judge
from cong.schemas import SamplingParameters, log_ratio
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
        return log_ratio(aligned, base)

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
