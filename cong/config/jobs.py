"""Settings of the jobs: what each reads, whom it asks, and when it gives up."""

from typing import Literal

from pydantic import Field

from cong.config.base import Count, PositiveFloat, Settings


class PromptsConfig(Settings):
    """Where prompts come from."""

    source: str = Field(default="", max_length=4096)
    """A file of JSON lines, Parquet or text, also compressed and at a URL that fsspec knows; a folder of `datasets`;
    or a hub id."""
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
