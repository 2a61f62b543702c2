"""The switches for trackers of others, with their own packages where these are installed (extra `trackers`)."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cong.config import dump_config
from cong.errors import ConfigError
from cong.train.metrics import MLflow, read_metrics
from tests.train.worlds import network_folder, run_config, sample, write_samples

LIMIT_S = 120.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    network_folder(tmp_path / "network")
    write_samples(tmp_path / "stream", (sample(number) for number in range(20)), "w")
    return tmp_path


def command_line(root: Path, **logging: str) -> None:
    """One run of `cong train` in a process of its own: trackers start threads and processes."""
    file = root / "run.yaml"
    file.write_text(dump_config(run_config(root, {"logging": {"run_name": "a-run", **logging}})))
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DATA_DIR": str(root)}
    subprocess.run(
        [sys.executable, "-m", "cong.cli", "train", "--config", str(file)],
        env=environment,
        check=True,
        capture_output=True,
        timeout=LIMIT_S,
    )


def losses(root: Path) -> dict[int, float]:
    """The loss of every step, from the run's own file."""
    return {line["step"]: line["loss"] for line in read_metrics(root / "run" / "metrics.jsonl")}


@pytest.mark.filterwarnings("ignore")  # warnings of MLflow and of what it imports are not ours to heed
def test_mlflow_holds_every_number_of_every_step(root: Path) -> None:
    tracking: Any = pytest.importorskip("mlflow.tracking")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    command_line(root, mlflow_uri=uri)
    client = tracking.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("cong").experiment_id])
    assert (run.info.run_name, run.info.status) == ("a-run", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {one.step: one.value for one in history} == losses(root)
    # Started again, a name joins what went before.
    again = MLflow(uri, "a-run")
    again.log(99, {"loss": 0.5})
    again.close()
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert client.get_metric_history(run.info.run_id, "loss")[-1].step == 99


def test_what_mlflow_refuses_names_the_setting() -> None:
    pytest.importorskip("mlflow.tracking")
    with pytest.raises(ConfigError, match=r"train\.logging\.mlflow_uri is 'nonsense://here'"):
        MLflow("nonsense://here", "a-run")


def test_wandb_writes_every_step_into_the_run_folder(root: Path) -> None:
    pytest.importorskip("wandb")
    command_line(root, wandb_project="cong")
    (file,) = (root / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.name == "run-a-run.wandb"
    content = file.read_bytes()
    assert all(name in content for name in (b"loss", b"grad_norm", b"learning_rate", b"zero_stage"))
    for loss in losses(root).values():
        assert str(loss).encode() in content
