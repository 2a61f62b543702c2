"""What the stages of a pipeline will have to do, at most: amounts, and hours, memory and disk where devices are named.

Pure arithmetic on the configuration and on what is given; knows nothing of what is done already. What is not there yet
is reckoned with as the section `estimate` says.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from cong.config import RunConfig
from cong.config.models import NetworkConfig
from cong.config.train import DataSettings
from cong.errors import ConfigError
from cong.estimate import (
    Machines,
    SamplingEstimate,
    SamplingWork,
    TrainingEstimate,
    TrainingWork,
    estimate_sampling,
    estimate_training,
)
from cong.estimate.planned import new_tokens, pairs_to_count, prompts_to_count, sampler, samplers, trainers
from cong.estimate.tables import hours_text
from cong.pipeline.board import Board, stages_of
from cong.pipeline.book import WEAK_ALIGNED, WEAK_BASE
from cong.pipeline.given import Given
from cong.pipeline.recipe import own_settings, train_settings
from cong.pipeline.stage import Stage
from cong.schemas import Prompt, SamplingParameters

_CHARS_PER_TOKEN = 4.0
"""Of English text."""
_ROLES = ("strong", "aligned", "base")

Estimate = SamplingEstimate | TrainingEstimate


@dataclass(frozen=True)
class Forecast:
    """One stage."""

    stage: Stage
    amount: str
    estimates: tuple[Estimate, ...] = ()
    """Empty where no device is named; several where one network after another is at work."""

    @property
    def machines(self) -> Machines | None:
        """Where it is at work; None where no device is named."""
        return self.estimates[0].machines if self.estimates else None

    @property
    def hours(self) -> float:
        """Of waiting."""
        return sum(each.hours for each in self.estimates)

    @property
    def device_hours(self) -> float:
        """Of all devices together."""
        return sum(each.device_hours for each in self.estimates)

    @property
    def device_bytes(self) -> float:
        """Of one device at its fullest."""
        return max(each.device_bytes for each in self.estimates)

    @property
    def does_fit(self) -> bool:
        """Whether a device has room for it."""
        return all(each.does_fit for each in self.estimates if isinstance(each, TrainingEstimate))

    @property
    def disk_bytes(self) -> float:
        """Of what is made and kept on the way."""
        return sum(
            each.disk_bytes if isinstance(each, TrainingEstimate) else each.stream_bytes for each in self.estimates
        )

    @property
    def text(self) -> str:
        """For a plan."""
        on = self.machines
        if on is None:
            return self.amount
        return f"{self.amount}; about {hours_text(self.hours)} on {on.num_devices} {on.accelerator.name}"


class Outlook:
    """The stages of a pipeline with what they will work on."""

    def __init__(self, config: RunConfig, stages: Sequence[Stage], given: Given) -> None:
        self._config = config
        self._networks: Mapping[str, NetworkConfig] = given.networks
        self._given = given
        self._makers = {stage.product: stage for stage in stages}
        self.stages = stages

    @classmethod
    def of(cls, config: RunConfig) -> "Outlook":
        """From the configuration alone: nothing that it names has to be there."""
        given = Given(config)
        return cls(config, stages_of(config, given.names), given)

    @classmethod
    def of_board(cls, board: Board) -> "Outlook":
        """Of a pipeline whose inputs are there."""
        return cls(board.config, board.stages, board.given)

    def all(self) -> list[Forecast]:
        """Every stage that works, in order."""
        return [self.forecast(stage) for stage in self.stages if stage.kind not in ("import", "report")]

    def forecast(self, stage: Stage) -> Forecast:
        """One stage."""
        forecasts = {
            "sample": self._sampling,
            "train": self._training,
            "evaluate": self._evaluation,
            "sweep": self._sweep,
        }
        return forecasts[stage.kind](stage) if stage.kind in forecasts else Forecast(stage, "")

    # What there is to do.

    @cached_property
    def _prompts(self) -> tuple[Prompt, ...]:
        with suppress(ConfigError):
            return self._given.prompt_set.prompts
        return ()

    @cached_property
    def _num_prompts(self) -> int:
        if self._prompts:
            return len(self._prompts)
        return prompts_to_count(self._config, self._config.pipeline.prompts, "pipeline.prompts.source")

    @property
    def _prompt_tokens(self) -> float:
        if not self._prompts:
            return self._config.estimate.prompt_tokens
        return sum(map(_length, self._prompts)) / len(self._prompts)

    @property
    def _num_held_out(self) -> int | None:
        settings = self._config.evaluation
        if settings.num_prompts or settings.prompts is None:
            return settings.num_prompts or None
        if settings.prompts.is_file():
            with settings.prompts.open("rb") as lines:
                return sum(bool(line.strip()) for line in lines)
        return self._config.estimate.num_held_out or None

    def _num_examples(self, stage: Stage) -> int | None:
        """Of one epoch, at most; None where only reading them tells."""
        pipeline = self._config.pipeline
        source = stage.inputs.get("samples", stage.inputs.get("pairs", ""))
        with suppress(ConfigError):
            if source == "preferences":
                return pairs_to_count(self._config, pipeline.preferences, "pipeline.preferences")
            if source == "gold-samples":
                return pairs_to_count(self._config, str(pipeline.gold_answers), "pipeline.gold_answers")
            return self._num_prompts * pipeline.num_samples
        return None

    def _origin(self, name: str) -> NetworkConfig:
        """The given network that a product was, or will be, trained from: it has the same size."""
        origin = name
        while origin in self._makers:
            origin = self._makers[origin].inputs["network"]
        network = self._networks[origin]
        # What is trained is no second name of the same weights.
        return network if origin == name else network.model_copy(update={"revision": f"made as {name}"})

    # Kinds of work.

    def _sampling(self, stage: Stage) -> Forecast:
        pipeline, parameters = self._config.pipeline, own_settings(self._config, stage)
        number = self._num_prompts * pipeline.num_samples
        amount = f"{number:,} samples of at most {parameters.max_tokens:,} tokens"
        # A service has samplers of its own; otherwise one process draws.
        is_served = bool(pipeline.url) and {"aligned", "base"} <= stage.inputs.keys()
        networks = {role: self._origin(stage.inputs[role]) for role in _ROLES if role in stage.inputs}
        work = (self._num_prompts, pipeline.num_samples, self._prompt_tokens)
        return Forecast(stage, amount, self._drawn(networks, parameters, *work, is_served=is_served))

    def _drawn(
        self,
        networks: Mapping[str, NetworkConfig],
        parameters: SamplingParameters,
        num_prompts: int,
        num_samples: int,
        prompt_tokens: float,
        *,
        is_served: bool = False,
    ) -> tuple[SamplingEstimate, ...]:
        config = self._config
        on = self._on(is_served=is_served)
        if on is None:
            return ()
        models = config.models.model_copy(update={role: networks.get(role, NetworkConfig()) for role in _ROLES})
        own = config.model_copy(update={"models": models, "sampling": parameters})
        mean = new_tokens(config, parameters.max_tokens)
        return (estimate_sampling(own, SamplingWork(num_prompts, num_samples, prompt_tokens, mean), on),)

    def _on(self, *, is_served: bool) -> Machines | None:
        if not self._config.estimate.accelerator:
            return None
        return samplers(self._config) if is_served else sampler(self._config)

    def _training(self, stage: Stage) -> Forecast:
        config = self._config
        train = train_settings(config, stage)
        num_examples = self._num_examples(stage)
        if num_examples is None:
            return Forecast(stage, "a number of steps that the examples decide")
        num_steps = train.num_epochs * math.ceil(num_examples / train.batches.batch_size)
        num_steps = min(num_steps, train.max_steps) if train.max_steps else num_steps
        amount = f"{num_steps:,} steps of {train.batches.batch_size} at most"
        if not config.estimate.accelerator:
            return Forecast(stage, amount)
        # Of pairs and single samples only the kind counts here.
        data = DataSettings(kind="stream" if "samples" in stage.inputs else "joined")
        network = self._origin(stage.inputs["network"])
        own = config.model_copy(update={"train": train.model_copy(update={"data": data, "network": network})})
        room = max(1.0, train.batches.max_example_tokens - self._prompt_tokens)
        mean = min(new_tokens(config, config.sampling.max_tokens), room)
        work = TrainingWork(num_examples, self._prompt_tokens, mean)
        return Forecast(stage, amount, (estimate_training(own, work, trainers(config)),))

    def _evaluation(self, stage: Stage) -> Forecast:
        settings, number = self._config.evaluation, self._num_held_out
        names = [name for name in list(stage.inputs.values())[3:] if name in self._makers or name in self._networks]
        num_sets = sum(settings.num_samples if one > 0.0 else 1 for one in settings.temperatures)
        count = f"{number:,}" if number else "all"
        answers = "1 answer" if num_sets == 1 else f"{num_sets} answers"
        amount = f"{len(stage.inputs) - 3} candidates, {answers} each to {count} held-out prompts"
        if not number:
            return Forecast(stage, amount)
        drawn = (
            self._drawn({"strong": self._origin(name)}, settings.sampling, number, num_sets, self._prompt_tokens)
            for name in names
        )
        return Forecast(stage, amount, tuple(each for estimates in drawn for each in estimates))

    def _sweep(self, stage: Stage) -> Forecast:
        alphas, number = self._config.pipeline.alphas, self._num_held_out
        count = f"{number:,}" if number else "all"
        amount = f"{len(alphas)} strengths of contrast, 1 answer each to {count} held-out prompts"
        if not number:
            return Forecast(stage, amount)
        pair = {"aligned": self._origin(WEAK_ALIGNED), "base": self._origin(WEAK_BASE)}
        # Each strength computes the prompts anew.
        drawn = self._drawn(pair, self._config.sampling, number * len(alphas), 1, self._prompt_tokens)
        return Forecast(stage, amount, drawn)


def _length(prompt: Prompt) -> float:
    if prompt.token_ids:
        return float(len(prompt.token_ids))
    text = prompt.text or "".join(message.content for message in prompt.messages)
    return max(1.0, len(text) / _CHARS_PER_TOKEN)
