"""One seed of the experiment, measured: the weak pair's decodings, the method, its rivals, and their comparison.

It decides what is trained and compared; how each stage works is in `stages`. Knows no files and prints nothing but
progress.
"""

import time
from collections.abc import Sequence
from statistics import fmean

from transformers import LlamaForCausalLM

from cong.config.lab import LabConfig, TrainingSettings
from cong.lab.answers import Answer, ask
from cong.lab.decodings import (
    ALIGNED,
    BASE,
    CONTRASTIVE,
    alpha_name,
    contrastive_decodings,
    plain_decodings,
)
from cong.lab.names import (
    AUX_CONF,
    CEILING,
    CONG,
    CONG_ONE,
    CONG_S,
    CONVERGED,
    CONVERGED_DPO,
    LABEL_DECODINGS,
    MATCHED,
    OWN,
    PLAIN_DPO,
    PREFERENCES,
    STRONG_BASE,
    WEAK_ALIGNED,
    WEAK_CONVERGED,
    temperature_name,
    wspo_name,
)
from cong.lab.results import CorrelationResult, HealthResult, ModelResult, PairsResult, SeedResult
from cong.lab.stages import (
    Trained,
    align,
    fine_tune,
    held_out_prompts,
    ideal_examples,
    imitate,
    imitation_examples,
    plain_parameters,
    prefer,
    preference_examples,
    sample_labels,
    sample_own,
)
from cong.lab.summaries import head_health, relate_rewards, summarize
from cong.lab.trainer import Example, response_logprobs
from cong.objectives import SFT, WSPO, AuxConf
from cong.schemas import SamplingParameters
from cong.statistics import paired_interval, performance_gap_recovered
from cong.telemetry import Progress


