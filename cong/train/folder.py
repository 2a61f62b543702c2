"""A run's output folder: what lies where, who may write it, and what is put there at the beginning and at the end.

config.yaml  environment.json  run.lock     what was asked for, and on what it ran
checkpoints/  ledger/                       what a later process goes on from
metrics.jsonl  tensorboard/  curves.svg     how it went
model/  summary.json                        what came out
"""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from cong.config import RunConfig, dump_config
from cong.errors import ConfigError
from cong.files import json_bytes, open_alone, write_file
from cong.models import Network
from cong.telemetry import progress as show_progress
from cong.train.arithmetic import StepArithmetic, peak_operations_per_s
from cong.train.backend import Backend
from cong.train.checkpoint import remove_unfinished
from cong.train.curves import draw_curves
from cong.train.export import export_network, model_card, title_of
from cong.train.ledger import Ledger
from cong.train.metrics import open_trackers, read_metrics
from cong.train.monitor import Monitor
from cong.train.pace import Told
from cong.train.progress import Progress
from cong.train.recipe import Recipe
from cong.train.remote import RemoteCheckpoints
from cong.train.software import environment
from cong.train.trainee import network_settings


class RunFolder:
    """The folder of one run, on one rank; only the first writes what is for people."""

    def __init__(self, config: RunConfig, *, is_first: bool) -> None:
        self._config = config
        self._is_first = is_first
        self._lock: BinaryIO | None = None
        self.root = config.output_dir
        self.checkpoints = self.root / "checkpoints"
        self.ledger = self.root / "ledger"
        self.model = self.root / "model"
        self._metrics = self.root / "metrics.jsonl"
        self._summary = self.root / "summary.json"
        settings = config.train.checkpoints
        self.remote = RemoteCheckpoints(settings.upload, settings.storage_options) if settings.upload else None

    def __enter__(self) -> Self:
        if self._is_first:
            self._lock = _lock(self.root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def summary(self) -> str:
        """What the run was summed up with when it ended; empty where it has not, or its model is gone."""
        return self._summary.read_text(encoding="utf-8") if self.model.is_dir() and self._summary.is_file() else ""

    def begin(self) -> None:
        """From here on the folder is that of this configuration, and there is no end of the run to speak of."""
        if self._is_first:
            write_file(self.root / "config.yaml", dump_config(self._config).encode())
            write_file(self.root / "environment.json", json_bytes(environment()))
            self._summary.unlink(missing_ok=True)
            remove_unfinished(self.checkpoints)

    def new_ledger(self) -> Ledger:
        """Of a run that begins."""
        return Ledger(self.ledger)

    @contextmanager
    def monitor(
        self, progress: Progress, arithmetic: StepArithmetic, backend: Backend, *, is_quiet: bool
    ) -> Iterator[Monitor]:
        """Bar and trackers, which the first rank alone has."""
        train = self._config.train
        peak_per_s = backend.world_size * peak_operations_per_s(
            backend.device, train.precision, train.logging.peak_teraflops
        )
        config = self._config.train.model_dump(mode="json")
        # A run that begins is judged before its first step.
        first_step = progress.step + 1 if progress.step else 0
        known = Told.of(read_metrics(self._metrics), first_step) if self._is_first else Told()
        told = Told.from_json(backend.from_first(known.to_json()))
        trackers = open_trackers(train.logging, self.root, first_step, config) if self._is_first else []
        label = f"training {train.objective.name}"
        try:
            with show_progress(label, progress.num_steps, start=progress.step, unit="steps", is_quiet=is_quiet) as bar:
                yield Monitor(trackers, bar, arithmetic, peak_per_s, train.logging.every_steps, told)
        finally:
            for tracker in trackers:
                tracker.close()

    def finish(
        self,
        backend: Backend,
        network: Network,
        recipe: Recipe,
        monitor: Monitor,
        progress: Progress,
        counts: Mapping[str, int],
    ) -> Path:
        """Export the network and sum the run up; every rank calls it, the first writes."""
        if not self._is_first:
            for _ in backend.weights():
                pass
            return self.model
        source = network_settings(self._config.train, self._config.models).source
        is_here = Path(source).expanduser().exists()
        facts: dict[str, str | int | float] = {
            "network": (title_of(Path(source).expanduser()) if is_here else None) or network.name,
            "network fingerprint": network.fingerprint,
            "tokenizer fingerprint": network.tokenizer.fingerprint,
            "optimiser steps": progress.step,
            "examples": progress.num_examples,
            "tokens": progress.num_tokens,
            **{f"examples {name}": number for name, number in counts.items()},
            **environment(),
        }
        title = self._config.train.logging.card_title or self.root.resolve().name
        card = model_card(title, facts, recipe, monitor.numbers, hub_id="" if is_here else source)
        export_network(backend.weights(), self._config.train, self._config.models, self.model, card)
        if self._config.train.logging.has_plots and importlib.util.find_spec("matplotlib") is not None:
            draw_curves(self._metrics, self.root / "curves.svg")
        summary = {**monitor.summary(), "counts": dict(counts), "metrics": monitor.numbers, "step": progress.step}
        write_file(self._summary, json_bytes(summary))
        return self.model


def _lock(folder: Path) -> BinaryIO:
    """Refuse a second run in the same folder while the first is alive; the lock goes with its process."""
    try:
        return open_alone(folder / "run.lock")
    except BlockingIOError as error:
        raise ConfigError(f"another run is at work in {folder}; wait for it, or give another output_dir") from error
