"""Settings of the jobs: what each reads, whom it asks, and when it gives up."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from cong.config.base import Count, PositiveFloat, Settings


class PromptsConfig(Settings):
    """Where prompts come from."""

    source: str = Field(default="", max_length=4096)
    """A file of JSON lines, Parquet or text, or with one array of JSON, also compressed and at a URL that fsspec knows;
    a folder of `datasets`; or a hub id."""
    prompt_column: str = ""
    """Holds text, messages or token ids; empty = prompt, text, messages or token_ids, whichever is there."""
    id_column: str = "prompt_id"
    """Names each prompt; where it is missing, a hash of the content does."""
    split: str = "train"
    """Of a dataset."""
    revision: str | None = None
    """Commit of a hub id; None = the newest."""
    max_prompts: int = Field(default=0, ge=0)
    """Only the first so many; 0 = all."""


class SamplingJobConfig(Settings):
    """Samples of many prompts from a service, which stores them in its stream."""

    url: str = Field(default="", max_length=4096)
    """Address of the service; empty = the environment's CONG_URL. The key comes from CONG_API_KEY alone."""
    prompts: PromptsConfig = PromptsConfig()
    num_samples: int = Field(default=1, ge=1, le=4096)
    """Of every prompt."""
    store: Literal["local", "shared"] = "shared"
    """How durable a sample is before its prompt counts as done."""
    in_flight: int = Field(default=64, ge=1, le=4096)
    """Prompts that are asked for at a time."""
    deadline_s: PositiveFloat | None = None
    """Of one prompt's samples; what is unfinished then is a failure. None = the service's own."""
    patience_s: PositiveFloat = 600.0
    """One prompt's tries and pauses take no longer."""
    max_tries: Count = 20
    ready_s: PositiveFloat = 600.0
    """So long may the service take to start."""
    max_failures_in_a_row: int = Field(default=50, ge=0)
    """So many prompts given up without a success between them end the job: the service is down. 0 = never."""
    grace_s: float = Field(default=20.0, ge=0.0)
    """After a signal to stop, prompts that were sent may take so long to finish."""
    asks_again: bool = False
    """Ask for prompts that the progress file calls done, too: after a stream was lost or cut down."""


Placement = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


class TrainingJobConfig(Settings):
    """A training run on a Ray cluster: how many processes, where they run, and what happens when they die."""

    storage_root: Path | None = None
    """Folder that every machine sees; a relative `output_dir` or `cache_dir` lies below it. None = below the folder
    that the job is started in, which is enough for one machine."""
    num_workers: Count = 1
    """Processes that train together; more than one needs `train.backend: deepspeed`. May change when a run goes on."""
    cpus_per_worker: float = Field(default=1.0, ge=0.0)
    gpus_per_worker: int = Field(default=0, ge=0)
    """0 = training on CPUs."""
    resources_per_worker: dict[str, PositiveFloat] = Field(default_factory=dict, max_length=16)
    """Custom resources of Ray that a worker needs, such as `trainer: 1`."""
    placement: Placement = "PACK"
    """Workers on few machines, or spread over many; the strict ones wait rather than do otherwise."""
    start_timeout_s: PositiveFloat = 900.0
    """So long may machines take to be there and workers to start."""
    max_failures: int = Field(default=3, ge=0)
    """Deaths of workers after which training goes on from the last checkpoint; one more ends the job. Machines that
    were announced to go do not count."""
    grace_s: PositiveFloat = 240.0
    """After a signal to stop, the running step and its checkpoint may take so long."""
    takeover_s: float = Field(default=30.0, ge=4.0)
    """A driver of the same run that gives no sign of life for so long counts as dead."""

    @model_validator(mode="after")
    def _resources_have_one_place(self) -> Self:
        if doubled := {"CPU", "GPU"} & self.resources_per_worker.keys():
            raise ValueError(f"resources_per_worker names {sorted(doubled)[0]}; use cpus_per_worker or gpus_per_worker")
        return self

    @property
    def resources(self) -> dict[str, float]:
        """What Ray sets aside for one worker."""
        own = {"CPU": self.cpus_per_worker, "GPU": float(self.gpus_per_worker)}
        return {**{name: amount for name, amount in own.items() if amount}, **self.resources_per_worker}
