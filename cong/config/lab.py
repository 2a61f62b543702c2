"""Settings of the lab: the tiny world in which the whole method is made and measured.

The defaults are the recipe whose results are documented; sections that are alike in kind and differ in numbers are
subclasses, so that a file may set one key and keep the others.
"""

from typing import Annotated, Literal

from pydantic import Field

from cong.config.base import Count, PositiveFloat, Settings, Share

Precision = Literal["bfloat16", "float32"]


class NetworkSettings(Settings):
    """Shape of a tiny Llama."""

    hidden_size: Count
    num_layers: Count
    num_heads: Count
    mlp_size: Count


class TrainingSettings(Settings):
    """One run of the trainer: AdamW, warm-up, then a cosine."""

    num_epochs: Count = 1
    batch_size: Count = 32
    """Examples (documents, samples or pairs) of one optimiser step."""
    learning_rate: PositiveFloat = 2e-4
    num_warmup_steps: int = Field(default=10, ge=0)
    final_learning_rate_share: Share = 0.1
    """What the learning rate falls to behind the last step, which is still one step's fall above."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.98
    max_grad_norm: PositiveFloat = 1.0
    precision: Precision = "bfloat16"
    """bfloat16: matrix products only, weights and sums stay in float32."""


class WeakNetworkSettings(NetworkSettings):
    hidden_size: Count = 64
    num_layers: Count = 2
    num_heads: Count = 2
    mlp_size: Count = 168


class StrongNetworkSettings(NetworkSettings):
    hidden_size: Count = 96
    num_layers: Count = 3
    num_heads: Count = 4
    mlp_size: Count = 256


class PretrainingSettings(TrainingSettings):
    """Training from scratch on documents that are each seen once."""

    num_documents: Count = 128_000
    batch_size: Count = 64
    learning_rate: PositiveFloat = 4e-3
    num_warmup_steps: int = Field(default=100, ge=0)
    final_learning_rate_share: Share = 0.05
    weight_decay: float = Field(default=0.01, ge=0.0)


class StrongPretrainingSettings(PretrainingSettings):
    num_documents: Count = 153_600
    learning_rate: PositiveFloat = 2e-3


class WeakSettings(Settings):
    """The weak model before its alignment."""

    network: WeakNetworkSettings = WeakNetworkSettings()
    pretraining: PretrainingSettings = PretrainingSettings()


class StrongSettings(Settings):
    """The strong model before anything is taught to it."""

    network: StrongNetworkSettings = StrongNetworkSettings()
    pretraining: StrongPretrainingSettings = StrongPretrainingSettings()


class AlignmentTraining(TrainingSettings):
    batch_size: Count = 64
    learning_rate: PositiveFloat = 3e-4


class AlignmentSettings(Settings):
    """The weak model's alignment: DPO on noisy preferences."""

    num_pairs: Count = 8000
    preference_noise: PositiveFloat = 0.15
    """Difference of gold reward at which a preference is right with probability 0.73."""
    beta: PositiveFloat = 1.0
    training: AlignmentTraining = AlignmentTraining()


class ContrastSettings(Settings):
    """How contrastive samples are decoded from the weak pair."""

    alpha: float = Field(default=0.4, ge=0.0, le=100.0)
    """1 = no contrast."""
    head_lambda: Share = 0.1
    temperature: float = Field(default=1.0, ge=0.0, le=100.0)


class OwnSamplesTraining(TrainingSettings):
    learning_rate: PositiveFloat = 3e-4
    num_epochs: Count = 2


class SecondStageSettings(Settings):
    """ConG's stage 2: DPO, contrastive samples chosen, the stage-1 model's own rejected."""

    beta: PositiveFloat = 0.5
    training: OwnSamplesTraining = OwnSamplesTraining()


class CeilingTraining(TrainingSettings):
    num_epochs: Count = 2
    learning_rate: PositiveFloat = 6e-4


class RivalSettings(Settings):
    """What the rivals have beside the first stage's training."""

    aux_conf_highest: Share = 0.5
    wspo_gammas: tuple[PositiveFloat, ...] = Field(default=(0.5, 1.0), min_length=1)


class EvaluationSettings(Settings):
    num_prompts: int = Field(default=1000, ge=4, le=49_492)
    """Four are needed for quartiles, and the world has so many whose arguments are kept from training."""
    temperatures: tuple[Annotated[float, Field(ge=0.0, le=100.0)], ...] = Field(default=(1.0, 0.7, 0.0), min_length=1)
    """The first is the one that results are about; 0 = greedy."""
    alphas: tuple[Annotated[float, Field(ge=0.0, le=100.0)], ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Contrast strengths of the sweep."""
    alignment_betas: tuple[PositiveFloat, ...] = Field(default=(1.0, 0.5, 0.3, 0.1), min_length=1)
    """The weak model is aligned once more with each, to show what contrast does to a stronger alignment."""


class LabConfig(Settings):
    """The whole chain of the method in the world "letters"."""

    seed: int = Field(default=0, ge=0)
    """Redraws everything: weights, corpus, preferences, prompts, samples."""
    num_training_prompts: int = Field(default=2000, ge=1, le=350_508)
    """The world has so many."""
    max_response_tokens: Count = 26
    weak: WeakSettings = WeakSettings()
    strong: StrongSettings = StrongSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    contrast: ContrastSettings = ContrastSettings()
    first_stage: TrainingSettings = TrainingSettings()
    """SFT on contrastive samples; WeakSFT, auxiliary confidence and WSPO get the same."""
    second_stage: SecondStageSettings = SecondStageSettings()
    ceiling: CeilingTraining = CeilingTraining()
    """SFT on ideal answers."""
    rivals: RivalSettings = RivalSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
