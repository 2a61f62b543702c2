"""Bytes per rank, by stage and precision, against the numbers of the ZeRO paper."""

import pytest

from cong.config.train import DeepSpeedSettings, TrainConfig
from cong.train.zero_memory import ModelMemory, model_memory

BILLION = 10**9


def memory_of(stage: int, world_size: int, num_trained: int = BILLION) -> ModelMemory:
    train = TrainConfig(precision="bfloat16", deepspeed=DeepSpeedSettings(zero_stage=stage))
    return model_memory(train, num_trained, 0, world_size)


def memory_per_parameter(stage: int, world_size: int) -> float:
    memory = memory_of(stage, world_size)
    return (memory.device - memory.bucket) / BILLION


@pytest.mark.parametrize(("stage", "expected"), [(0, 16.0), (1, 2 + 4 + 12 / 64), (2, 2 + 16 / 64), (3, 18 / 64)])
def test_a_mixed_precision_parameter_takes_what_the_stage_leaves(stage: int, expected: float) -> None:
    assert memory_per_parameter(stage, 64) == pytest.approx(expected)


def test_the_bucket_of_stage_3_is_a_sixteenth_of_the_network_up_to_a_bound() -> None:
    assert memory_of(3, 64).bucket == 2 * BILLION // 16
    assert memory_of(3, 64, num_trained=100 * BILLION).bucket == 2 * 200_000_000
    assert [memory_of(stage, 64).bucket for stage in (0, 1, 2)] == [0, 0, 0]


def test_one_rank_divides_nothing() -> None:
    assert len({memory_per_parameter(stage, 1) for stage in (1, 2, 3)}) == 1


def test_frozen_weights_have_neither_gradients_nor_moments() -> None:
    train = TrainConfig(precision="bfloat16", deepspeed=DeepSpeedSettings(zero_stage=2))
    memory = model_memory(train, 1_000, BILLION, 4)
    assert memory.parameters == 2 * (BILLION + 1_000)
    assert memory.gradients + memory.optimizer == 4_000


def test_offloading_moves_bytes_and_loses_none() -> None:
    def memory(**offload: bool) -> tuple[int, int]:
        train = TrainConfig(deepspeed=DeepSpeedSettings(zero_stage=3, **offload))
        found = model_memory(train, BILLION, 0, 8)
        return found.device, found.host

    whole, _ = memory()
    for offload in ({"offload_optimizer": True}, {"offload_optimizer": True, "offload_parameters": True}):
        device, host = memory(**offload)
        assert device + host == whole
        assert host > 0
