"""What training takes: arithmetic by counted weights, memory of a device by ZeRO stage, disk of checkpoints."""

import math
from dataclasses import dataclass

from cong.config import RunConfig
from cong.config.train import TrainConfig
from cong.errors import ConfigError
from cong.estimate.accelerators import Machines
from cong.estimate.network_size import NetworkSize, size_like, size_of
from cong.objectives import objective
from cong.train.zero_memory import model_memory

_FLOAT32, _BFLOAT16 = 4, 2
_PASS_OPERATIONS = 2
"""A multiplication and an addition for every weight and token."""


@dataclass(frozen=True)
class TrainingWork:
    """How much is to be trained on."""

    num_examples: int
    """Samples, or pairs."""
    prompt_tokens: float = 200.0
    """Mean."""
    response_tokens: float = 400.0
    """Mean."""
    like: str = ""
    """Public family that the network is like, where an earlier stage is still to make it."""


@dataclass(frozen=True)
class TrainingEstimate:
    """What it takes."""

    machines: Machines
    num_parameters: int
    num_active: int
    """Of them, those that one token meets: all but experts that it is not sent to."""
    num_trained: int
    num_steps: int
    num_tokens: float
    """Over all epochs."""
    operations: float
    device_hours: float
    weights_bytes: float
    """Of one device: weights, gradients and the optimiser's state that stay on it."""
    host_bytes: float
    """Of the host, for every device: what is offloaded."""
    activations_bytes: float
    """Of one device, for the largest micro-batch, logits included."""
    checkpoint_bytes: float
    """Of one checkpoint on disk, all processes together."""
    disk_bytes: float
    """Of the checkpoints that are kept, one that is being written, and the finished network."""
    unstated: tuple[str, ...] = ()
    """Sizes of the network that transformers gives, because its config.json does not."""

    @property
    def hours(self) -> float:
        """Of waiting."""
        return self.device_hours / self.machines.num_devices

    @property
    def device_bytes(self) -> float:
        """Of one device at its fullest."""
        return self.weights_bytes + self.activations_bytes

    @property
    def does_fit(self) -> bool:
        """Whether a device has room for it."""
        on = self.machines
        return self.device_bytes <= on.accelerator.memory_bytes * on.usable_memory_share


def estimate_training(config: RunConfig, work: TrainingWork, machines: Machines) -> TrainingEstimate:
    """What the run of `train` takes on these devices."""
    train = config.train
    if train.backend == "torch" and machines.num_devices > 1:
        raise ConfigError(
            f"train.backend is 'torch', which uses 1 device, and {machines.num_devices} are given; take deepspeed"
        )
    otherwise = size_like(work.like) if work.like else None
    trained = train.network if train.network.source else config.models.strong
    if not trained.source and otherwise is None:
        raise ConfigError("there is nothing to train: give train.network.source or models.strong.source")
    size = size_of(trained, config.models, otherwise)
    num_parameters = size.weights.num_parameters
    num_trained = num_parameters if train.lora is None else size.num_lora(train.lora)
    is_paired = train.data.kind != "stream"
    num_sequences = work.num_examples * (2 if is_paired else 1)
    num_tokens = num_sequences * (work.prompt_tokens + work.response_tokens)
    num_responses = num_sequences * work.response_tokens
    length = work.prompt_tokens + work.response_tokens
    one_pass = _pass_operations(size, num_tokens, num_responses, length)
    method = objective(train.objective.name, **train.objective.parameters)
    # A weak pair's log-probs come with the samples; the reference is asked once and its answers are kept.
    num_frozen = sum(network == "reference" for network in method.needs.frozen)
    steps_per_epoch = math.ceil(work.num_examples / train.batches.batch_size)
    num_steps = min(train.num_epochs * steps_per_epoch, train.max_steps or train.num_epochs * steps_per_epoch)
    epochs = num_steps / steps_per_epoch if steps_per_epoch else 0.0
    operations = (epochs * _num_passes(train) + num_frozen) * one_pass
    on = machines.accelerator
    weights_bytes, host_bytes = _model_bytes(train, num_parameters, num_trained, machines.num_devices)
    checkpoint_bytes = _checkpoint_bytes(train, num_trained)
    exported = num_parameters * _BFLOAT16
    return TrainingEstimate(
        machines=machines,
        num_parameters=num_parameters,
        num_active=size.weights.num_active,
        num_trained=num_trained,
        num_steps=num_steps,
        num_tokens=epochs * num_tokens,
        operations=operations,
        device_hours=operations / (on.operations_per_s * machines.training_operations_share) / 3600,
        weights_bytes=weights_bytes,
        host_bytes=host_bytes,
        activations_bytes=_activation_bytes(train, size),
        checkpoint_bytes=checkpoint_bytes,
        disk_bytes=(train.checkpoints.num_kept + 1) * checkpoint_bytes + exported,
        unstated=size.unstated,
    )


def _pass_operations(size: NetworkSize, num_tokens: float, num_responses: float, length: float) -> float:
    """One forward pass; the head is computed at responses only, and attention looks at half the sequence on average."""
    per_token = size.weights.num_body + size.num_attended * length / 2
    return _PASS_OPERATIONS * (num_tokens * per_token + num_responses * size.weights.num_head)


def _num_passes(train: TrainConfig) -> int:
    """Forward, gradients of activations, gradients of weights; an adapter's base has none of its own."""
    return 2 + (train.lora is None) + train.has_activation_checkpointing


def _model_bytes(train: TrainConfig, num_parameters: int, num_trained: int, num_devices: int) -> tuple[float, float]:
    """Of one device, and of its share of the host."""
    if train.backend == "torch":
        # Weights, gradients and two moments in float32, and what the network computes with where that is rounded.
        is_bfloat16 = train.precision == "bfloat16"
        per_trained = 4 * _FLOAT32 + is_bfloat16 * _BFLOAT16
        frozen = 0 if train.lora is None else num_parameters
        return float(per_trained * num_trained + (_BFLOAT16 if is_bfloat16 else _FLOAT32) * frozen), 0.0
    frozen = num_parameters - num_trained if train.lora is None else num_parameters
    memory = model_memory(train, num_trained, frozen, num_devices)
    return float(memory.device), float(memory.host)


def _checkpoint_bytes(train: TrainConfig, num_trained: int) -> float:
    """Weights that are trained, and the optimiser's state."""
    if train.backend == "torch":
        return float(_FLOAT32 * 3 * num_trained)
    width = _BFLOAT16 if train.precision == "bfloat16" else _FLOAT32
    return float(width * num_trained + model_memory(train, num_trained, 0, 1).optimizer)


def _activation_bytes(train: TrainConfig, size: NetworkSize) -> float:
    """What a micro-batch keeps for its backward pass. With checkpointing only layers' inputs, and one layer whole."""
    tokens = max(train.batches.max_tokens_per_micro_batch, train.batches.max_example_tokens)
    width = _BFLOAT16 if train.precision == "bfloat16" else _FLOAT32
    kept = float(size.num_activations)
    if train.has_activation_checkpointing:
        num_layers = size.architecture.num_layers
        kept = num_layers * size.hidden + kept / num_layers
    # Logits once as they come and once as gradient.
    logits = 2 * size.architecture.vocab_width
    return tokens * width * (kept + logits)
