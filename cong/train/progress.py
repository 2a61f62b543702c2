"""How far a run is, and how it ended: values without torch, for whoever watches a run that others compute."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cong.train.data.feed import StepBatch


@dataclass(frozen=True)
class Progress:
    """How far a run is: everything that a checkpoint holds beside weights."""

    num_steps: int
    """Of the whole run, as planned when it began."""
    position: str
    """Where the source stands."""
    step: int = 0
    """Optimiser steps done."""
    num_examples: int = 0
    """Trained on so far."""
    num_tokens: int = 0

    @property
    def share(self) -> float:
        """Of all steps, how much lies behind."""
        return min(1.0, self.step / self.num_steps)

    def after(self, batch: "StepBatch") -> "Progress":
        """One step further."""
        return replace(
            self,
            position=batch.position,
            step=self.step + 1,
            num_examples=self.num_examples + len(batch.keys),
            num_tokens=self.num_tokens + batch.num_tokens,
        )


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    progress: Progress | None
    """None: it was asked to stop before its first step."""
    is_finished: bool
    """False: it was asked to stop, has saved its work and can go on."""
    model_folder: Path | None
    """Where the trained network lies."""
    metrics: Mapping[str, float]
    """Of the last step, and of the last evaluation under names that begin with `eval/`."""
    counts: Mapping[str, int]
    """Examples that were left out or cut, by reason."""