class SeedMeasurement:
    """The measurement of one seed while it grows."""

    def __init__(
        self, config: LabConfig, base: LlamaForCausalLM, strong: LlamaForCausalLM, bar: Progress | None = None
    ) -> None:
        self.config = config
        self.base = base
        self.strong = strong
        self.aligned = base
        self.bar = bar
        self.started_s = time.monotonic()
        self.prompts = held_out_prompts(config)
        self.weak: dict[str, list[Answer]] = {}
        self.labels: dict[str, list[Answer]] = {}
        self.strong_answers: dict[str, dict[str, list[Answer]]] = {}
        self.num_examples: dict[str, tuple[int, int]] = {}
        self.correlations: dict[str, CorrelationResult] = {}
        self.health: dict[str, HealthResult] = {}
        self.alignments: dict[str, dict[str, float]] = {}
        self.stray_shares: dict[str, float] = {}
        self.pairs: list[Example] = []

    def _report(self, what: str) -> None:
        if self.bar is not None:
            self.bar.advance(now=what)

    def _ask(self, networks: Sequence[LlamaForCausalLM], parameters: SamplingParameters) -> list[Answer]:
        return ask(networks, self.prompts, parameters, "evaluation", self.config.seed)

    def measure_weak(self) -> None:
        """Align the weak model, decode the pair in every way, and relate implicit to gold reward."""
        config = self.config
        self.aligned = align(self.base, config).network
        self._report("weak alignment")
        pair = [self.aligned, self.base]
        plain = plain_decodings(config)
        self.weak[BASE] = self._ask([self.base], plain[ALIGNED])
        self.weak["base greedy"] = self._ask([self.base], plain["aligned greedy"])
        for name, parameters in plain.items():
            self.weak[name] = self._ask([self.aligned], parameters)
            self._report(name)
        for name, parameters in contrastive_decodings(config).items():
            self.weak[name] = self._ask(pair, parameters)
            self._report(name)
        for name in (CONTRASTIVE, alpha_name(1.0)):
            if name in self.weak:
                self.health[name] = head_health(self.aligned, self.weak[name])
        # The same draws as plain sampling of one of the pair, but scored under both.
        for name, weights in {"base": (0.0, 1.0), "aligned": (1.0, 0.0)}.items():
            unmixed = plain[ALIGNED].model_copy(update={"weights": weights})
            answers = self._ask(pair, unmixed)
            self.correlations[f"{name} samples"] = relate_rewards(answers)
        self.correlations["contrastive samples"] = relate_rewards(self.weak[CONTRASTIVE])
        self._report("correlations")

    def measure_alignments(self) -> None:
        """Contrast against plain decoding where the weak model was aligned harder."""
        plain = plain_decodings(self.config)
        contrastive = contrastive_decodings(self.config)
        greedy = "contrastive greedy"
        for beta in self.config.evaluation.alignment_betas:
            aligned = align(self.base, self.config, beta=beta).network
            rewards = {}
            for name in (ALIGNED, "aligned T=0.5", "aligned greedy", "aligned min-p 0.1"):
                summary = summarize(self._ask([aligned], plain[name]))
                rewards[name] = summary.reward.mean
                if name == ALIGNED:
                    self.stray_shares[f"{beta:g}"] = summary.stray_share
            for name in (CONTRASTIVE, greedy):
                rewards[name] = summarize(self._ask([aligned, self.base], contrastive[name])).reward.mean
            self.alignments[f"{beta:g}"] = rewards
            self._report(f"alignment with beta {beta:g}")

    def sample_all_labels(self) -> None:
        """What the strong models are taught: contrastive samples, and plain ones of several decodings."""
        plain = plain_decodings(self.config)
        contrastive = contrastive_decodings(self.config)[CONTRASTIVE]
        self.labels[CONTRASTIVE] = sample_labels([self.aligned, self.base], self.config, contrastive)
        for name in LABEL_DECODINGS:
            self.labels[name] = sample_labels([self.aligned], self.config, plain[name])
        self._report("labels")

    def _judge(self, name: str, network: LlamaForCausalLM, num_examples: int = 0, num_left_out: int = 0) -> None:
        self.strong_answers[name] = {
            temperature_name(temperature): self._ask([network], plain_parameters(self.config, temperature))
            for temperature in self.config.evaluation.temperatures
        }
        self.num_examples[name] = (num_examples, num_left_out)
        self._report(name)

    def _imitate(self, name: str, label: str, settings: TrainingSettings) -> LlamaForCausalLM:
        answers = self.labels[label]
        network = imitate(self.strong, answers, settings, self.config.seed).network
        num_examples = len(imitation_examples(answers))
        self._judge(name, network, num_examples, len(answers) - num_examples)
        return network

    def _prefer(
        self,
        name: str,
        first: LlamaForCausalLM,
        label: str,
        own: Sequence[Answer],
        training: TrainingSettings,
        beta: float | None = None,
    ) -> None:
        trained = prefer(first, self.labels[label], own, self.config, training=training, beta=beta)
        num_examples = len(preference_examples(self.labels[label], own))
        self._judge(name, trained.network, num_examples, len(own) - num_examples)

    def measure_method(self) -> None:
        """ConG-S and ConG, with the comparisons that say what the second stage is worth."""
        config = self.config
        first, second = config.first_stage, config.second_stage.training
        once = second.model_copy(update={"num_epochs": 1})
        thorough = first.model_copy(update={"num_epochs": 3, "learning_rate": 4e-4})
        stage_1 = self._imitate(CONG_S, CONTRASTIVE, first)
        own = sample_own(stage_1, config)
        self.labels[OWN] = own
        self.pairs = preference_examples(self.labels[CONTRASTIVE], own)
        self._prefer(CONG_ONE, stage_1, CONTRASTIVE, own, once)
        self._prefer(CONG, stage_1, CONTRASTIVE, own, second)
        gentle = once.model_copy(update={"learning_rate": 1e-4})
        self._prefer("ConG, 1 DPO epoch beta 0.1 lr 1e-4", stage_1, CONTRASTIVE, own, gentle, beta=0.1)
        self._imitate(MATCHED, CONTRASTIVE, first.model_copy(update={"num_epochs": 2}))
        self._imitate("ConG-S, lr 8e-4", CONTRASTIVE, first.model_copy(update={"learning_rate": 8e-4}))
        converged = self._imitate(CONVERGED, CONTRASTIVE, thorough)
        self._prefer(CONVERGED_DPO, converged, CONTRASTIVE, sample_own(converged, config), once)

    def measure_rivals(self) -> None:
        """WeakSFT on several labels, and the rivals that get the same labels and the same training."""
        config, first = self.config, self.config.first_stage
        for label, name in LABEL_DECODINGS.items():
            network = self._imitate(name, label, first)
            if label == ALIGNED:
                once = config.second_stage.training.model_copy(update={"num_epochs": 1})
                self._prefer(PLAIN_DPO, network, ALIGNED, sample_own(network, config), once)
        thorough = first.model_copy(update={"num_epochs": 3, "learning_rate": 4e-4})
        self._imitate(WEAK_CONVERGED, ALIGNED, thorough)
        examples = imitation_examples(self.labels[ALIGNED])
        aux_conf = AuxConf(highest=config.rivals.aux_conf_highest)
        self._judge_trained(AUX_CONF, fine_tune(self.strong, aux_conf, examples, first, config.seed), len(examples))
        frozen = {"reference": self.strong, "aligned": self.aligned, "base": self.base}
        for gamma in config.rivals.wspo_gammas:
            wspo = WSPO(gamma=gamma, mean_over="tokens")
            trained = fine_tune(self.strong, wspo, examples, first, config.seed, frozen=frozen)  # type: ignore[arg-type]
            self._judge_trained(wspo_name(gamma), trained, len(examples))

    def _judge_trained(self, name: str, trained: Trained, num_examples: int) -> None:
        self._judge(name, trained.network, num_examples)

    def measure_bounds(self) -> None:
        """The floor, the weak teacher and what gold labels would give."""
        config = self.config
        self._judge(WEAK_ALIGNED, self.aligned)
        self._judge(STRONG_BASE, self.strong)
        gold = ideal_examples(config)
        same = fine_tune(self.strong, SFT(), gold, config.first_stage, config.seed)
        self._judge_trained("SFT on gold, first stage's training", same, len(gold))
        self._judge_trained(CEILING, fine_tune(self.strong, SFT(), gold, config.ceiling, config.seed), len(gold))
        self._judge_trained(PREFERENCES, align(self.strong, config), config.alignment.num_pairs)
        clean = align(self.strong, config, beta=0.3, noise=0.02)
        self._judge_trained("DPO on almost noiseless gold preferences, beta 0.3", clean, config.alignment.num_pairs)

    def _rewards(self, name: str) -> list[float]:
        primary = temperature_name(self.config.evaluation.temperatures[0])
        answers = self.weak[name] if name in self.weak else self.strong_answers[name][primary]
        return [answer.reward for answer in answers]

    def _pairs_result(self) -> PairsResult:
        means = []
        for place in (0, 1):
            examples = [Example(pair.prompt_ids, pair.responses[place : place + 1]) for pair in self.pairs]
            aligned = response_logprobs(self.aligned, examples, "float32")
            base = response_logprobs(self.base, examples, "float32")
            means.append(fmean((a - b).mean().item() for a, b in zip(aligned, base, strict=True)))
        return PairsResult(
            chosen_ratio=means[0],
            rejected_ratio=means[1],
            chosen_num_tokens=fmean(len(pair.responses[0]) for pair in self.pairs),
            rejected_num_tokens=fmean(len(pair.responses[1]) for pair in self.pairs),
        )

    def result(self, compared: Sequence[tuple[str, str]]) -> SeedResult:
        """Everything measured; `compared` names the sets whose difference is wanted."""
        primary = temperature_name(self.config.evaluation.temperatures[0])
        found = {
            name: {temperature: summarize(answers) for temperature, answers in sets.items()}
            for name, sets in self.strong_answers.items()
        }
        mean = {name: sets[primary].reward.mean for name, sets in found.items()}
        models = {
            name: ModelResult(
                by_temperature=sets,
                performance_gap_recovered=performance_gap_recovered(mean[name], mean[WEAK_ALIGNED], mean[CEILING]),
                num_examples=self.num_examples[name][0],
                num_left_out=self.num_examples[name][1],
            )
            for name, sets in found.items()
        }
        return SeedResult(
            seed=self.config.seed,
            weak={name: summarize(answers) for name, answers in self.weak.items()},
            labels={name: summarize(answers) for name, answers in self.labels.items()},
            models=models,
            correlations=self.correlations,
            health=self.health,
            pairs=self._pairs_result(),
            alignments=self.alignments,
            stray_shares=self.stray_shares,
            differences={
                f"{left} - {right}": paired_interval(self._rewards(left), self._rewards(right), -1.0, 1.0)
                for left, right in compared
            },
            facts={"seconds_after_pretraining": round(time.monotonic() - self.started_s, 1)},
        )


def num_pieces(config: LabConfig) -> int:
    """How many pieces of work a seed has, as the progress bar counts them."""
    num_decodings = len(plain_decodings(config)) + len(contrastive_decodings(config))
    num_others = 2 + 1 + 6 + 8 + len(LABEL_DECODINGS) + 3
    return num_decodings + num_others + len(config.evaluation.alignment_betas) + len(config.rivals.wspo_gammas)


def measure_seed(
    config: LabConfig,
    base: LlamaForCausalLM,
    strong: LlamaForCausalLM,
    compared: Sequence[tuple[str, str]],
    bar: Progress | None = None,
) -> SeedResult:
    """Everything the experiment says of one seed."""
    measurement = SeedMeasurement(config, base, strong, bar)
    measurement.measure_weak()
    measurement.measure_alignments()
    measurement.sample_all_labels()
    measurement.measure_bounds()
    measurement.measure_method()
    measurement.measure_rivals()
    return measurement.result(compared)
