"""What sampling takes: numbers by hand, laws, and the records' bytes against real files."""

from pathlib import Path

import pytest

from cong.cli import main
from cong.config import RunConfig, load_config
from cong.config.stream import WriteSettings
from cong.errors import ConfigError
from cong.estimate import SamplingWork, estimate_sampling, machines, sampling_table
from cong.estimate.accelerators import ACCELERATORS, Machines
from cong.estimate.tables import size_text
from cong.lab.records import synthetic_record
from cong.stream import StreamWriter
from cong.stream.filesystem import LocalFileSystem
from cong.stream.store import LocalStore

WHOLE = Machines(ACCELERATORS["H200"], 1, 1.0, 1.0, 1.0, 1.0)
"""A device that reaches all that its maker states."""


def pair(name: str = "Llama-3.2-3B", **settings: object) -> RunConfig:
    content = [f"{key}={value}" for key, value in settings.items()]
    sources = [f"models.aligned.source=a/{name}-dpo", f"models.base.source={name}"]
    return load_config(RunConfig, [], [*sources, *(line.replace("__", ".") for line in content)])


def test_a_step_of_a_pair_by_hand() -> None:
    # 64 samples that look at 1,024 tokens each; 2 bytes a weight, and 57,344 numbers of 2 bytes a token and network
    config = pair(engine__max_running=64)
    estimate = estimate_sampling(config, SamplingWork(1, 64, prompt_tokens=1000, new_tokens=48), WHOLE)
    weights, cache = 2 * 2 * 3_212_749_824, 2 * 2 * 57_344
    assert estimate.weights_bytes == estimate.read_bytes == weights == 12_850_999_296
    assert estimate.num_parameters == estimate.num_active == 2 * 3_212_749_824
    assert estimate.cache_bytes_per_token == cache == 229_376
    assert estimate.num_running == 64
    assert estimate.step_s == pytest.approx((12_850_999_296 + 64 * 1024 * 229_376) / 4.8e12)
    assert 64 / estimate.step_s == pytest.approx(11_017, abs=1)


def test_the_time_of_a_run_by_hand() -> None:
    config = pair(engine__max_running=64)
    estimate = estimate_sampling(config, SamplingWork(640, 2, prompt_tokens=1000, new_tokens=48), WHOLE)
    # 1,280 samples, 64 at a time, 48 steps each; each prompt once: 2 operations for every weight but embeddings
    prompts_s = 640 * 2 * 2 * 2_818_572_288 * 1000 / 989e12
    assert estimate.device_hours * 3600 == pytest.approx(1280 / 64 * 48 * estimate.step_s + prompts_s)
    assert estimate.num_new_tokens == 1280 * 48
    assert estimate.tokens_per_s == pytest.approx(1280 * 48 / (estimate.device_hours * 3600))


@pytest.mark.parametrize("num_running", [1, 16, 256])
def test_a_step_reads_the_experts_that_its_samples_are_expected_to_meet(num_running: int) -> None:
    config = pair("Qwen3-30B-A3B", engine__max_running=num_running)
    work = SamplingWork(1, num_running, prompt_tokens=96, new_tokens=8)
    estimate = estimate_sampling(config, work, Machines(ACCELERATORS["B200"], 1, 1.0, 1.0, 1.0, 1.0))
    assert estimate.num_running == num_running
    assert (estimate.num_parameters, estimate.num_active) == (2 * 30_532_122_624, 2 * 3_353_032_704)
    assert estimate.weights_bytes == 2 * 2 * 30_532_122_624
    # Of 128 experts of 3 times 2,048 by 768 weights in each of 48 layers, a sample leaves 120 out.
    unmet = 48 * 128 * (120 / 128) ** num_running * 3 * 2048 * 768
    assert estimate.read_bytes == pytest.approx(2 * 2 * (30_532_122_624 - unmet))
    cache = num_running * 100 * 2 * 2 * 2 * 48 * 4 * 128
    assert estimate.step_s == pytest.approx((estimate.read_bytes + cache) / 8e12)
    rows = {str(row[0]): row[1] for row in sampling_table(estimate).rows}
    assert rows["weights that a token meets"] == "6,706,065,408"
    assert rows["weights that a step reads"] == size_text(estimate.read_bytes)


def test_large_batches_of_a_mixture_are_bound_by_the_experts_that_are_met() -> None:
    work = SamplingWork(1, prompt_tokens=10, new_tokens=10)
    config = pair("Mixtral-8x7B", engine__max_running=100_000, sampling__max_tokens=10)
    estimate = estimate_sampling(config, work, Machines(ACCELERATORS["H200"], 1, 1.0, 1.0, 1.0, 2.0))
    body_and_head = 2 * (12_617_515_008 + 32_000 * 4096)
    assert estimate.step_s == pytest.approx(2 * estimate.num_running * body_and_head / 989e12)


