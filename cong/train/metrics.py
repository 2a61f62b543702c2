"""Where a run's numbers go: a line of JSON per step, TensorBoard, and trackers of others where they are asked for.

Only rank 0 has one. Knows neither what is trained nor how.
"""

import importlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cong.config.train import LoggingSettings
from cong.errors import ConfigError, MissingExtra
from cong.files import naming, write_file

Values = Mapping[str, float | int]


class Tracker(Protocol):
    """Takes numbers of steps."""

    def log(self, step: int, values: Values) -> None:
        """Numbers of a step by name."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class JsonLines:
    """`metrics.jsonl`: one object per line, `step` in each."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Steps from `first_step` on are about to be trained again: their lines go."""
        kept = [line for line in read_metrics(path) if int(line["step"]) < first_step]
        write_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, values: Values) -> None:
        """One line, readable by others at once."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Force what is there to disk."""
        with naming(self._path):
            os.fsync(self._file.fileno())
            self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file; a torn last one is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            return
        yield found


class TensorBoard:
    """Event files that TensorBoard reads.

    The thread that trains writes them. tensorboardX's own ends where the disk is full, and whoever hands it
    more numbers after that waits for ever.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Steps from `first_step` on are about to be trained again: TensorBoard hides what it has of them."""
        self._folder = folder
        files = _package("tensorboardX.event_file_writer", "train")
        self._events = importlib.import_module("tensorboardX.proto.event_pb2")
        self._summaries = importlib.import_module("tensorboardX.proto.summary_pb2")
        folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX names a file by the second, and would write over that of a run stopped and begun again in one.
        with naming(folder):
            self._writer: Any = files.EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._write(first_step, session_log=self._events.SessionLog(status=self._events.SessionLog.START))

    def log(self, step: int, values: Values) -> None:
        """One scalar per name, readable by others at once."""
        scalar = self._summaries.Summary.Value
        named = [scalar(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._write(step, summary=self._summaries.Summary(value=named))

    def close(self) -> None:
        """Nothing more will come."""
        with naming(self._folder):
            self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        with naming(self._folder):
            self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, **what))
            self._writer.flush()


class WandB:
    """A run of Weights & Biases; the same name joins what went before."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = _package("wandb", "trackers")
        try:
            self._run: Any = wandb.init(
                project=project, id=name, name=name, dir=str(folder), config=dict(config), resume="allow"
            )
        except wandb.Error as error:
            raise ConfigError(
                f"train.logging.wandb_project is {project!r}, and Weights & Biases cannot be used: {error}; log in, or "
                "set WANDB_MODE=offline to write into the run's folder"
            ) from error

    def log(self, step: int, values: Values) -> None:
        """Numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow; the same name joins what went before."""

    def __init__(self, uri: str, name: str) -> None:
        tracking = _package("mlflow.tracking", "trackers")
        self._entities = importlib.import_module("mlflow.entities")
        try:
            self._client: Any = tracking.MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name("cong")
            experiment = self._client.create_experiment("cong") if found is None else found.experiment_id
            runs = self._client.search_runs(
                [experiment], filter_string=f"attributes.run_name = '{name}'", max_results=1
            )
            self._run_id = (runs[0] if runs else self._client.create_run(experiment, run_name=name)).info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        except importlib.import_module("mlflow.exceptions").MlflowException as error:
            raise ConfigError(f"train.logging.mlflow_uri is {uri!r}, and MLflow refuses it: {error}") from error

    def log(self, step: int, values: Values) -> None:
        """Numbers of a step, in one request."""
        now_ms = time.time_ns() // 1_000_000
        metrics = [self._entities.Metric(name, float(value), now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(extra, name.partition(".")[0]) from error


def has_tensorboard() -> bool:
    """Whether the package that writes event files is there."""
    return importlib.util.find_spec("tensorboardX") is not None


def open_trackers(
    settings: LoggingSettings, folder: Path, first_step: int, config: Mapping[str, Any]
) -> Sequence[Tracker]:
    """Everything that the settings ask for; what is asked for by name and not installed is refused."""
    name = settings.run_name or folder.resolve().name
    trackers: list[Tracker] = []
    try:
        if settings.has_tensorboard and has_tensorboard():
            trackers.append(TensorBoard(folder / "tensorboard", first_step))
        if settings.wandb_project:
            trackers.append(WandB(settings.wandb_project, name, folder, config))
        if settings.mlflow_uri:
            trackers.append(MLflow(settings.mlflow_uri, name))
        trackers.append(JsonLines(folder / "metrics.jsonl", first_step))
    except BaseException:
        for tracker in trackers:
            tracker.close()
        raise
    return trackers
