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

from cong.cli import main
from cong.config import RunConfig
from cong.errors import CheckpointError, ConfigError
from cong.files import files_below
from cong.train.ledger import read_ledger
from cong.train.loop import Progress, StepReport
from cong.train.metrics import read_metrics
from cong.train.resuming import cursors_in_use
from cong.train.run import Outcome, train
from cong.train.stopping import StopRequest
from cong.train.validation import is_held_out
from tests.train.worlds import final_weights, network_folder, run_config, sample, stream_keys, write_samples

TIMES = ("tokens_per_s", "arithmetic_share", "wait_s", "compute_s")
DPO = {"objective": {"name": "dpo", "parameters": {"beta": 0.5}}, "data": {"kind": "joined"}}


def curve(config: RunConfig) -> list[dict[str, Any]]:
    """Every number of every step that is no time."""
    lines = read_metrics(config.output_dir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


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


def stop_after_checkpoints(config: RunConfig, num_checkpoints: int) -> Outcome:
    """Train until so many checkpoints are committed, and one step more."""
    stop = StopRequest()
    left = [num_checkpoints]

    def report(metrics: object, folder: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            stop.set()

    return train(config, report=report, stop=stop, is_quiet=True)


def train_in_pieces(config: RunConfig) -> int:
    """Train with a stop in every process; how many processes it took."""
    for number in range(1, 30):
        if stop_after_checkpoints(config, 1).is_finished:
            return number
    raise AssertionError("the run does not end")


def require_equal_runs(one: RunConfig, other: RunConfig) -> None:
    assert curve(one) == curve(other)
    assert list(read_ledger(one.output_dir / "ledger")) == list(read_ledger(other.output_dir / "ledger"))
    weights, others = final_weights(one), final_weights(other)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def ledger_keys(config: RunConfig) -> Counter[str]:
    return Counter(key for _, keys in read_ledger(config.output_dir / "ledger") for key in keys)


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

    def sampler() -> None:
        # Every epoch of the writer is another lane; the reader takes a lane's rows in their order, whenever they come.
        for number in range(1, total, 7):
            write_samples(
                location, [sample(each) for each in range(number, min(total, number + 7))], f"live{number:02d}"
            )
            time.sleep(0.02)

    thread = threading.Thread(target=sampler)
    thread.start()
    try:
        assert train_in_pieces(broken) >= 4
    finally:
        thread.join(timeout=30)
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


def live_run(root: Path, num_samples: int = 60) -> RunConfig:
    """A run that reads a growing stream once, so that what it has passed is not needed again."""
    network_folder(root / "network")
    location = root / "stream"
    write_samples(location, (sample(number) for number in range(num_samples)), "live", is_closed=False)
    read = {"follow": {"poll_s": 0.01, "idle_timeout_s": 60.0}, "max_records": num_samples, "shuffle_rows": 0}
    return run_config(root, stream={"location": str(location), "read": read})


def retain_by_command(config: RunConfig, *options: str) -> int:
    return main(["stream", "retain", config.stream.location, "--run", str(config.output_dir), *options])


def test_retention_spares_what_kept_checkpoints_may_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = live_run(tmp_path)
    location = config.stream.location
    assert retain_by_command(config) == 2
    assert "has no committed checkpoint, so a run there may still read everything" in capsys.readouterr().err
    stop_after_checkpoints(config, 3)
    assert [cursor.num_records for cursor in cursors_in_use(config.output_dir)] == [36, 42]
    assert retain_by_command(config, "--dry-run") == 0
    assert "32 rows in 4 segments" in capsys.readouterr().out
    assert len(stream_keys(Path(location))) == 60
    assert retain_by_command(config) == 0
    told = capsys.readouterr().out
    assert "its checkpoints lie behind 36 to 42 records" in told
    assert "removed; 28 rows in 4 segments stay" in told, "segments of eight rows wholly below the older checkpoint"
    assert train(config, is_quiet=True).is_finished
    assert ledger_keys(config) == Counter(sample(number).key for number in range(60))

    still = run_config(tmp_path, output_dir=tmp_path / "still", stream={"location": location})
    stop_after_checkpoints(still, 1)
    assert retain_by_command(still) == 0
    assert "no segment lies wholly below every cursor" in capsys.readouterr().out, "epochs begin again"


def test_retention_after_a_kill_within_a_save_leaves_all_that_the_run_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, broken = live_run(tmp_path / "unbroken"), live_run(tmp_path / "broken")
    assert train(unbroken, is_quiet=True).is_finished
    stop_after_checkpoints(broken, 1)
    num_committed = len(cursors_in_use(broken.output_dir))

    def killed(source: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    # Everything of the next checkpoint is written, its marker too, and it never takes its name.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            train(broken, is_quiet=True)
    assert list((broken.output_dir / "checkpoints").glob(".step-*/COMMITTED"))
    assert len(cursors_in_use(broken.output_dir)) == num_committed
    assert retain_by_command(broken) == 0
    assert len(stream_keys(Path(broken.stream.location))) < 60
    assert train(broken, is_quiet=True).is_finished
    require_equal_runs(unbroken, broken)


def test_retention_is_refused_where_it_is_not_known_what_a_run_needs(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(config: RunConfig, *options: str) -> str:
        assert retain_by_command(config, *options) == 2
        return capsys.readouterr().err

    config = live_run(tmp_path / "live")
    stop_after_checkpoints(config, 1)
    newest = max((config.output_dir / "checkpoints").glob("step-*"))
    state = (newest / "state.json").read_bytes()
    (newest / "state.json").write_bytes(b"{")
    assert "its state cannot be read, so what it needs is not known" in told(config)
    (newest / "state.json").write_bytes(state)

    write_samples(root / "stream", (sample(number, is_plain=True) for number in range(40)), "own")
    pairs = run_config(root, DPO)
    stop_after_checkpoints(pairs, 1)
    assert "holds no cursor of a stream: a run on pairs reads all of its data" in told(pairs)
    other = run_config(root, output_dir=config.output_dir)
    assert "trains on stream" in told(other)
    assert len(stream_keys(root / "stream")) == 80
    (tmp_path / "cursor.json").write_text("{}")
    assert "cursor.json: this is not a stream cursor" in told(config, "--cursor", str(tmp_path / "cursor.json"))


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


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": {"learning_rate": 1e-3}}, "train.optimizer.learning_rate was 0.003 and is 0.001"),
    ({"batches": {"batch_size": 5}}, "train.batches.batch_size was 6 and is 5"),
    ({"num_epochs": 3}, "train.num_epochs was 2 and is 3"),
    ({"objective": {"parameters": {"mean_over": "sequences"}}}, "train.objective.parameters.mean_over"),
    ({"evaluation": {"held_out_share": 0.1}}, "train.evaluation.held_out_share was 0.0 and is 0.1"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_changed_recipe_is_refused_by_name(root: Path, change: dict[str, Any], message: str) -> None:
    stop_after_checkpoints(run_config(root, {"num_epochs": 2}), 1)
    asked = (root / "run" / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match=message):
        train(run_config(root, {"num_epochs": 2, **change}), is_quiet=True)
    assert (root / "run" / "config.yaml").read_text() == asked, "the folder tells of the run that is in it"


def test_another_network_or_filter_is_refused_by_name(root: Path) -> None:
    stop_after_checkpoints(run_config(root), 1)
    network_folder(root / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"network\.fingerprint was"):
        train(run_config(root, {"network": {"source": str(root / "other")}}), is_quiet=True)
    read = {"shuffle_rows": 16, "shuffle_seed": 4}
    with pytest.raises(CheckpointError, match=r"data\.order\.shuffle_seed was 3 and is 4"):
        train(run_config(root, stream={"location": str(root / "stream"), "read": read}), is_quiet=True)


def test_a_moved_network_and_stream_are_the_same(root: Path) -> None:
    stop_after_checkpoints(run_config(root), 1)
    (root / "network").rename(root / "network-2")
    (root / "stream").rename(root / "stream-2")
    stream = {"location": str(root / "stream-2"), "read": {"shuffle_rows": 16, "shuffle_seed": 3}}
    config = run_config(root, {"network": {"source": str(root / "network-2")}}, stream=stream)
    assert train(config, is_quiet=True).is_finished


def test_what_only_watches_or_keeps_may_change(root: Path) -> None:
    stop_after_checkpoints(run_config(root), 1)
    changed = {
        "checkpoints": {"every_steps": 3, "num_kept": 1},
        "logging": {"every_steps": 2},
        "batches": {"max_tokens_per_micro_batch": 90},
        "has_activation_checkpointing": True,
    }
    config = run_config(root, changed)
    assert train(config, is_quiet=True).is_finished
    assert len(list((config.output_dir / "checkpoints").glob("step-*"))) == 1


def test_two_runs_in_one_folder_are_refused(root: Path) -> None:
    config = run_config(root)
    found: list[str] = []

    def report(metrics: object, folder: Path) -> None:
        with pytest.raises(ConfigError, match="another run is at work") as caught:
            train(config, is_quiet=True)
        found.append(str(caught.value))

    train(config, report=report, is_quiet=True)
    assert found


def checkpoint_files(config: RunConfig) -> list[str]:
    newest = sorted((config.output_dir / "checkpoints").glob("step-*"))[-1]
    return [f"{newest.name}/{name}" for name in files_below(newest)]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_damage_to_the_newest_checkpoint_is_announced_and_stepped_over(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(root)
    unbroken = run_config(root, output_dir=root / "unbroken")
    train(unbroken, is_quiet=True)
    stop_after_checkpoints(config, 2)
    files = checkpoint_files(config)
    assert {Path(name).name for name in files} == {
        *("COMMITTED", "manifest.json", "state.json", "generators-00000.json"),
        *("weights.safetensors", "optimizer.safetensors"),
    }
    folder = config.output_dir / "checkpoints"
    from cong.train.checkpoint import newest_complete

    whole = newest_complete(folder, config.output_dir / "ledger")
    assert whole is not None
    assert whole.step == 5
    damages = {
        "removed": lambda path: path.unlink(),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "emptied": lambda path: path.write_bytes(b""),
        "flipped": flip,
    }
    for name in files:
        content = (folder / name).read_bytes()
        for damage in damages.values():
            damage(folder / name)
            caplog.clear()
            found = newest_complete(folder, config.output_dir / "ledger")
            assert found is not None
            assert found.step == 4
            assert "stepping back to step 4" in caplog.text
            assert "step-00000005 is not complete" in caplog.text
            (folder / name).write_bytes(content)
    flip(folder / "step-00000005" / "backend" / "weights.safetensors")
    train(config, is_quiet=True)
    require_equal_runs(unbroken, config)


def test_a_missing_newest_checkpoint_is_announced(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    import shutil

    config = run_config(root)
    stop_after_checkpoints(config, 2)
    shutil.rmtree(config.output_dir / "checkpoints" / "step-00000005")
    assert train(config, is_quiet=True).is_finished
    assert "step-00000005 was committed and is missing" in caplog.text


def test_training_never_starts_from_zero_by_itself(root: Path) -> None:
    import shutil

    config = run_config(root)
    stop_after_checkpoints(config, 1)
    folder = config.output_dir / "checkpoints"
    for path in folder.glob("step-*"):
        flip(path / "state.json")
    with pytest.raises(CheckpointError, match="no checkpoint is left to resume from"):
        train(config, is_quiet=True)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="shows steps that were saved"):
        train(config, is_quiet=True)


def test_a_damaged_ledger_part_is_noticed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run_config(root)
    stop_after_checkpoints(config, 2)
    (part,) = (config.output_dir / "ledger").glob("steps-00000004-*.jsonl")
    flip(part)
    assert train(config, is_quiet=True).is_finished
    assert "the ledger is damaged" in caplog.text
    assert ledger_keys(config) == Counter(stream_keys(root / "stream"))


def test_an_interrupted_write_leaves_the_checkpoints_before_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cong.train.torch_backend import TorchBackend

    config = run_config(root)
    stop_after_checkpoints(config, 1)
    before = sorted(path.name for path in (config.output_dir / "checkpoints").glob("step-*"))

    def full_disk(self: TorchBackend, folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TorchBackend, "save", full_disk)
        with pytest.raises(
            CheckpointError, match=r"No space left on device.*disk has room.*before it are as they were"
        ):
            train(config, is_quiet=True)
    assert sorted(path.name for path in (config.output_dir / "checkpoints").glob("step-*")) == before
    assert train(config, is_quiet=True).is_finished


def test_checkpoints_are_kept_by_number(root: Path) -> None:
    config = run_config(root, {"checkpoints": {"every_steps": 1, "num_kept": 3}})
    train(config, is_quiet=True)
    names = sorted(path.name for path in (config.output_dir / "checkpoints").iterdir())
    assert names == ["newest.json", "step-00000005", "step-00000006", "step-00000007"]
    assert json.loads((config.output_dir / "checkpoints" / "newest.json").read_text()) == {"step": 7}
