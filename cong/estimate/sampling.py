"""What sampling takes: memory of networks and caches, steps bound by bandwidth or arithmetic, bytes of records."""

from contextlib import suppress
from dataclasses import dataclass

from cong.config import RunConfig
from cong.config.models import NetworkConfig
from cong.errors import ConfigError
from cong.estimate.accelerators import Machines
from cong.estimate.network_size import NetworkSize, size_like, size_of

_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}

RECORD_BYTES = 700
"""Of a stored sample beside its tokens and texts: keys, parameters, fingerprints, times. Most repeat and compress."""
TOKEN_TEXT_BYTES = 4.0
"""Of English text behind one token."""
_NUMBER_BYTES = 4
"""Of one token id, log-probability or head size in a record."""


@dataclass(frozen=True)
class SamplingWork:
    """How much is to be sampled."""

    num_prompts: int
    num_samples: int = 1
    """Of every prompt."""
    prompt_tokens: float = 200.0
    """Mean."""
    new_tokens: float | None = None
    """Mean of one sample; None = `sampling.max_tokens`, which none exceeds."""
    like: str = ""
    """Public family that networks are like which are not there yet; empty = like the other of a pair."""


@dataclass(frozen=True)
class SamplingEstimate:
    """What it takes, all devices together where nothing else is said."""

    machines: Machines
    num_networks: int
    num_samples: int
    num_new_tokens: float
    num_parameters: int
    """Of all networks; a copy that they share counts once."""
    num_active: int
    """Of them, those that one token meets: all but experts that it is not sent to."""
    weights_bytes: float
    """On every device."""
    read_bytes: float
    """Of weights, by a step: all but experts that none of its samples is expected to meet, if each is as likely."""
    cache_bytes_per_token: float
    """Keys and values of one token under all networks."""
    cache_bytes: float
    """What a device has left for them."""
    num_running: int
    """Samples that one device computes at a time."""
    whole_bytes: float
    """Keys and values of one whole sample under all networks."""
    step_s: float
    """In which every running sample gets a token."""
    tokens_per_s: float
    """New tokens of one device, its time for prompts included."""
    device_hours: float
    stream_bytes: float
    """Before compression; random log-probabilities hardly compress."""
    unstated: tuple[str, ...] = ()
    """Sizes of networks that transformers gives, because no config.json does."""

    @property
    def hours(self) -> float:
        """Of waiting, with the work spread evenly."""
        return self.device_hours / self.machines.num_devices

    @property
    def device_bytes(self) -> float:
        """Of one device, with as many whole samples as it computes at a time."""
        return self.weights_bytes + self.num_running * self.whole_bytes


def networks_of(config: RunConfig) -> list[NetworkConfig]:
    """The networks that sample together."""
    models = config.models
    return [network for network in (models.strong, models.aligned, models.base) if network.source]


def estimate_sampling(config: RunConfig, work: SamplingWork, machines: Machines) -> SamplingEstimate:
    """What sampling takes with one copy of the networks on each device."""
    named = networks_of(config)
    if not named:
        raise ConfigError("models names no network; set models.aligned.source and models.base.source")
    if len(named) != len(config.sampling.weights):
        raise ConfigError(
            f"sampling.weights has {len(config.sampling.weights)} entries, and models names {len(named)} network(s); "
            "give one weight for each"
        )
    sizes = _sizes(config, named, work.like)
    width = _WIDTHS[config.models.dtype]
    copies = {(network.source, network.revision): size for network, size in zip(named, sizes, strict=True)}
    weights = [size.weights for size in copies.values()]
    weights_bytes = float(sum(each.num_parameters for each in weights) * width)
    per_token = float(sum(size.architecture.num_kept_per_token for size in sizes) * width)
    new_tokens = float(config.sampling.max_tokens) if work.new_tokens is None else work.new_tokens
    accelerator = machines.accelerator
    free = accelerator.memory_bytes * machines.usable_memory_share - weights_bytes
    whole = (work.prompt_tokens + new_tokens) * per_token
    if free < whole:
        raise ConfigError(
            f"{accelerator.name} has {accelerator.memory_bytes / 1e9:.0f} GB; the weights take "
            f"{weights_bytes / 1e9:.1f} GB and one sample's cache {whole / 1e9:.2f} GB; take a larger device, "
            "a smaller dtype, or a pair that shares its base"
        )
    num_running = int(min(config.engine.max_running, free // whole))
    context = work.prompt_tokens + new_tokens / 2
    read_bytes = width * sum(each.num_read(num_running) for each in weights)
    step_s = _step_s(sizes, read_bytes + num_running * context * per_token, num_running, machines)
    body = sum(size.weights.num_body for size in sizes)
    prompt_s = 2 * body * work.prompt_tokens / (accelerator.operations_per_s * machines.sampling_operations_share)
    num_samples = work.num_prompts * work.num_samples
    # Samples of one prompt share its keys, so a prompt is computed once.
    device_s = num_samples * new_tokens * step_s / num_running + work.num_prompts * prompt_s
    numbers = (3 + len(sizes)) * new_tokens + work.prompt_tokens
    text = TOKEN_TEXT_BYTES * (work.prompt_tokens + new_tokens)
    return SamplingEstimate(
        machines=machines,
        num_networks=len(sizes),
        num_samples=num_samples,
        num_new_tokens=num_samples * new_tokens,
        num_parameters=sum(each.num_parameters for each in weights),
        num_active=sum(each.num_active for each in weights),
        weights_bytes=weights_bytes,
        read_bytes=read_bytes,
        cache_bytes_per_token=per_token,
        cache_bytes=free,
        num_running=num_running,
        whole_bytes=whole,
        step_s=step_s,
        tokens_per_s=num_samples * new_tokens / device_s,
        device_hours=device_s / 3600,
        stream_bytes=num_samples * (RECORD_BYTES + _NUMBER_BYTES * numbers + text),
        unstated=tuple(dict.fromkeys(each for size in sizes for each in size.unstated)),
    )


def _sizes(config: RunConfig, named: list[NetworkConfig], like: str) -> list[NetworkSize]:
    """The networks' sizes. One that an earlier stage is to make is as large as the one it is made from."""
    otherwise = size_like(like) if like else None
    if otherwise is None and len(named) > 1:
        for network in named:
            with suppress(ConfigError):
                otherwise = size_of(network, config.models)
    return [size_of(network, config.models, otherwise) for network in named]


def _step_s(sizes: list[NetworkSize], moved_bytes: float, num_running: int, on: Machines) -> float:
    """A step reads weights and every key it looks at, and multiplies; the slower of the two decides."""
    operations = 2 * num_running * sum(size.weights.num_body + size.weights.num_head for size in sizes)
    moving_s = moved_bytes / (on.accelerator.bandwidth_bytes_per_s * on.bandwidth_share)
    computing_s = operations / (on.accelerator.operations_per_s * on.sampling_operations_share)
    return max(moving_s, computing_s)
