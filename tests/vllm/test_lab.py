"""The lab's aligned weak pair under both back ends: the same world, the same gold reward."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from cong.config import EngineConfig, LabConfig, ModelsConfig, NetworkConfig
from cong.config.lab import EvaluationSettings
from cong.engine import open_engine
from cong.lab.bases import SHIPPED
from cong.lab.networks import load_network, save_network
from cong.lab.stages import align, contrastive_parameters, held_out_prompts
from cong.lab.world import gold_reward
from cong.schemas import Prompt, SampleRequest
from tests.vllm.conftest import CONFIG, VllmWorld

NUM_PROMPTS = 400


@pytest.mark.slow
def test_samples_of_both_back_ends_have_equal_gold_reward(
    world: VllmWorld, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    config = LabConfig(evaluation=EvaluationSettings(num_prompts=NUM_PROMPTS))
    base = load_network(SHIPPED / "weak_base")
    save_network(align(base, config).network, tmp_path / "aligned")
    models = ModelsConfig(
        aligned=NetworkConfig(source=str(tmp_path / "aligned")),
        base=NetworkConfig(source=str(SHIPPED / "weak_base")),
        dtype="float32",
    )
    parameters = contrastive_parameters(config)
    requests = [
        SampleRequest(prompt=Prompt(text=text), parameters=parameters.model_copy(update={"seed": number}))
        for number, text in enumerate(held_out_prompts(config))
    ]
    rewards, texts = [], []
    for settings in (
        EngineConfig(kv_memory_bytes=2**24, max_running=64),
        CONFIG.model_copy(update={"max_running": 64}),
    ):
        records = {record.key: record for record in world.keep(open_engine(models, settings)).generate(requests)}
        rewards.append({key: gold_reward(r.prompt.text or "", r.completion_text) for key, r in records.items()})
        texts.append({key: record.completion_text for key, record in records.items()})
    ours, theirs = rewards
    assert ours.keys() == theirs.keys()
    mean, other = statistics.fmean(ours.values()), statistics.fmean(theirs.values())
    error = math.hypot(*(statistics.stdev(each.values()) / math.sqrt(len(each)) for each in rewards))
    share_equal = statistics.fmean(texts[0][key] == texts[1][key] for key in ours)
    record_property("gold_reward_cong", round(mean, 4))
    record_property("gold_reward_vllm", round(other, 4))
    record_property("gold_reward_standard_error", round(error, 4))
    record_property("share_of_equal_samples", share_equal)
    assert mean > 0.5, "contrast is at work"
    assert abs(mean - other) < 2 * error
    assert share_equal > 0.95, "the draws are the same"
