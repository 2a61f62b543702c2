"""Settings of a training run: which network, on what, by which method, how far, and what is kept of it."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cong.config.base import Count, PositiveFloat, Settings, Share
from cong.config.models import NetworkConfig
from cong.config.stream import SampleFilter

Precision = Literal["float32", "bfloat16"]
TooLong = Literal["refuse", "drop", "truncate"]


class LoraSettings(Settings):
    """A LoRA adapter that is trained in place of the network's own weights."""

    rank: Count = 16
    alpha: PositiveFloat = 32.0
    """The adapter's part is scaled by alpha / rank."""
    dropout: Share = 0.0
    target_modules: tuple[str, ...] = ()
    """Names of the layers that get one; empty = every linear layer but the head."""


class ObjectiveSettings(Settings):
    """The training method by name, with its parameters."""

    name: str = "sft"
    """`sft`, `dpo`, `cw_dpo`, `wspo`, `aux_conf`, ...: the names of `cong.objectives`."""
    parameters: dict[str, float | str | None] = Field(default_factory=dict, max_length=32)
    """Those left out take the method's defaults; an unknown one is refused when the run begins."""


class PairSide(Settings):
    """One side of pairs that are joined from streams."""

    location: str = ""
    """Folder or URL of a stream; empty = `stream.location`."""
    filter: SampleFilter = SampleFilter()
    """Which of its records may be on this side."""


class ChosenSide(PairSide):
    filter: SampleFilter = SampleFilter(kinds=("contrastive",), finish_reasons=("stop",))


class RejectedSide(PairSide):
    filter: SampleFilter = SampleFilter(kinds=("plain",))


class DataSettings(Settings):
    """Where examples come from and in which order."""

    kind: Literal["stream", "pairs", "joined"] = "stream"
    """stream: samples of the stream that `stream` describes, with its `read`. pairs: preferences from `path`.
    joined: preferences joined from samples of two streams by prompt id and sample index."""
    path: str = ""
    """Of pairs: a .jsonl or .parquet file, or a folder that `datasets` has saved. Of a stream: its folder or URL;
    empty = `stream.location`."""
    chosen: ChosenSide = ChosenSide()
    rejected: RejectedSide = RejectedSide()
    is_shuffled: bool = True
    """Pairs take another order in every epoch, drawn from `train.seed`. A stream has `stream.read.shuffle_rows`."""

    @model_validator(mode="after")
    def _path_fits_the_kind(self) -> Self:
        if self.kind == "pairs" and not self.path:
            raise ValueError("kind is 'pairs' and path is empty; give the file or folder of the pairs")
        if self.kind == "joined" and self.path:
            raise ValueError(f"path is {self.path!r} and kind is 'joined'; give chosen.location and rejected.location")
        return self


class BatchSettings(Settings):
    """How examples become optimiser steps and micro-batches."""

    batch_size: Count = 64
    """Examples (samples or pairs) of one optimiser step, over all processes."""
    max_tokens_per_micro_batch: Count = 8192
    """Tokens of one forward pass of one process; a single example may have more."""
    max_example_tokens: Count = 4096
    """Tokens of a prompt with its response."""
    too_long: TooLong = "drop"
    """What happens to a longer one. truncate: the response is cut. Whatever it is, it is counted and reported."""
    is_packed: bool = True
    """Sequences lie behind one another in one row without padding; false: one row each, padded on the right."""


class OptimizerSettings(Settings):
    """AdamW."""

    learning_rate: PositiveFloat = 1e-5
    beta1: Share = 0.9
    beta2: Share = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Of every weight, those of norms and biases included."""
    max_grad_norm: float = Field(default=1.0, ge=0.0)
    """0 = gradients are not clipped."""


class ScheduleSettings(Settings):
    """The learning rate over the optimiser steps, as a share of the full one."""

    shape: Literal["cosine", "linear", "constant"] = "cosine"
    num_warmup_steps: int | None = Field(default=None, ge=0)
    """None = `warmup_share` of all steps."""
    warmup_share: Share = 0.1
    final_share: Share = 0.1
    """What it falls to behind the last step, which is still one step's fall above; a constant rate has none."""


