"""Settings of a run become DeepSpeed's dictionary; a DeepSpeed file of the user's own may add and not contradict."""

import json
from pathlib import Path
from typing import Any

import pytest

from cong.config.train import DeepSpeedSettings, OptimizerSettings, TrainConfig
from cong.errors import ConfigError
from cong.train.zero import MAX_BUCKET_ELEMENTS, deepspeed_config, needed_extensions

NUM_PARAMETERS = 25_000


def settings(precision: str = "float32", **deepspeed: Any) -> TrainConfig:
    return TrainConfig(
        precision=precision,
        optimizer=OptimizerSettings(learning_rate=3e-4, beta2=0.95, weight_decay=0.1, max_grad_norm=0.5),
        deepspeed=DeepSpeedSettings(**deepspeed),
    )


def with_file(path: Path, content: object, **deepspeed: Any) -> TrainConfig:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return settings(config_file=path, **deepspeed)


@pytest.mark.parametrize("stage", range(4))
def test_every_setting_of_the_run_reaches_deepspeed(stage: int) -> None:
    config = deepspeed_config(settings("bfloat16", zero_stage=stage), NUM_PARAMETERS)
    assert config["zero_optimization"]["stage"] == stage
    assert config["bf16"] == {"enabled": True}
    assert config["gradient_clipping"] == 0.5
    assert config["optimizer"]["params"] == {
        "lr": 3e-4,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.1,
        "torch_adam": True,
    }


def test_deepspeed_is_never_asked_to_divide_by_micro_batches() -> None:
    assert deepspeed_config(settings(), NUM_PARAMETERS)["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_gradients_are_added_up_in_float32(stage: int) -> None:
    config = deepspeed_config(settings("bfloat16", zero_stage=stage), NUM_PARAMETERS)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("num_parameters", [1, 25_001, 8_000_000_000])
def test_buffers_fit_the_network(stage: int, num_parameters: int) -> None:
    zero = deepspeed_config(settings(zero_stage=stage), num_parameters)["zero_optimization"]
    bucket = zero["reduce_bucket_size"]
    assert bucket % 2 == 0
    # DeepSpeed keeps that of stage 3 for the whole run.
    share = max(1, num_parameters // 16) if stage == 3 else num_parameters
    assert min(share, MAX_BUCKET_ELEMENTS) <= bucket <= min(share + 1, MAX_BUCKET_ELEMENTS)


def test_stage_3_divides_small_networks_too() -> None:
    zero = deepspeed_config(settings(zero_stage=3), NUM_PARAMETERS)["zero_optimization"]
    assert zero["stage3_param_persistence_threshold"] == 25


def test_offloading_reaches_deepspeed() -> None:
    config = deepspeed_config(settings(zero_stage=3, offload_optimizer=True, offload_parameters=True), NUM_PARAMETERS)
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["zero_optimization"]["offload_param"] == {"device": "cpu"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"zero_stage": 0, "offload_optimizer": True}, "zero_stage is 0; it needs stage 1, 2 or 3"),
        ({"zero_stage": 2, "offload_parameters": True}, "zero_stage is 2; it needs stage 3"),
        ({"zero_stage": 2, "has_compiled_adam": True}, "offload_optimizer is not"),
    ],
)
def test_what_no_stage_can_do_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deepspeed_config(settings(**asked), NUM_PARAMETERS)


def test_only_the_compiled_adam_needs_a_compiler() -> None:
    assert needed_extensions(settings(zero_stage=3, offload_optimizer=True)) == ()
    assert needed_extensions(settings(offload_optimizer=True, has_compiled_adam=True)) == ("cpu_adam",)


def test_the_users_file_adds_what_is_not_named_and_moves_what_is_only_suggested(tmp_path: Path) -> None:
    theirs = {
        "zero_optimization": {"stage": "auto", "reduce_bucket_size": 1000, "overlap_comm": True},
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False, "loss_scale": 0},
        "gradient_clipping": 0.5,
        "optimizer": {"type": "adamw", "params": {"lr": "auto", "weight_decay": 0.1, "fused": False}},
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "comms_logger": {"enabled": True},
    }
    config = deepspeed_config(with_file(tmp_path / "ds.json", theirs), NUM_PARAMETERS)
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["reduce_bucket_size"], zero["overlap_comm"]) == (2, 1000, True)
    assert config["comms_logger"] == {"enabled": True}
    assert config["optimizer"]["params"]["lr"] == 3e-4
    assert config["optimizer"]["params"]["fused"] is False
    assert "auto" not in json.dumps(config)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is 3, and the configuration says 2"),
        ({"zero_optimization": True}, "zero_optimization is true, and the configuration says"),
        ({"gradient_clipping": 1.0}, "gradient_clipping is 1.0, and the configuration says 0.5"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is true, and the configuration says false"),
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type is "Lamb", and the configuration says "AdamW"'),
        ({"optimizer": {"params": {"betas": [0.9, 0.999]}}}, r"optimizer.params.betas is \[0.9, 0.999\]"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4, and the configuration says 1"),
        ({"train_batch_size": 64}, "train_batch_size is 64: the number of micro-batches differs"),
        ({"scheduler": {"type": "WarmupLR"}}, 'scheduler.type is "WarmupLR": the training loop sets'),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true: precision is float32 or bfloat16"),
        ({"checkpoint": {"load_universal": True}}, "checkpoint.load_universal is true: another number of ranks"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, 'offload_optimizer.device is "nvme"'),
        ({"comms_logger": {"enabled": "auto"}}, 'comms_logger.enabled is "auto", and there is no value'),
    ],
)
def test_a_contradiction_is_refused_with_its_name_and_both_values(
    theirs: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        deepspeed_config(with_file(tmp_path / "ds.json", theirs), NUM_PARAMETERS)
    assert "ds.json" in str(raised.value)


def test_all_contradictions_are_told_at_once(tmp_path: Path) -> None:
    theirs = {"gradient_clipping": 2.0, "zero_optimization": {"stage": 1}, "amp": {"enabled": True}}
    with pytest.raises(ConfigError) as raised:
        deepspeed_config(with_file(tmp_path / "ds.json", theirs), NUM_PARAMETERS)
    assert all(name in str(raised.value) for name in ("gradient_clipping", "zero_optimization.stage", "amp.enabled"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[1]", "must hold an object"), ('{"a": 1, "a": 2}', "a given twice")],
)
def test_a_file_that_is_no_configuration_is_refused(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        deepspeed_config(with_file(tmp_path / "ds.json", content), NUM_PARAMETERS)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read"):
        deepspeed_config(settings(config_file=Path("nowhere.json")), NUM_PARAMETERS)
