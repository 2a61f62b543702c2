"""The stages of the method and of its rivals, each from networks and answers to a trained network.

Every stage trains a copy of the network it starts from. Knows no files and prints nothing but progress.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import LlamaForCausalLM

from cong.config.lab import LabConfig, TrainingSettings
from cong.lab.answers import Answer, ask
from cong.lab.networks import clone, prompt_ids, response_ids
from cong.lab.trainer import Example, TrainingStep, num_steps_of, train
from cong.lab.world import derived_seed, draw_pair, draw_prompts, generator, ideal_response
from cong.objectives import DPO, SFT, FrozenNetwork, Objective
from cong.schemas import SamplingParameters
from cong.telemetry import progress


@dataclass(frozen=True)
class Trained:
    """A network and how its training went."""

    network: LlamaForCausalLM
    curve: tuple[TrainingStep, ...]


def fine_tune(
    start: LlamaForCausalLM,
    objective: Objective,
    examples: Sequence[Example],
    settings: TrainingSettings,
    seed: int,
    label: str | None = None,
    frozen: Mapping[FrozenNetwork, LlamaForCausalLM] | None = None,
) -> Trained:
    """Train a copy of a network, with a progress bar if there is a label for it."""
    network = clone(start)
    rng = random.Random(derived_seed("order of examples", seed))
    curve = []
    num_steps = num_steps_of(len(examples), settings)
    with progress(label or "", num_steps, unit="steps", is_quiet=label is None) as bar:
        for step in train(network, objective, examples, settings, rng, frozen):
            bar.advance(loss=step.loss)
            curve.append(step)
    return Trained(network, tuple(curve))


def training_prompts(config: LabConfig) -> list[str]:
    """The prompts that are sampled for training."""
    return draw_prompts(generator("training prompts", config.seed), config.num_training_prompts)


def held_out_prompts(config: LabConfig) -> list[str]:
    """Prompts whose arguments no training data contains."""
    return draw_prompts(generator("test prompts", config.seed), config.evaluation.num_prompts, is_test=True)


def draw_preferences(config: LabConfig, noise: float) -> list[Example]:
    """Preference pairs of the world as training examples."""
    rng = generator("preference pairs", config.seed)
    pairs = [draw_pair(rng, noise) for _ in range(config.alignment.num_pairs)]
    return [
        Example(prompt_ids(each.prompt), (response_ids(each.chosen), response_ids(each.rejected))) for each in pairs
    ]


def align(
    base: LlamaForCausalLM,
    config: LabConfig,
    label: str | None = None,
    beta: float | None = None,
    noise: float | None = None,
) -> Trained:
    """Align a model by DPO on the world's preferences; `beta` and `noise` replace those of the configuration."""
    settings = config.alignment
    examples = draw_preferences(config, settings.preference_noise if noise is None else noise)
    objective = DPO(beta=settings.beta if beta is None else beta)
    return fine_tune(base, objective, examples, settings.training, config.seed, label, {"reference": base})


def plain_parameters(config: LabConfig, temperature: float = 1.0) -> SamplingParameters:
    """Ordinary sampling from one network."""
    return SamplingParameters.plain(temperature=temperature, max_tokens=config.max_response_tokens)


def contrastive_parameters(config: LabConfig) -> SamplingParameters:
    """Contrastive sampling from the weak pair as the configuration has it."""
    contrast = config.contrast
    return SamplingParameters.contrastive(
        contrast.alpha,
        head_lambda=contrast.head_lambda,
        temperature=contrast.temperature,
        max_tokens=config.max_response_tokens,
    )


def sample_labels(
    networks: Sequence[LlamaForCausalLM], config: LabConfig, parameters: SamplingParameters, label: str | None = None
) -> list[Answer]:
    """One answer to every training prompt: what a strong model is taught."""
    return ask(networks, training_prompts(config), parameters, "labels", config.seed, label)


def imitation_examples(answers: Sequence[Answer]) -> list[Example]:
    """Answers as examples to imitate; those cut off would not teach how to end, and are left out."""
    return [
        Example(prompt_ids(answer.prompt), (answer.sample.token_ids,)) for answer in answers if not answer.is_truncated
    ]


def ideal_examples(config: LabConfig) -> list[Example]:
    """The ideal answer to every training prompt."""
    prompts = training_prompts(config)
    return [Example(prompt_ids(prompt), (response_ids(ideal_response(prompt)),)) for prompt in prompts]


def preference_examples(chosen: Sequence[Answer], rejected: Sequence[Answer]) -> list[Example]:
    """Pairs joined by prompt; a pair of equal answers carries no preference and is left out."""
    rejected_of = {answer.prompt: answer for answer in rejected}
    pairs = [(answer, rejected_of[answer.prompt]) for answer in chosen]
    return [
        Example(prompt_ids(good.prompt), (good.sample.token_ids, bad.sample.token_ids))
        for good, bad in pairs
        if good.sample.token_ids != bad.sample.token_ids
    ]


def imitate(
    start: LlamaForCausalLM, answers: Sequence[Answer], settings: TrainingSettings, seed: int, label: str | None = None
) -> Trained:
    """SFT on answers: stage 1 of ConG on contrastive ones, WeakSFT on plain ones."""
    return fine_tune(start, SFT(), imitation_examples(answers), settings, seed, label)


def sample_own(first: LlamaForCausalLM, config: LabConfig, label: str | None = None) -> list[Answer]:
    """A stage-1 model's own answer to every training prompt."""
    return ask([first], training_prompts(config), plain_parameters(config), "own samples", config.seed, label)


def prefer(
    first: LlamaForCausalLM,
    chosen: Sequence[Answer],
    own: Sequence[Answer],
    config: LabConfig,
    label: str | None = None,
    training: TrainingSettings | None = None,
    beta: float | None = None,
) -> Trained:
    """Stage 2: DPO from the stage-1 model, which is also the reference, against its own samples."""
    settings = config.second_stage
    objective = DPO(beta=settings.beta if beta is None else beta)
    examples = preference_examples(chosen, own)
    return fine_tune(
        first, objective, examples, training or settings.training, config.seed, label, {"reference": first}
    )
