"""What a training job refuses before it starts anything, with the setting's name and what to do."""

import json
import time
from pathlib import Path

import pytest

from cong.config import RunConfig, dump_config
from cong.errors import CheckpointError, ConfigError, ModelError, StreamError
from cong.pipeline import Task
from cong.pipeline.stopping import StoppedEarly
from cong.train.stopping import StopRequest
from jobs import connection
from jobs.claim import Interrupted
from jobs.connection import JOB_VARIABLE, STOP_WAIT_VARIABLE
from jobs.pipeline import OnCluster
from jobs.planning import placed, require_storage
from jobs.train import EXIT_WRONG, main
from jobs.workers import is_final


def refusal(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert main([part for override in overrides for part in ("--set", override)]) == EXIT_WRONG
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training_job.num_workers=2"], "num_workers is 2 and train.backend is 'torch'"),
        (["training_job.gpus_per_worker=1"], "gpus_per_worker is 1 and models.device is 'cpu'"),
        (["models.device=cuda"], "gpus_per_worker is 0 and models.device is 'cuda'"),
        (["train.backend=deepspeed", "training_job.gpus_per_worker=2"], "each worker trains on one"),
        (["training_job.resources_per_worker={CPU: 1}"], "use cpus_per_worker or gpus_per_worker"),
        (["training_job.num_wokers=2"], "nearest known one is 'training_job.num_workers'"),
        (["output_dir=s3://bucket/run"], "it must be a folder"),
        (["output_dir=/dev/null/run"], "output_dir is /dev/null/run, which cannot be written"),
        (["training_job.storage_root=shared"], "storage_root is shared; give an absolute path"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, *overrides)


def test_a_store_that_does_not_exist_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {"output_dir": tmp_path / "run", "train": {"checkpoints": {"upload": "nowhere://bucket/run"}}}
    )
    with pytest.raises(CheckpointError, match="nowhere://bucket/run"):
        require_storage(config)


def test_relative_folders_lie_below_the_storage_root(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {"output_dir": "runs/one", "cache_dir": "/fast/cache", "training_job": {"storage_root": str(tmp_path)}}
    )
    found = placed(config, Path("/elsewhere"))
    assert (found.output_dir, found.cache_dir) == (tmp_path / "runs/one", Path("/fast/cache"))
    assert placed(RunConfig(), Path("/here")).output_dir == Path("/here/runs/lab")


def test_a_folder_that_vanishes_with_the_job_is_refused() -> None:
    unpacked = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1")
    assert connection.is_unpacked(unpacked)
    with pytest.raises(ConfigError, match="would lie in the job's unpacked working_dir"):
        placed(RunConfig(), unpacked, is_unpacked=True)


def test_a_dry_run_shows_where_everything_will_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"training_job.storage_root={tmp_path}"
    assert main(["--set", root, "--set", "output_dir=run", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"output_dir: {tmp_path}/run" in shown
    assert not (tmp_path / "run").exists()


def test_a_dashboard_that_does_not_answer_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(RunConfig(output_dir=tmp_path / "run")))
    assert main(["--config", str(file), "--submit", "http://127.0.0.1:1"]) == EXIT_WRONG
    assert "no dashboard of a cluster answers at http://127.0.0.1:1" in capsys.readouterr().err
    assert main(["--config", str(file), "--submit", "127.0.0.1:1"]) == EXIT_WRONG
    assert "give the dashboard's address, such as http://" in capsys.readouterr().err


def test_a_job_knows_its_name_and_how_long_it_may_take_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    assert (connection.submission(), connection.stop_wait_s()) == ("", None)
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"metadata": {"job_submission_id": "cong-train-x-1"}}))
    monkeypatch.delenv(STOP_WAIT_VARIABLE, raising=False)
    assert (connection.submission(), connection.stop_wait_s()) == ("cong-train-x-1", 3.0)
    monkeypatch.setenv(STOP_WAIT_VARIABLE, "270")
    assert connection.stop_wait_s() == 270.0


def test_what_starting_again_cannot_change_is_final() -> None:
    assert is_final(ConfigError("x"), has_stepped=True)
    assert is_final(ModelError("x"), has_stepped=False)
    assert is_final(CheckpointError("another recipe"), has_stepped=False)
    assert not is_final(CheckpointError("the disk is full"), has_stepped=True)
    assert not is_final(StreamError("the store is slow"), has_stepped=True)


def test_a_stage_that_is_stopped_while_it_waits_for_its_run_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver before may still be alive: that is found out for a while, and a request to stop ends it."""

    class Waiting:
        def __init__(self, config: RunConfig, folder: Path) -> None:
            pass

        def run(self, stop: StopRequest) -> None:
            while not stop.is_set:
                time.sleep(0.01)
            raise Interrupted("asked to stop before it was known whether another one trains the run")

    monkeypatch.setattr("jobs.pipeline.Job", Waiting)
    stop = StopRequest()
    stop.set()
    with pytest.raises(StoppedEarly):
        OnCluster(tmp_path).start(Task("cong-s", "train", tmp_path, RunConfig()), stop).wait()
