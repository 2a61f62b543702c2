"""How many bytes of parameters, gradients and optimiser state each rank holds, by ZeRO stage and precision.

Arithmetic only: counts what stays between two micro-batches, of communication buffers only those that do, and no
activations.
"""

from dataclasses import dataclass

from cong.config.train import TrainConfig
from cong.train.zero import reduce_bucket_elements

_FLOAT32, _BFLOAT16 = 4, 2
_MOMENTS = 2
"""Adam keeps two numbers per trained parameter."""


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of one rank."""

    parameters: int
    gradients: int
    """Under stage 3 they stay between two optimiser steps too."""
    optimizer: int
    """Adam's moments, and the float32 copies of the weights where there are any."""
    bucket: int
    """Where stage 3 collects whole gradients before it sends them: allocated once, for the whole run."""
    is_parameters_on_host: bool
    is_optimizer_on_host: bool

    @property
    def device(self) -> int:
        """Bytes that stay on the device."""
        on_device = self.gradients + self.bucket
        on_device += 0 if self.is_parameters_on_host else self.parameters
        return on_device + (0 if self.is_optimizer_on_host else self.optimizer)

    @property
    def host(self) -> int:
        """Bytes that offloading moves to the host."""
        moved = self.parameters if self.is_parameters_on_host else 0
        return moved + (self.optimizer if self.is_optimizer_on_host else 0)


def model_memory(settings: TrainConfig, num_trained: int, num_frozen: int, world_size: int) -> ModelMemory:
    """What one of `world_size` ranks holds; tensors too small to be divided under stage 3 are not told apart."""
    stage, is_bfloat16 = settings.deepspeed.zero_stage, settings.precision == "bfloat16"
    width = _BFLOAT16 if is_bfloat16 else _FLOAT32
    parameters = (num_trained + num_frozen) * width
    # DeepSpeed adds bfloat16 gradients up in float32 from stage 1 on; stage 0 keeps them as they come.
    gradients = num_trained * (_BFLOAT16 if is_bfloat16 and stage == 0 else _FLOAT32)
    # Every stage but the plain one keeps float32 copies, also of weights that are float32 already.
    has_copies = is_bfloat16 or stage > 0
    optimizer = num_trained * _FLOAT32 * (_MOMENTS + has_copies)
    return ModelMemory(
        parameters=_divided(parameters, world_size if stage == 3 else 1),
        gradients=_divided(gradients, world_size if stage >= 2 else 1),
        optimizer=_divided(optimizer, world_size if stage >= 1 else 1),
        bucket=width * reduce_bucket_elements(stage, num_trained + num_frozen) if stage == 3 else 0,
        is_parameters_on_host=settings.deepspeed.offload_parameters,
        is_optimizer_on_host=settings.deepspeed.offload_optimizer,
    )


def _divided(num_bytes: int, num_parts: int) -> int:
    return -(-num_bytes // num_parts)
