"""`cong train`: what it reads, what it leaves, and what it refuses before anything is loaded."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from cong.cli import main
from cong.config import RunConfig, dump_config, load_config
from cong.config.train import TrainConfig
from cong.errors import ConfigError, MissingExtra
from cong.schemas import SampleRecord
from cong.train.metrics import JsonLines, TensorBoard, read_metrics
from cong.train.progress import Outcome
from cong.train.run import train
from tests.train.worlds import network_folder, run_config, sample, write_samples


def command(root: Path, *more: str, **sections: Any) -> list[str]:
    file = root / "run.yaml"
    file.write_text(dump_config(run_config(root, **sections)))
    return ["train", "--config", str(file), *more]


def test_a_run_leaves_its_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_settings = {"logging": {"has_plots": True, "has_tensorboard": True}, "evaluation": {"held_out_share": 0.2}}
    assert main(command(root, train=train_settings)) == 0
    run = root / "run"
    assert "trained for 7 steps (held_out" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "environment.json", "run.lock", "metrics.jsonl", "tensorboard", "curves.svg"),
        *("checkpoints", "ledger", "model", "summary.json"),
    }
    assert load_config(RunConfig, [run / "config.yaml"]).train.evaluation.held_out_share == 0.2
    assert {"cong", "torch", "transformers", "python"} <= json.loads((run / "environment.json").read_text()).keys()
    lines = list(read_metrics(run / "metrics.jsonl"))
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 8))
    assert [line["step"] for line in lines if "eval/loss" in line] == [0, 7]
    for line in steps:
        assert line["tokens_per_s"] > 0
        assert line["grad_norm"] > 0
        assert line["arithmetic_share"] > 0
        assert line["num_tokens"] > 0
    assert steps[-1]["progress"] == 1.0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["bottleneck"] in ("data", "compute")
    assert summary["counts"]["held_out"] > 0
    assert (run / "curves.svg").read_text().lstrip().startswith("<?xml")
    assert list((run / "tensorboard").glob("events*"))


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("make", [TensorBoard, JsonLines])
def test_numbers_for_a_full_disk_are_refused_and_not_waited_for(
    tmp_path: Path, make: type[TensorBoard] | type[JsonLines]
) -> None:
    tracker = make(tmp_path / "numbers", 1)
    values = {f"metric_{number}": 1.0 for number in range(1000)}
    tracker.log(1, {"loss": 1.0})
    with room_for(4096), pytest.raises(OSError, match="File too large") as caught:
        tracker.log(2, values)
    assert caught.value.filename == str(tmp_path / "numbers")
    tracker.close()  # with room again, what is left is written


def test_runs_of_one_second_keep_events_of_their_own(tmp_path: Path) -> None:
    for step in range(3):
        tracker = TensorBoard(tmp_path, step)
        tracker.log(step, {f"number-{step}": 1.0})
        tracker.close()
    files = sorted(tmp_path.iterdir())
    assert [f"number-{step}".encode() in path.read_bytes() for step, path in enumerate(files)] == [True] * 3


def test_the_loss_goes_down(root: Path) -> None:
    outcome = train(run_config(root, {"num_epochs": 6, "evaluation": {"held_out_share": 0.2}}), is_quiet=True)
    judged = [line["eval/loss"] for line in read_metrics(root / "run" / "metrics.jsonl") if "eval/loss" in line]
    assert judged[-1] < 0.8 * judged[0]
    assert outcome.metrics["eval/implicit_reward"] > 0


def test_a_dry_run_prints_the_configuration_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(root, "--dry-run", "--set", "train.num_epochs=3")) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["num_epochs"] == 3
    assert not (root / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.backend=deepspeed", "needs several processes"),
        ("train.objective.name=spo", "objective 'spo' is not known"),
        ("train.objective.parameters={beta: 2}", "has no parameter 'beta'"),
        ("train.objective.name=soft_labels", "the weak model's whole distribution"),
        ("train.objective.name=dpo", "is trained on pairs and the kind of its data is 'stream'"),
        ("train.data.kind=pairs", "path is empty"),
        ("train.data.kind=joined", "is trained on single responses"),
        ("train.batchs.batch_size=3", "'train.batches'"),
        ("train.optimizer.beta1=1.5", "train.optimizer.beta1 is 1.5"),
        ("train.evaluation.held_out_share=0.7", "less than or equal to 0.5"),
        ("train.network.source=nowhere/at/all", "does not exist"),
        ("stream.location=nowhere", "there is no stream at nowhere"),
        ("stream.read.filter.min_tokens=1000", "no example passes (none was read); give other data"),
        ("stream.read.follow={}", "give train.max_steps or stream.read.max_records"),
        ("models.device=cuda:99", "device is 'cuda:99', and torch sees"),
        ("train.evaluation.max_examples=0", "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_named_and_ends_with_2(
    root: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    assert main(command(root, "--set", setting)) == 2
    assert message in capsys.readouterr().err
    assert not (root / "run" / "checkpoints").exists()


def test_a_growing_stream_is_read_once_and_judged_on_data_of_its_own(root: Path) -> None:
    read = {"follow": {"idle_timeout_s": 60.0, "poll_s": 0.01}, "max_records": 12}
    stream = {"location": str(root / "stream"), "read": read}
    with pytest.raises(ConfigError, match="read once"):
        train(run_config(root, {"num_epochs": 2}, stream=stream), is_quiet=True)
    with pytest.raises(ConfigError, match=r"train\.evaluation\.data"):
        train(run_config(root, {"evaluation": {"held_out_share": 0.1}}, stream=stream), is_quiet=True)
    write_samples(root / "judged", (sample(number) for number in range(60, 70)), "w")
    own = {"evaluation": {"data": {"kind": "stream", "path": str(root / "judged")}, "max_examples": 5}}
    outcome = train(run_config(root, own, stream=stream), is_quiet=True)
    assert outcome.is_finished
    assert outcome.metrics["eval/loss"] > 0


def test_a_stream_that_ends_before_its_plan_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    stream = {"location": str(root / "stream"), "read": {"follow": {"poll_s": 0.01}, "max_records": 60}}
    outcome = train(run_config(root, stream=stream), is_quiet=True)
    assert outcome.is_finished
    assert outcome.progress is not None
    assert outcome.progress.step == 7
    assert "the stream ended after 7 of the 10 steps that the learning rate was planned for" in caplog.text


@pytest.mark.parametrize("kind", ["stream", "joined"])
def test_a_run_is_not_judged_on_what_it_is_trained_on(root: Path, kind: str) -> None:
    """A location that is left out is that of the training."""
    write_samples(root / "stream", (sample(number, is_plain=True) for number in range(20)), "plain")
    objective = {"objective": {"name": "dpo"}} if kind == "joined" else {}
    config = run_config(root, {"data": {"kind": kind}, "evaluation": {"data": {"kind": kind}}, **objective})
    with pytest.raises(ConfigError, match=r"train\.evaluation\.data is what is trained on.*held_out_share"):
        train(config, is_quiet=True)


def test_trackers_that_are_not_installed_name_their_extra(root: Path) -> None:
    for settings in ({"wandb_project": "cong"}, {"mlflow_uri": "sqlite://"}):
        with pytest.raises(MissingExtra, match=r"\.\[trackers\]"):
            train(run_config(root, {"logging": settings}), is_quiet=True)


def test_too_long_samples_are_reported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(root, "--set", "train.batches.max_example_tokens=20")) == 0
    assert "dropped_too_long" in capsys.readouterr().err
    summary = json.loads((root / "run" / "summary.json").read_text())
    kept = sum(len(sample(number).prompt_token_ids + sample(number).completion_token_ids) <= 20 for number in range(40))
    assert 0 < kept < 40
    assert summary["counts"]["dropped_too_long"] == 40 - kept


def test_what_is_longer_than_the_network_reads_is_too_long(root: Path) -> None:
    def train_with_places(number: int) -> Outcome:
        config = transformers.GPT2Config(vocab_size=32, n_positions=number, n_embd=32, n_layer=1, n_head=2)
        folder = root / f"places-{number}"
        shutil.copytree(root / "network", folder, ignore=shutil.ignore_patterns("*.safetensors", "*config.json"))
        shutil.copy(root / "network" / "tokenizer_config.json", folder)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        settings = {"network": {"source": str(folder)}}
        return train(run_config(root, settings, output_dir=root / f"run-{number}"), is_quiet=True)

    lengths = [len(sample(number).prompt_token_ids + sample(number).completion_token_ids) for number in range(40)]
    assert max(lengths) <= 64, "the setting lets all of them pass"
    kept = sum(length <= 20 for length in lengths)
    outcome = train_with_places(20)
    assert outcome.progress is not None
    assert 0 < outcome.progress.num_examples == kept < 40
    assert outcome.counts == {"dropped_too_long": 40 - kept}
    with pytest.raises(ConfigError, match="the network reads 4 tokens; train one that reads more"):
        train_with_places(4)


def test_a_step_of_which_nothing_is_left_has_no_loss(root: Path) -> None:
    """The last step is of one sample, and too long: the run's loss is the one before."""
    long = sample(60).model_copy(update={"prompt_token_ids": sample(60).prompt_token_ids * 8})
    write_samples(root / "long", [*(sample(number) for number in range(12)), long])
    config = run_config(root, stream={"location": str(root / "long"), "read": {"shuffle_rows": 0}})
    outcome = train(config, is_quiet=True)
    lines = list(read_metrics(root / "run" / "metrics.jsonl"))
    assert [("loss" in line, "grad_norm" in line) for line in lines] == [(True, True), (True, True), (False, False)]
    assert outcome.metrics["loss"] == lines[1]["loss"] > 1.0
    assert f"| loss | {lines[1]['loss']:.6g} |" in (root / "run" / "model" / "README.md").read_text()


