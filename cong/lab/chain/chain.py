"""The method from end to end in one process, on one seed: from a weak pair to a judged strong model.

It trains and judges; what is shown of it is decided in `page`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import LlamaForCausalLM

from cong.config.lab import LabConfig
from cong.lab.answers import Answer, ask
from cong.lab.bases import get_base
from cong.lab.cache import Cache
from cong.lab.decodings import ALIGNED, BASE, CONTRASTIVE, alpha_name, contrastive_decodings, plain_decodings
from cong.lab.names import (
    CEILING,
    CONG,
    CONG_S,
    STRONG_BASE,
    WEAK_ALIGNED,
    WEAK_SFT,
    temperature_name,
)
from cong.lab.stages import (
    align,
    contrastive_parameters,
    fine_tune,
    held_out_prompts,
    ideal_examples,
    imitate,
    plain_parameters,
    prefer,
    sample_labels,
    sample_own,
)
from cong.lab.trainer import TrainingStep
from cong.objectives import SFT
from cong.telemetry import progress

ALIGNMENT_CURVE, FIRST_CURVE, SECOND_CURVE = "weak alignment (DPO)", "stage 1 (SFT)", "stage 2 (DPO)"


@dataclass(frozen=True)
class Chain:
    """Every model, sample and curve of one run."""

    config: LabConfig
    models: Mapping[str, LlamaForCausalLM]
    """By the name that tables give them; the weak base is named as its decoding is."""
    curves: Mapping[str, Sequence[TrainingStep]]
    labels: Mapping[str, Sequence[Answer]]
    """Answers to the training prompts, by decoding."""
    weak: Mapping[str, Sequence[Answer]]
    """Answers of the weak models to the test prompts, by decoding."""
    judged: Mapping[str, Mapping[str, Sequence[Answer]]]
    """Answers to the test prompts: model, then temperature."""
    scored: Mapping[str, Sequence[Answer]]
    """Plain samples of base and aligned, scored under both."""


def run_chain(config: LabConfig, cache: Cache) -> Chain:
    """Align the weak model, sample the pair in contrast, teach the strong model in two stages, and judge everything."""
    base, strong = get_base(config, "weak", cache), get_base(config, "strong", cache)

    alignment = align(base, config, "1. aligning the weak model by DPO")
    aligned = alignment.network

    contrastive = sample_labels(
        [aligned, base], config, contrastive_parameters(config), "2. contrastive samples of the weak pair"
    )
    plain = sample_labels([aligned], config, plain_parameters(config), "   plain samples of the aligned model")

    first = imitate(strong, contrastive, config.first_stage, config.seed, "3. stage 1: SFT on contrastive samples")
    weak_sft = imitate(strong, plain, config.first_stage, config.seed, "   WeakSFT: the same on plain samples")

    own = sample_own(first.network, config, "4. the stage-1 model's own samples")
    second = prefer(first.network, contrastive, own, config, "5. stage 2: DPO, contrastive over own samples")
    ceiling = fine_tune(
        strong, SFT(), ideal_examples(config), config.ceiling, config.seed, "   ceiling: SFT on gold answers"
    )

    models = {
        WEAK_ALIGNED: aligned,
        STRONG_BASE: strong,
        WEAK_SFT: weak_sft.network,
        CONG_S: first.network,
        CONG: second.network,
        CEILING: ceiling.network,
    }
    prompts = held_out_prompts(config)
    return Chain(
        config=config,
        models={BASE: base, **models},
        curves={ALIGNMENT_CURVE: alignment.curve, FIRST_CURVE: first.curve, SECOND_CURVE: second.curve},
        labels={CONTRASTIVE: contrastive, ALIGNED: plain},
        weak=judge_weak(base, aligned, prompts, config),
        judged=judge_models(models, prompts, config),
        scored=score_pair(base, aligned, prompts, config),
    )


def judge_weak(
    base: LlamaForCausalLM, aligned: LlamaForCausalLM, prompts: Sequence[str], config: LabConfig
) -> dict[str, list[Answer]]:
    """Answers of the weak models under each plain decoding and over the sweep of contrast strengths."""
    plain = plain_decodings(config)
    swept = [CONTRASTIVE, *(alpha_name(alpha) for alpha in config.evaluation.alphas)]
    contrastive = {name: rule for name, rule in contrastive_decodings(config).items() if name in swept}
    answers = {BASE: ask([base], prompts, plain[ALIGNED], "evaluation", config.seed)}
    with progress("6. judging the weak pair", len(plain) + len(contrastive), unit="decodings") as bar:
        for name, rule in plain.items():
            answers[name] = ask([aligned], prompts, rule, "evaluation", config.seed)
            bar.advance()
        for name, rule in contrastive.items():
            answers[name] = ask([aligned, base], prompts, rule, "evaluation", config.seed)
            bar.advance()
    return answers


def judge_models(
    models: Mapping[str, LlamaForCausalLM], prompts: Sequence[str], config: LabConfig
) -> dict[str, dict[str, list[Answer]]]:
    """Answers of each model at each of the evaluation's temperatures."""
    temperatures = config.evaluation.temperatures
    judged: dict[str, dict[str, list[Answer]]] = {name: {} for name in models}
    with progress("7. judging the models", len(models) * len(temperatures), unit="sets") as bar:
        for name, network in models.items():
            for temperature in temperatures:
                rule = plain_parameters(config, temperature)
                judged[name][temperature_name(temperature)] = ask([network], prompts, rule, "evaluation", config.seed)
                bar.advance()
    return judged


def score_pair(
    base: LlamaForCausalLM, aligned: LlamaForCausalLM, prompts: Sequence[str], config: LabConfig
) -> dict[str, list[Answer]]:
    """Plain samples of each of the pair, with log-probabilities under both: the other network has weight 0."""
    plain = plain_parameters(config)
    return {
        name: ask([aligned, base], prompts, plain.model_copy(update={"weights": weights}), "evaluation", config.seed)
        for name, weights in {BASE: (0.0, 1.0), ALIGNED: (1.0, 0.0)}.items()
    }
