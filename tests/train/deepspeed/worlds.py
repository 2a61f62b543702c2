"""A tiny network, a few steps of unequal work for two ranks, and the same training written out for one process."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from cong.config.train import DeepSpeedSettings, OptimizerSettings, TrainConfig
from cong.objectives import objective, policy_scores
from cong.train.backend import Backend
from cong.train.data.batch import Example, MicroBatch, make_batch
from cong.train.deepspeed_backend import DeepSpeedBackend

VOCAB = 32
SIZES = [
    # For each step and rank the examples of each micro-batch: unequal, some empty, one rank without any.
    [[3, 0, 2], [1, 4, 0]],
    [[2, 1], [0, 0]],
    [[0], [3]],
    [[1, 1, 1], [2, 0, 5]],
]
LEARNING_RATES = [1e-3, 3e-3, 2e-3, 1e-3]
MAX_GRAD_NORM = 1.7
"""Between the norms that occur, so that some steps are clipped and some are not."""

Step = list[list[list[Example]]]


@dataclass
class Trained:
    """What a run leaves for comparison."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    num_bytes: dict[str, int] = field(default_factory=dict)


def tiny_network(*, is_tied: bool = True) -> nn.Module:
    """The same weights every time."""
    torch.manual_seed(0)
    network: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=is_tied,
        )
    )
    return network


def adapted_network() -> nn.Module:
    """The tiny network with a LoRA adapter, which alone is trained."""
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights="gaussian")
    base: Any = tiny_network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a name that transformers is about to drop
        network: nn.Module = get_peft_model(base, adapter)
    return network


def steps() -> list[Step]:
    """Examples for every step, rank and micro-batch."""
    rng = np.random.default_rng(1)

    def example() -> Example:
        prompt, response = (rng.integers(3, VOCAB, rng.integers(2, 7)).astype(np.int32) for _ in range(2))
        return Example("k", "p", prompt, (response,))

    return [[[[example() for _ in range(size)] for size in rank] for rank in step] for step in SIZES]


def num_units_of(step: Step) -> int:
    """Response tokens of a step over all ranks and micro-batches."""
    return sum(len(example.responses[0]) for rank in step for batch in rank for example in batch)


def train_plainly(network: nn.Module, settings: TrainConfig) -> Trained:
    """One process, one example at a time, in float32: meant to be obviously right."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    adam = settings.optimizer
    optimizer = torch.optim.AdamW(
        trained, betas=(adam.beta1, adam.beta2), eps=adam.epsilon, weight_decay=adam.weight_decay
    )
    done = Trained()
    for step, learning_rate in zip(steps(), LEARNING_RATES, strict=True):
        loss_sum = torch.zeros(())
        for example in (example for rank in step for batch in rank for example in batch):
            ids = torch.tensor([*example.prompt_ids, *example.responses[0]], dtype=torch.int64)
            logits_TV = network(input_ids=ids[None]).logits[0]
            first = len(example.prompt_ids)
            loss_sum = loss_sum + nn.functional.cross_entropy(logits_TV[first - 1 : -1], ids[first:], reduction="sum")
        loss = loss_sum / num_units_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(trained, adam.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()
        done.losses.append(loss.item())
        done.norms.append(norm.item())
    done.weights = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    return done


def settings(stage: int, precision: str = "float32", *, weight_decay: float = 0.1, **deepspeed: Any) -> TrainConfig:
    """A run's settings with everything that the optimiser can do switched on."""
    return TrainConfig(
        precision=precision,
        backend="deepspeed",
        optimizer=OptimizerSettings(weight_decay=weight_decay, max_grad_norm=MAX_GRAD_NORM),
        deepspeed=DeepSpeedSettings(zero_stage=stage, timeout_s=60.0, **deepspeed),
    )


def batches_of(step: Step, rank: int, world_size: int, *, is_packed: bool = False) -> list[MicroBatch]:
    """What one rank reads; a lone one reads everybody's."""
    mine: Sequence[list[Example]] = step[rank] if world_size > 1 else [batch for part in step for batch in part]
    return [make_batch(batch, is_packed=is_packed) for batch in mine]


def train(backend: Backend, first: int = 0, last: int = len(SIZES), *, is_packed: bool = False, done: Trained) -> None:
    """Some steps with the backend, in the way of the training loop."""
    sft = objective("sft")
    for step, learning_rate in list(zip(steps(), LEARNING_RATES, strict=True))[first:last]:
        num_units = num_units_of(step)
        batches = batches_of(step, backend.rank, backend.world_size, is_packed=is_packed)
        loss_sum = torch.zeros((), dtype=torch.float64)
        for number, batch in enumerate(batches):
            scores = policy_scores(backend.logits(batch), batch.responses, sft.needs)
            share = sft(scores, batch.responses, progress=0.0)
            loss = share.loss(num_units, backend.num_averaged(len(batches)))
            backend.backward(loss, is_last=number == len(batches) - 1)
            loss_sum += share.loss_sum.detach().double()
        done.losses.append(backend.total(loss_sum).item() / num_units)
        done.norms.append(backend.step(learning_rate))
    done.weights = dict(backend.weights())


def measured_bytes(backend: DeepSpeedBackend) -> dict[str, int]:
    """Bytes that this rank holds between two steps, counted over the tensors themselves.

    Gradients and their bucket are those that stage 3 keeps; under other stages they come and go.
    """
    engine: Any = backend._engine
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in engine.module.parameters()]
    own = {id(parameter) for parameter in engine.module.parameters()}
    groups = engine.basic_optimizer.param_groups
    # Under stage 3 the optimiser is shown one group at a time.
    copies = getattr(engine.optimizer, "fp32_partitioned_groups_flat", [p for group in groups for p in group["params"]])
    copies = [copy for copy in copies if id(copy) not in own]
    moments = [
        value
        for state in engine.basic_optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.numel() > 1
    ]
    is_stage_3 = hasattr(engine.optimizer, "grad_partitions_flat_buffer")
    gradients = [engine.optimizer.grad_partitions_flat_buffer] if is_stage_3 else []
    buckets = [bucket.buffer for bucket in engine.optimizer.ipg_buckets.values()] if is_stage_3 else []
    return {
        name: sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        for name, tensors in {
            "parameters": held,
            "optimizer": [*copies, *moments],
            "gradients": gradients,
            "bucket": buckets,
        }.items()
    }