def test_a_run_that_fits_nothing_is_refused_and_exports_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(root, "--set", "train.batches.max_example_tokens=8")) == 2
    told = capsys.readouterr().err
    assert "every example was left out (dropped_too_long 40)" in told
    assert "train.batches.max_example_tokens is 8; raise it" in told
    assert not (root / "run" / "model").exists()


@pytest.mark.parametrize("shift", [1, 1000], ids=["ids that mean another text", "ids that the network does not have"])
@pytest.mark.parametrize("kind", ["stream", "followed", "joined"])
def test_samples_of_another_tokenizer_are_refused(root: Path, kind: str, shift: int) -> None:
    def shifted(one: SampleRecord) -> SampleRecord:
        return one.model_copy(update={"completion_token_ids": tuple(each + shift for each in one.completion_token_ids)})

    write_samples(root / "other", [shifted(sample(number)) for number in range(8)])
    write_samples(root / "own", [sample(number, is_plain=True) for number in range(8)])
    objective = {"objective": {"name": "dpo"}} if kind == "joined" else {}
    data = {"kind": "stream" if kind == "followed" else kind, "rejected": {"location": str(root / "own")}}
    stream = {"location": str(root / "other"), "read": {"follow": {} if kind == "followed" else None}}
    config = run_config(root, {"data": data, "max_steps": 2, **objective}, stream=stream)
    with pytest.raises(ConfigError, match=r"token ids of another tokenizer: s-.* says '.*', and the network's"):
        train(config, is_quiet=True)


