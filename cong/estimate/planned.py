"""The work that a configuration describes, as far as it can be told before anything is there, and what it takes.

Counts what can be counted without a network; for the rest it takes the numbers of the section `estimate`.
"""

from contextlib import suppress
from pathlib import Path

from cong.config import RunConfig
from cong.config.jobs import PromptsConfig
from cong.errors import ConfigError
from cong.estimate.accelerators import Machines, machines
from cong.estimate.sampling import SamplingEstimate, SamplingWork, estimate_sampling
from cong.estimate.training import TrainingEstimate, TrainingWork, estimate_training
from cong.prompts import prompts_of


def planned_sampling(config: RunConfig, num_samples: int | None = None, *, is_served: bool) -> SamplingEstimate:
    """What drawing the samples of `sampling_job` takes, by a service or by one process.

    `num_samples`: of every prompt, in place of what the settings say.
    """
    job, reckoned = config.sampling_job, config.estimate
    work = SamplingWork(
        prompts_to_count(config, job.prompts, "sampling_job.prompts.source"),
        job.num_samples if num_samples is None else num_samples,
        reckoned.prompt_tokens,
        new_tokens(config, config.sampling.max_tokens),
        reckoned.like,
    )
    return estimate_sampling(config, work, samplers(config) if is_served else sampler(config))


def planned_training(config: RunConfig) -> TrainingEstimate:
    """What the run of `train` takes."""
    data, reckoned = config.train.data, config.estimate
    if data.kind == "pairs":
        num_examples = pairs_to_count(config, data.path, "train.data.path")
    else:
        job = config.sampling_job
        num_examples = prompts_to_count(config, job.prompts, "sampling_job.prompts.source") * job.num_samples
    room = max(1.0, config.train.batches.max_example_tokens - reckoned.prompt_tokens)
    length = min(room, new_tokens(config, config.sampling.max_tokens) or room)
    work = TrainingWork(num_examples, reckoned.prompt_tokens, length, reckoned.like)
    return estimate_training(config, work, trainers(config))


def new_tokens(config: RunConfig, most: int) -> float:
    """Mean of one sample of at most so many tokens."""
    return min(config.estimate.response_tokens or float(most), float(most))


def samplers(config: RunConfig) -> Machines:
    """The devices of a service."""
    return machines(_named(config.estimate.sampler or config.estimate.accelerator), config.estimate.num_samplers)


def sampler(config: RunConfig) -> Machines:
    """The device of a process that samples by itself."""
    return machines(_named(config.estimate.accelerator))


def trainers(config: RunConfig) -> Machines:
    """The devices that train together."""
    alone = config.train.backend == "torch"
    return machines(_named(config.estimate.accelerator), 1 if alone else config.training_job.num_workers)


def _named(accelerator: str) -> str:
    if not accelerator:
        raise ConfigError("estimate.accelerator names no device; with one, such as H100, hours and memory are told")
    return accelerator


def prompts_to_count(config: RunConfig, prompts: PromptsConfig, setting: str) -> int:
    """Prompts of a file, or as many as are reckoned with where it is not there."""
    if Path(prompts.source).exists():
        found = None
        with suppress(ConfigError):
            found = prompts_of(prompts).count()
        if found == 0:
            raise ConfigError(f"{setting} is {prompts.source!r}, which holds no prompts")
        if found is not None:
            return found
    return _reckoned(config.estimate.num_prompts, prompts.source, setting, "num_prompts")


def pairs_to_count(config: RunConfig, path: str, setting: str) -> int:
    """Pairs of a file of JSON lines, or as many as are reckoned with."""
    file = Path(path)
    if file.suffix in (".jsonl", ".ndjson") and file.is_file():
        with file.open("rb") as lines:
            return sum(bool(line.strip()) for line in lines)
    return _reckoned(config.estimate.num_preferences or config.estimate.num_prompts, path, setting, "num_preferences")


def _reckoned(number: int, source: str, setting: str, instead: str) -> int:
    if not number:
        raise ConfigError(f"{setting} is {source!r}, which cannot be counted now; estimate.{instead} can say how many")
    return number
