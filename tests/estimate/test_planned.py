"""What a configuration is taken to work on: counted where it is there, reckoned with where it is not, never guessed."""

from pathlib import Path
from typing import get_args

import pytest

from cong.cli import main
from cong.cli.dry_run import print_estimate
from cong.config import RunConfig, load_config
from cong.config.estimate import Device
from cong.errors import ConfigError, MissingExtra
from cong.estimate.accelerators import ACCELERATORS
from cong.estimate.planned import planned_sampling, planned_training
from cong.report import Table

PAIR = (
    "models.aligned.source=a/Llama-3.2-3B-dpo",
    "models.base.source=Llama-3.2-3B",
    "estimate.accelerator=H100",
    "sampling.max_tokens=2048",
)


def run(*settings: str) -> RunConfig:
    return load_config(RunConfig, [], [*PAIR, *settings])


def test_devices_of_a_configuration_are_those_that_are_known() -> None:
    assert set(get_args(Device)) == {"", *ACCELERATORS}


def test_prompts_that_are_there_are_counted_and_others_reckoned_with(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n{"prompt": "c"}\n')
    there = run(f"sampling_job.prompts.source={file}", "sampling_job.num_samples=4", "estimate.num_prompts=60000")
    assert planned_sampling(there, is_served=True).num_samples == 3 * 4
    assert planned_sampling(there, 2, is_served=True).num_samples == 3 * 2
    away = run("sampling_job.prompts.source=none.jsonl", "estimate.num_prompts=60000")
    assert planned_sampling(away, is_served=True).num_samples == 60_000
    with pytest.raises(ConfigError, match=r"none\.jsonl.*cannot be counted now; estimate\.num_prompts can say"):
        planned_sampling(run("sampling_job.prompts.source=none.jsonl"), is_served=True)


def test_a_file_without_prompts_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n")
    with pytest.raises(ConfigError, match=r"prompts\.jsonl', which holds no prompts"):
        planned_sampling(run(f"sampling_job.prompts.source={file}", "estimate.num_prompts=60000"), is_served=True)
    command = ["sample", "--prompts", str(file), "--dry-run", *(f"--set={setting}" for setting in PAIR)]
    assert main(command) == 0
    assert "# What it takes is not known" in capsys.readouterr().out
    assert main([*command, "--num-samples", "-3"]) == 2
    assert "--num-samples is -3; give at least 1" in capsys.readouterr().err


def test_a_service_has_its_samplers_and_a_process_one_device() -> None:
    config = run("estimate.num_prompts=100", "estimate.sampler=L40S", "estimate.num_samplers=8")
    served, alone = (planned_sampling(config, is_served=is_served) for is_served in (True, False))
    assert (served.machines.accelerator.name, served.machines.num_devices) == ("L40S", 8)
    assert (alone.machines.accelerator.name, alone.machines.num_devices) == ("H100", 1)


def test_the_mean_of_a_sample_is_what_is_said_and_no_more_than_is_allowed() -> None:
    said = "estimate.response_tokens=400"
    for most, mean in ((2048, 400), (300, 300)):
        config = run("estimate.num_prompts=10", said, f"sampling.max_tokens={most}")
        assert planned_sampling(config, is_served=True).num_new_tokens == 10 * mean
    config = run("estimate.num_prompts=10", "sampling.max_tokens=77")
    assert planned_sampling(config, is_served=True).num_new_tokens == 10 * 77


def test_memory_of_a_sampler_by_hand() -> None:
    config = run("estimate.num_prompts=10", "estimate.response_tokens=400", "engine.max_running=64")
    estimate = planned_sampling(config, is_served=True)
    # two networks of 3,212,749,824 weights; 64 samples of 200 + 400 tokens with 57,344 numbers each; 2 bytes a number
    assert estimate.device_bytes == 2 * 2 * 3_212_749_824 + 64 * 600 * 2 * 2 * 57_344


def test_training_steps_by_hand(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}\n" * 130)
    config = run(
        "train.network.source=Llama-3.2-3B",
        f"train.data={{kind: pairs, path: {pairs}}}",
        "train.objective.name=dpo",
        "train.batches={batch_size: 64, max_example_tokens: 500}",
        "estimate.response_tokens=400",
    )
    estimate = planned_training(config)
    assert estimate.num_steps == 3
    # 200 tokens of prompt leave room for 300 of the 400
    assert estimate.num_tokens == 2 * 130 * 500
    away = planned_training(run("train.network.source=Llama-3.2-3B", "estimate.num_prompts=640"))
    assert away.num_steps == 10


def test_a_dry_run_says_which_package_an_estimate_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    def make() -> Table:
        raise MissingExtra("lora", "peft")

    print_estimate(make)
    assert capsys.readouterr().out.startswith("# What it takes is not known: this needs the package 'peft'")


def test_without_a_device_it_is_said_what_to_set() -> None:
    config = load_config(RunConfig, [], [*PAIR[:2], "estimate.num_prompts=10"])
    with pytest.raises(ConfigError, match=r"estimate\.accelerator names no device; with one, such as H100"):
        planned_sampling(config, is_served=True)