class CheckpointSettings(Settings):
    """When the run is saved, and what is kept."""

    every_steps: int = Field(default=100, ge=0)
    """0 = not by steps. The end of the run is always saved."""
    every_s: float = Field(default=1800.0, ge=0.0)
    """0 = not by time."""
    num_kept: Count = 2
    """Committed checkpoints that stay; older ones go once a newer one is committed."""
    upload: str = ""
    """URL of a prefix of an object store to which every checkpoint is copied; empty = none is."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Handed to the fsspec back end of `upload`."""


class ValidationSettings(Settings):
    """Evaluation on examples that are never trained on."""

    every_steps: int = Field(default=0, ge=0)
    """0 = only at the beginning and at the end."""
    held_out_share: float = Field(default=0.0, ge=0.0, le=0.5)
    """So many prompts, chosen by a hash of their id, are kept out of training; 0 = `data`, or no evaluation."""
    data: DataSettings | None = None
    """Examples of their own for evaluation; a stream is read as it is at the start, whatever `stream.read` says."""
    max_examples: Count = 512

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.held_out_share and self.data is not None:
            raise ValueError("held_out_share and data are both given; keep one")
        return self


class LoggingSettings(Settings):
    """Where numbers go beside `metrics.jsonl`."""

    every_steps: Count = 1
    has_tensorboard: bool = True
    """Events under `tensorboard` in the output folder, where the package tensorboardX is installed."""
    wandb_project: str = ""
    """Empty = Weights & Biases is not used."""
    mlflow_uri: str = ""
    """Empty = MLflow is not used."""
    run_name: str = ""
    """Of trackers; empty = the output folder's name. The same name joins a resumed run to its beginning."""
    card_title: str = ""
    """Of the card of the trained network; empty = the output folder's name."""
    has_plots: bool = True
    """Draw the curves at the end, where matplotlib is installed."""
    peak_teraflops: float = Field(default=0.0, ge=0.0)
    """Arithmetic that one device can do per second, for the share that training reaches; 0 = known devices only."""


class DeepSpeedSettings(Settings):
    """ZeRO, for `backend: deepspeed`."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False
    """Keep the optimiser's state in the memory of the host."""
    offload_parameters: bool = False
    """Keep the weights in the memory of the host; stage 3 only."""
    has_compiled_adam: bool = False
    """For an offloaded optimiser DeepSpeed's own Adam: several times faster than torch's, and compiled on first use."""
    config_file: Path | None = None
    """JSON with keys of DeepSpeed's own; one that contradicts a setting of this run is refused."""
    timeout_s: PositiveFloat = 1800.0
    """No collective call waits longer."""


class TrainConfig(Settings):
    """One training run."""

    network: NetworkConfig = NetworkConfig()
    """What is trained; without a source it is `models.strong`. An adapter of it is merged before training."""
    lora: LoraSettings | None = None
    """None: all weights are trained."""
    objective: ObjectiveSettings = ObjectiveSettings()
    data: DataSettings = DataSettings()
    batches: BatchSettings = BatchSettings()
    num_epochs: Count = 1
    max_steps: int = Field(default=0, ge=0)
    """Optimiser steps at most; 0 = as many as the epochs have."""
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    precision: Precision = "bfloat16"
    """bfloat16: what the network computes with; weights that are trained and the optimiser's state stay in float32."""
    export_dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    """Of the weights in the exported folder; stored: as those that training began with."""
    has_activation_checkpointing: bool = False
    """Compute activations a second time in the backward pass instead of keeping them."""
    is_compiled: bool = False
    """Compile layers and log-probs with torch.compile: fewer kernels on an accelerator; compiling takes a while."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of dropout, of a new adapter, and of the order of pairs."""
    backend: Literal["torch", "deepspeed"] = "torch"
    deepspeed: DeepSpeedSettings = DeepSpeedSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    evaluation: ValidationSettings = ValidationSettings()
    logging: LoggingSettings = LoggingSettings()