@pytest.mark.parametrize("kind", ["stream", "joined"])
def test_samples_of_another_tokenizer_are_refused_among_others_too(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What is looked at before a run begins holds none of them."""
    monkeypatch.setattr("cong.train.origins._SCANNED_AT_ONCE", 4)
    monkeypatch.setattr("cong.train.data.pairs._AT_ONCE", 4)
    ids = tuple(each + 1 for each in sample(9).completion_token_ids)
    other = sample(9).model_copy(update={"completion_token_ids": ids, "tokenizer_fingerprint": "u"})
    write_samples(root / "mixed", [*(sample(number) for number in range(9)), other])
    write_samples(root / "own", [sample(number, is_plain=True) for number in range(10)])
    data = {"kind": kind, "rejected": {"location": str(root / "own")}}
    objective = {"objective": {"name": "dpo"}} if kind == "joined" else {}
    stream = {"location": str(root / "mixed"), "read": {"shuffle_rows": 0}}
    with pytest.raises(ConfigError, match=f"token ids of another tokenizer: {other.key} says"):
        train(run_config(root, {"data": data, **objective}, stream=stream), is_quiet=True)


def test_samples_that_were_cut_off_are_counted_and_can_be_left_out(root: Path) -> None:
    write_samples(
        root / "cut", [sample(number, finish_reason="length" if number < 4 else "stop") for number in range(12)]
    )
    stream = {"location": str(root / "cut"), "read": {}}
    assert train(run_config(root, stream=stream), is_quiet=True).counts == {"cut_off": 4}
    stream = {"location": str(root / "cut"), "read": {"filter": {"finish_reasons": ["stop"]}}}
    outcome = train(run_config(root, stream=stream, output_dir=root / "other"), is_quiet=True)
    assert outcome.counts == {}
    assert outcome.progress is not None
    assert outcome.progress.num_examples == 8


def test_an_adapter_is_trained_over_a_base_in_bfloat16(root: Path) -> None:
    settings = {"precision": "bfloat16", "lora": {"rank": 4}, "optimizer": {"learning_rate": 0.02}, "num_epochs": 3}
    train(run_config(root, settings), is_quiet=True)
    losses = [line["loss"] for line in read_metrics(root / "run" / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < 0.95 * losses[0]


def test_the_defaults_are_a_configuration() -> None:
    assert RunConfig().train == TrainConfig()
    assert TrainConfig().batches.is_packed


def test_pairs_from_a_file_train_the_weak_model(tmp_path: Path) -> None:
    network_folder(tmp_path / "network")
    rows = []
    for number in range(40):
        good, bad = sample(number), sample(number, is_plain=True)
        rows.append(
            {
                "prompt": {"text": good.prompt.text, "prompt_id": good.prompt.prompt_id},
                "chosen": {"text": good.completion_text},
                "rejected": {"text": bad.completion_text},
            }
        )
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "objective": {"name": "dpo", "parameters": {"beta": 1.0}},
        "data": {"kind": "pairs", "path": str(tmp_path / "pairs.jsonl")},
        "num_epochs": 5,
    }
    outcome = train(run_config(tmp_path, settings), is_quiet=True)
    assert outcome.metrics["reward_margin"] > 0.3
    assert outcome.metrics["accuracy"] > 0.8
