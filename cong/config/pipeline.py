"""Settings of a pipeline: which methods it runs, from what, and what each of their stages has of its own."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cong.config.base import Count, PositiveFloat, Settings, Share
from cong.config.jobs import PromptsConfig
from cong.config.models import NetworkConfig
from cong.config.train import ObjectiveSettings, ScheduleSettings
from cong.schemas import SamplingParameters


class StageTraining(Settings):
    """What one stage's training has of its own; everything else is as `train` says."""

    objective: ObjectiveSettings = ObjectiveSettings()
    learning_rate: PositiveFloat = 1e-5
    num_epochs: Count = 1
    max_steps: int = Field(default=0, ge=0)
    """Optimiser steps at most; 0 = as many as the epochs have."""
    batch_size: Count | None = None
    """None = `train.batches.batch_size`."""
    schedule: ScheduleSettings | None = None
    """None = `train.schedule`."""


class AlignTraining(StageTraining):
    objective: ObjectiveSettings = ObjectiveSettings(name="dpo", parameters={"beta": 0.1})
    learning_rate: PositiveFloat = 8e-7


class ImitateTraining(StageTraining):
    num_epochs: Count = 2


class PreferTraining(StageTraining):
    objective: ObjectiveSettings = ObjectiveSettings(name="dpo", parameters={"beta": 0.5})
    learning_rate: PositiveFloat = 6e-7


class ConfidenceTraining(StageTraining):
    objective: ObjectiveSettings = ObjectiveSettings(name="aux_conf")
    num_epochs: Count = 2


class RegressionTraining(StageTraining):
    objective: ObjectiveSettings = ObjectiveSettings(name="wspo")


def _of_one_network(value: Any) -> Any:
    """Sampling settings of one network: an unmixed distribution unless they say otherwise."""
    return {"weights": (1.0,), "head_lambda": 0.0, **value} if isinstance(value, dict) else value


class PipelineConfig(Settings):
    """The whole method as stages. Networks come from `models`, contrastive draws from `sampling`, the rest of training
    from `train`, judges from `evaluation`."""

    methods: tuple[str, ...] = Field(default=("cong", "weak-sft"), min_length=1)
    """What is made: cong, weak-sft, aux-conf, wspo, self. Stages that methods share run once."""
    prompts: PromptsConfig = PromptsConfig()
    """Prompts that are sampled for training. Needed."""
    num_samples: Count = 1
    """Of every prompt, in every stage that samples."""
    preferences: str = Field(default="", max_length=4096)
    """File or folder of pairs by which the weak model is aligned; needed where `models.aligned` names none."""
    ceiling: NetworkConfig = NetworkConfig()
    """The strong model trained on the truth, where there is one; without a source and `gold_answers` there is none."""
    gold_answers: Path | None = None
    """JSON lines with prompt and answer: a ceiling is trained on them by `ceiling_training`."""
    url: str = Field(default="", max_length=4096)
    """A service that holds the weak pair and draws the contrastive samples; empty = they are drawn here."""
    plain_sampling: SamplingParameters = SamplingParameters.plain(temperature=0.8, top_p=0.95)
    """How the aligned model's plain samples are drawn, which rivals learn from."""
    own_sampling: SamplingParameters = SamplingParameters.plain(temperature=0.8, top_p=0.95, seed=50)
    """How the first stage's model draws its own samples, which the second stage rejects."""
    alphas: tuple[Annotated[float, Field(ge=0.0, le=100.0)], ...] = ()
    """Strengths of contrast at which the pair answers the held-out prompts, for the report's curve of reward against
    alpha; empty = no curve."""
    align: AlignTraining = AlignTraining()
    """DPO of the weak model on preferences."""
    imitate: ImitateTraining = ImitateTraining()
    """First stage: SFT on contrastive samples; WeakSFT has the same on plain ones."""
    prefer: PreferTraining = PreferTraining()
    """Second stage: DPO, contrastive samples over the model's own."""
    aux_conf: ConfidenceTraining = ConfidenceTraining()
    wspo: RegressionTraining = RegressionTraining()
    ceiling_training: ImitateTraining = ImitateTraining()
    executor: Literal["in_process", "subprocess"] = "in_process"
    """subprocess: a process of its own for every stage, which gives all memory back at its end."""
    overlaps: bool = False
    """Training follows the samples that it imitates while they are drawn: at the same time under an executor that runs
    stages side by side. Only stages of one epoch without held-out prompts do."""
    max_failed_share: Share = 0.0
    """Share of the prompts that a sampling stage may leave unanswered and be complete."""
    keeps_checkpoints: bool = False
    """Keep the last checkpoint of a stage that has finished; its network is kept in any case."""

    @field_validator("plain_sampling", "own_sampling", mode="before")
    @classmethod
    def _unmixed(cls, value: Any) -> Any:
        return _of_one_network(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("plain_sampling", "own_sampling"):
            weights = getattr(self, name).weights
            if len(weights) != 1:
                raise ValueError(f"{name}.weights are {weights}; one network is asked, so leave them out")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods are {', '.join(self.methods)}; give each once")
        if len(set(self.alphas)) < len(self.alphas):
            raise ValueError(f"alphas are {self.alphas}; give each once")
        if self.ceiling.source and self.gold_answers is not None:
            raise ValueError("ceiling.source and gold_answers are both given; keep one")
        return self
