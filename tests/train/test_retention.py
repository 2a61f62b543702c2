"""`cong stream retain` beside training: what a checkpoint may go on with stays, whatever becomes of the run."""

from collections import Counter
from pathlib import Path

import pytest

from cong.cli import main
from cong.config import RunConfig
from cong.train.resuming import cursors_in_use
from cong.train.run import train
from tests.train.runs import DPO, ledger_keys, require_equal_runs, stop_after_checkpoints
from tests.train.worlds import network_folder, run_config, sample, stream_keys, write_samples


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
