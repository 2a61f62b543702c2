"""When a run is saved, and what of it beside weights: an observer of the loop that also carries the request to stop."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cong.config.train import CheckpointSettings
from cong.train.backend import Backend
from cong.train.checkpoint import remove_old
from cong.train.commit import save_checkpoint, together
from cong.train.ledger import Ledger, parts_to_json
from cong.train.loop import StepReport
from cong.train.progress import Progress
from cong.train.randomness import save_generators
from cong.train.recipe import Recipe
from cong.train.remote import RemoteCheckpoints

logger = logging.getLogger(__name__)


def generators_file(rank: int) -> str:
    """Where a rank keeps its random generators."""
    return f"generators-{rank:05d}.json"


class Saving:
    """Saves a run every so many steps and seconds, when it is asked to stop, and at its end."""

    def __init__(
        self,
        backend: Backend,
        folder: Path,
        settings: CheckpointSettings,
        ledger: Ledger,
        recipe: Recipe,
        counts: Callable[[], Mapping[str, int]],
        wants_stop: Callable[[], bool],
        remote: RemoteCheckpoints | None = None,
        saved_step: int = 0,
        on_saved: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """`on_saved` is called on every rank once a checkpoint is committed."""
        self._backend = backend
        self._folder = folder
        self._settings = settings
        self._ledger = ledger
        self._recipe = recipe
        self._counts = counts
        self._wants_stop = wants_stop
        self._remote = remote
        self._saved_step = saved_step
        self._on_saved = on_saved
        self._saved_at_s = time.monotonic()
        self.is_stopping = False
        """Every rank has heard that the run is to stop."""
        self.seconds = 0.0
        """Spent on saving."""

    def __call__(self, progress: Progress, report: StepReport) -> None:
        """Keep the step's keys, and save if it is time."""
        self._ledger.add(progress.step, report.keys)
        is_due = bool(self._settings.every_steps) and progress.step % self._settings.every_steps == 0
        # Clocks and signals differ between processes: one that says so is enough, and all hear it at the same step.
        asks = [float(self._wants_stop()), float(self._is_late())]
        stops, lates = self._backend.total(torch.tensor(asks, device=self._backend.device)).tolist()
        self.is_stopping = stops > 0
        if is_due or lates > 0 or self.is_stopping:
            self.save(progress)

    def save(self, progress: Progress) -> None:
        """Save now, unless this step is saved already."""
        if progress.step == self._saved_step:
            return
        started_s = time.monotonic()

        def state() -> dict[str, Any]:
            parts = self._ledger.write(progress.step)
            return {
                "progress": asdict(progress),
                "ledger": parts_to_json(parts),
                "counts": dict(self._counts()),
                "recipe": dict(self._recipe),
                "world_size": self._backend.world_size,
            }

        own = {generators_file(self._backend.rank): save_generators(self._backend.device)}
        target = save_checkpoint(self._backend, self._folder, progress.step, state, own)
        with together(self._backend, target):
            if self._backend.rank == 0:
                if self._remote is not None:
                    self._remote.upload(target, self._ledger.folder, self._ledger.parts)
                    self._remote.remove_old(self._settings.num_kept)
                remove_old(self._folder, self._settings.num_kept)
                logger.info("saved step %d in %s", progress.step, target)
        self._saved_step = progress.step
        self._saved_at_s = time.monotonic()
        self.seconds += self._saved_at_s - started_s
        self._on_saved(target)

    def _is_late(self) -> bool:
        every_s = self._settings.every_s
        return bool(every_s) and time.monotonic() - self._saved_at_s >= every_s
