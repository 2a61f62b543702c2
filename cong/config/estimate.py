"""Settings of estimates: the devices of a run, and how much work it is where that cannot be counted beforehand."""

from typing import Literal

from pydantic import Field

from cong.config.base import Count, Settings

Device = Literal["", "L4", "L40S", "A100-40GB", "A100-80GB", "H100", "H200", "B200"]


class EstimateConfig(Settings):
    """What `--dry-run` reckons with. Changes nothing that a run does."""

    accelerator: Device = ""
    """On which training runs and a pipeline draws its samples, such as H100; empty = amounts only. How many of it
    train is `training_job.num_workers`."""
    sampler: Device = ""
    """On which a service samples; empty = `accelerator`."""
    num_samplers: Count = 1
    """Of them, each with one copy of the networks."""
    num_prompts: int = Field(default=0, ge=0)
    """Where the file of prompts is not there to be counted; 0 = it has to be."""
    num_preferences: int = Field(default=0, ge=0)
    """The same for pairs that are given; 0 = as many as prompts."""
    num_held_out: int = Field(default=0, ge=0)
    """The same for held-out prompts; 0 = `evaluation.num_prompts`."""
    prompt_tokens: float = Field(default=200.0, gt=0.0)
    """Mean, where prompts cannot be read."""
    response_tokens: float = Field(default=0.0, ge=0.0)
    """Mean of a sample; 0 = as many as `max_tokens` allows."""
    like: str = ""
    """Public family, such as Qwen2.5-7B, that networks are like which an earlier stage is still to make."""