def test_large_batches_are_bound_by_arithmetic() -> None:
    work = SamplingWork(1, prompt_tokens=10, new_tokens=10)
    estimate = estimate_sampling(pair(engine__max_running=100_000, sampling__max_tokens=10), work, WHOLE)
    body_and_head = 2 * (2_818_572_288 + 128_256 * 3072)
    assert estimate.step_s == pytest.approx(2 * estimate.num_running * body_and_head / 989e12)


def test_memory_bounds_how_many_run() -> None:
    work = SamplingWork(1, prompt_tokens=1000, new_tokens=1000)
    estimate = estimate_sampling(pair(engine__max_running=100_000), work, WHOLE)
    assert estimate.num_running == int((141e9 - 12_850_999_296) // (2000 * 229_376))


def test_devices_share_the_time_and_not_the_work() -> None:
    work = SamplingWork(1000, new_tokens=100)
    one, eight = (estimate_sampling(pair(), work, machines("H100", number)) for number in (1, 8))
    assert eight.device_hours == one.device_hours
    assert eight.hours == pytest.approx(one.hours / 8)


def test_twice_the_samples_take_twice_the_time_of_drawing() -> None:
    one, two = (estimate_sampling(pair(), SamplingWork(100, number, 0.0, 100.0), WHOLE) for number in (1, 2))
    assert two.device_hours == pytest.approx(2 * one.device_hours)
    assert two.stream_bytes == pytest.approx(2 * one.stream_bytes)


def test_a_pair_that_shares_its_base_keeps_one_copy() -> None:
    separate = estimate_sampling(pair(), SamplingWork(1), WHOLE)
    shared = load_config(
        RunConfig,
        [],
        ["models.aligned={source: Llama-3.2-3B, adapter: some/adapter}", "models.base.source=Llama-3.2-3B"],
    )
    estimate = estimate_sampling(shared, SamplingWork(1), WHOLE)
    assert estimate.weights_bytes == separate.weights_bytes / 2
    assert estimate.cache_bytes_per_token == separate.cache_bytes_per_token


def test_without_a_mean_the_longest_answer_counts() -> None:
    estimate = estimate_sampling(pair(sampling__max_tokens=77), SamplingWork(10, 3), WHOLE)
    assert estimate.num_new_tokens == 10 * 3 * 77


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"L4 has 24 GB; the weights take 30\.5 GB"):
        estimate_sampling(pair("Qwen2.5-7B"), SamplingWork(1), machines("L4"))


@pytest.mark.parametrize(
    ("what", "remedy"),
    [
        ("sampling", "models names no network; set models.aligned.source and models.base.source"),
        ("training", "there is nothing to train: give train.network.source or models.strong.source"),
    ],
)
def test_without_a_network_it_is_said_what_to_set(what: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", what, "--num", "10", "--accelerator", "H100"]) == 2
    assert remedy in capsys.readouterr().err


def test_weights_and_networks_must_go_together() -> None:
    with pytest.raises(ConfigError, match=r"1 entries, and models names 2 network\(s\); give one weight for each"):
        estimate_sampling(pair(sampling__weights="[1.0]"), SamplingWork(1), WHOLE)


@pytest.mark.parametrize(("name", "number"), [("H101", 1), ("H100", 0)])
def test_unknown_machines_are_refused(name: str, number: int) -> None:
    with pytest.raises(ConfigError, match=r"known are L4, L40S|give at least 1"):
        machines(name, number)


@pytest.mark.parametrize("num_tokens", [50, 400])
def test_records_take_about_what_is_said(num_tokens: int, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "stream"), LocalFileSystem())
    num_samples = 400
    with StreamWriter(store, WriteSettings(rows_per_segment=num_samples), "w") as writer:
        for number in range(num_samples):
            writer.append(synthetic_record(number, num_tokens))
        writer.flush()
    written = sum(path.stat().st_size for path in (tmp_path / "stream").rglob("*.parquet"))
    work = SamplingWork(num_samples, prompt_tokens=16, new_tokens=num_tokens)
    estimate = estimate_sampling(pair(), work, WHOLE)
    assert 0.4 * estimate.stream_bytes < written < estimate.stream_bytes


def test_the_table_says_what_it_rests_on() -> None:
    table = sampling_table(estimate_sampling(pair(), SamplingWork(100), machines("H100", 4)))
    assert table.title == "Sampling on 4 x H100"
    rows = {str(row[0]): row[1] for row in table.rows}
    assert rows["weights on each device"] == "12.9 GB"
    assert "50% of the memory's bandwidth" in table.caption
