"""A run that is stopped and goes on is the run that was never stopped: bit for bit, with every record trained once."""

import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from cong.config import RunConfig
from cong.errors import ConfigError
from cong.files import files_below
from cong.train.ledger import read_ledger
from cong.train.loop import StepReport
from cong.train.metrics import read_metrics
from cong.train.progress import Progress
from cong.train.run import train
from cong.train.stopping import StopRequest
from cong.train.validation import is_held_out
from tests.train.runs import DPO, TIMES, curve, ledger_keys, require_equal_runs, stop_after_checkpoints, train_in_pieces
from tests.train.worlds import (
    final_weights,
    network_folder,
    run_config,
    sample,
    sampled_meanwhile,
    stream_keys,
    write_samples,
)


def tensorboard_steps(config: RunConfig, name: str) -> list[int]:
    """Steps of which the event files hold a number, as often as they hold it."""
    event_pb2: Any = pytest.importorskip("tensorboardX.proto.event_pb2")
    steps = []
    for path in sorted((config.output_dir / "tensorboard").iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            # A record: its length in 8 bytes and a checksum of 4, its bytes and another checksum.
            end = place + 12 + int.from_bytes(content[place : place + 8], "little")
            event = event_pb2.Event.FromString(content[place + 12 : end])
            steps += [int(event.step) for value in event.summary.value if value.tag == name]
            place = end + 4
    return steps


@pytest.mark.parametrize(
    "settings",
    [
        {"num_epochs": 2},
        {"num_epochs": 2, "lora": {"rank": 2, "dropout": 0.2}, "has_activation_checkpointing": True},
        {"num_epochs": 2, "precision": "bfloat16", "evaluation": {"held_out_share": 0.2, "every_steps": 3}},
    ],
    ids=["sft", "lora with dropout", "bfloat16 with evaluation"],
)
def test_sft_resumes_bit_for_bit(root: Path, settings: dict[str, Any]) -> None:
    unbroken = run_config(root, settings, output_dir=root / "unbroken")
    broken = run_config(root, settings, output_dir=root / "broken")
    assert train(unbroken, is_quiet=True).is_finished
    assert train_in_pieces(broken) >= 4
    require_equal_runs(unbroken, broken)


def test_every_epoch_trains_every_record_once_in_another_order(root: Path) -> None:
    config = run_config(root, {"num_epochs": 3})
    train(config, is_quiet=True)
    assert ledger_keys(config) == Counter(3 * stream_keys(root / "stream"))
    keys = [key for _, step_keys in read_ledger(config.output_dir / "ledger") for key in step_keys]
    assert keys[:40] != keys[40:80]
    assert len(keys) == 120


def test_dpo_resumes_bit_for_bit(root: Path) -> None:
    write_samples(root / "stream", (sample(number, is_plain=True) for number in range(40)), "own")
    unbroken = run_config(root, {**DPO, "num_epochs": 2}, output_dir=root / "unbroken")
    broken = run_config(root, {**DPO, "num_epochs": 2}, output_dir=root / "broken")
    assert train(unbroken, is_quiet=True).is_finished
    assert train_in_pieces(broken) >= 4
    require_equal_runs(unbroken, broken)
    pairs = ledger_keys(broken)
    assert len(pairs) == 40
    assert set(pairs.values()) == {2}


def test_what_comes_into_the_stream_later_belongs_to_the_next_run(root: Path) -> None:
    """The resumed run, its evaluation and the second epoch read what lay there when the run began."""
    settings = {"num_epochs": 2, "evaluation": {"held_out_share": 0.2}}
    unbroken, broken = (run_config(root, settings, output_dir=root / name) for name in ("unbroken", "broken"))
    kept = {one.key for one in map(sample, range(40)) if is_held_out(one.prompt.prompt_id, 0.2)}
    first = Counter(key for key in stream_keys(root / "stream") if key not in kept)
    train(unbroken, is_quiet=True)
    assert not stop_after_checkpoints(broken, 1).is_finished
    write_samples(root / "stream", (sample(number) for number in range(40, 60)), "aa")
    train(broken, is_quiet=True)
    require_equal_runs(unbroken, broken)
    assert 0 < len(first) < 40
    assert ledger_keys(broken) == first + first


def test_following_a_live_stream_resumes_bit_for_bit(tmp_path: Path) -> None:
    network_folder(tmp_path / "network")
    total, location = 60, tmp_path / "stream"
    write_samples(location, [sample(0)], "live", is_closed=False)
    follow = {"poll_s": 0.01, "idle_timeout_s": 60.0}
    read = {"follow": follow, "max_records": total, "shuffle_rows": 0}
    stream = {"location": str(location), "read": read}
    broken = run_config(tmp_path, output_dir=tmp_path / "broken", stream=stream)

    # The reader takes a lane's rows in their order, whenever they come.
    with sampled_meanwhile(location, total, 7):
        assert train_in_pieces(broken) >= 4
    trained = [key for _, keys in read_ledger(broken.output_dir / "ledger") for key in keys]
    assert Counter(trained) == Counter(sample(number).key for number in range(total))

    # An unbroken run over the same records in the order in which the live ones were taken.
    still = tmp_path / "still"
    by_key = {sample(number).key: sample(number) for number in range(total)}
    write_samples(still, (by_key[key] for key in trained), "still")
    stream = {"location": str(still), "read": {"max_records": total, "shuffle_rows": 0}}
    unbroken = run_config(tmp_path, output_dir=tmp_path / "unbroken", stream=stream)
    train(unbroken, is_quiet=True)
    require_equal_runs(unbroken, broken)


def test_a_run_that_waits_for_samples_stops_when_it_is_asked(tmp_path: Path) -> None:
    network_folder(tmp_path / "network")
    location = tmp_path / "stream"
    write_samples(location, (sample(number) for number in range(14)), "live", is_closed=False)
    read = {"follow": {"poll_s": 0.01, "idle_timeout_s": 200.0}, "max_records": 30, "shuffle_rows": 0}
    config = run_config(tmp_path, stream={"location": str(location), "read": read})
    stop = StopRequest()

    def stop_when_it_waits() -> None:
        while len(list(read_metrics(config.output_dir / "metrics.jsonl"))) < 2:
            time.sleep(0.05)
        stop.set()

    thread = threading.Thread(target=stop_when_it_waits, daemon=True)
    thread.start()
    outcome = train(config, stop=stop, is_quiet=True)
    thread.join(timeout=30)
    assert not outcome.is_finished
    assert outcome.progress is not None
    assert outcome.progress.step == 2
    write_samples(location, (sample(number) for number in range(14, 30)), "live2")
    assert train(config, is_quiet=True).is_finished
    assert ledger_keys(config) == Counter(sample(number).key for number in range(30))


def test_a_finished_run_is_not_trained_again(root: Path) -> None:
    config = run_config(root, {"evaluation": {"held_out_share": 0.2}})
    first = train(config, is_quiet=True)
    left = {name: (config.output_dir / name).read_bytes() for name in files_below(config.output_dir)}
    assert train(config, is_quiet=True) == first
    assert {name: (config.output_dir / name).read_bytes() for name in files_below(config.output_dir)} == left


def test_a_model_that_is_gone_is_exported_again(root: Path) -> None:
    config = run_config(root)
    train(config, is_quiet=True)
    weights = final_weights(config)
    shutil.rmtree(config.output_dir / "model")
    train(config, is_quiet=True)
    assert all(torch.equal(weight, weights[name]) for name, weight in final_weights(config).items())
    assert len(ledger_keys(config)) == 40


@pytest.mark.parametrize("every_steps", [0, 7])
def test_a_run_that_died_before_its_summary_is_judged_once(root: Path, every_steps: int) -> None:
    logging, evaluation = {"has_tensorboard": True}, {"held_out_share": 0.2, "every_steps": every_steps}
    config = run_config(root, {"logging": logging, "evaluation": evaluation})
    first = train(config, is_quiet=True)
    whole, told = curve(config), tensorboard_steps(config, "eval/loss")
    assert told == [line["step"] for line in whole if "eval/loss" in line]
    (config.output_dir / "summary.json").unlink()
    time.sleep(1.0)  # tensorboardX names files by the second, and processes do not follow each other so fast
    again = train(config, is_quiet=True)
    assert curve(config) == whole
    assert tensorboard_steps(config, "eval/loss") == told
    assert again.metrics == first.metrics
    # A kill before the evaluation leaves it to the next process.
    metrics = config.output_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    assert "eval/loss" in lines[-1]
    metrics.write_text("".join(lines[:-1]))
    (config.output_dir / "summary.json").unlink()
    train(config, is_quiet=True)
    assert curve(config) == whole


@pytest.mark.parametrize("every_steps", [1, 3])
def test_the_summary_is_of_the_run_whoever_finished_it(root: Path, every_steps: int) -> None:
    config = run_config(root, {"evaluation": {"held_out_share": 0.2}, "logging": {"every_steps": every_steps}})
    train(config, is_quiet=True)
    file = config.output_dir / "summary.json"
    first = json.loads(file.read_text())
    assert {"loss", "grad_norm", "tokens_per_s", "eval/loss"} <= first["metrics"].keys()
    steps = [line for line in read_metrics(config.output_dir / "metrics.jsonl") if "loss" in line]
    assert first["compute_s"] == pytest.approx(sum(line["compute_s"] for line in steps), abs=1e-3)
    tokens = sum(line["tokens_per_s"] * (line["wait_s"] + line["compute_s"]) for line in steps)
    assert tokens == pytest.approx(steps[-1]["num_tokens"])
    file.unlink()
    train(config, is_quiet=True)
    again = json.loads(file.read_text())
    assert {name: value for name, value in again.items() if name not in TIMES} == {
        name: value for name, value in first.items() if name not in TIMES
    }
    assert [again[name] for name in TIMES] == pytest.approx([first[name] for name in TIMES], rel=1e-3, abs=2e-3)


def test_the_summary_of_a_run_in_pieces_adds_them_up(root: Path) -> None:
    config = run_config(root)
    assert train_in_pieces(config) >= 2
    summary = json.loads((config.output_dir / "summary.json").read_text())
    steps = list(read_metrics(config.output_dir / "metrics.jsonl"))
    seconds = sum(line["wait_s"] + line["compute_s"] for line in steps)
    assert summary["compute_s"] + summary["wait_s"] == pytest.approx(seconds, abs=2e-3)
    assert summary["tokens_per_s"] == pytest.approx(steps[-1]["num_tokens"] / seconds, rel=1e-3)


def test_a_run_that_died_before_its_first_checkpoint_leaves_no_line_behind(root: Path) -> None:
    settings = {"evaluation": {"held_out_share": 0.2}}
    whole, died = (run_config(root, settings, output_dir=root / name) for name in ("whole", "died"))

    def dies(progress: Progress, report: StepReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(died, observers=[dies], is_quiet=True)
    for config in (whole, died):
        train(config, is_quiet=True)
    require_equal_runs(whole, died)


def test_two_runs_in_one_folder_are_refused(root: Path) -> None:
    config = run_config(root)
    found: list[str] = []

    def report(metrics: object, folder: Path) -> None:
        with pytest.raises(ConfigError, match="another run is at work") as caught:
            train(config, is_quiet=True)
        found.append(str(caught.value))

    train(config, report=report, is_quiet=True)
    assert found
