"""What rank 0 shows and writes while a run goes on: the bar, the numbers of every step, and what holds it up.

An observer of the loop; knows no files but through its trackers.
"""

import time
from collections.abc import Mapping, Sequence

from cong.telemetry import Progress as Bar
from cong.train.arithmetic import StepArithmetic
from cong.train.loop import Progress, StepReport
from cong.train.metrics import Tracker

WAITING_SHARE = 0.2
"""From this share of the time on, waiting for data is called the bottleneck."""


class Monitor:
    """Numbers of the run so far, since this process began."""

    def __init__(
        self,
        trackers: Sequence[Tracker],
        bar: Bar,
        arithmetic: StepArithmetic,
        peak_per_s: float,
        every_steps: int,
    ) -> None:
        """`peak_per_s`: operations that all devices together can do."""
        self._trackers = trackers
        self._bar = bar
        self._arithmetic = arithmetic
        self._peak_per_s = peak_per_s
        self._every_steps = every_steps
        self._started_s = time.monotonic()
        self.num_tokens = 0
        self.wait_s = 0.0
        self.compute_s = 0.0
        self.operations = 0.0
        self.numbers: dict[str, float] = {}
        """Of the last step, and of the last evaluation under names that begin with `eval/`."""

    def __call__(self, progress: Progress, report: StepReport) -> None:
        """Show the step; write it if it is time."""
        operations = self._arithmetic.operations(report.num_tokens, report.num_response_tokens)
        self.num_tokens += report.num_tokens
        self.wait_s += report.wait_s
        self.compute_s += report.compute_s
        self.operations += operations
        seconds = report.wait_s + report.compute_s
        values = {
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "progress": progress.share,
            "num_examples": progress.num_examples,
            "num_tokens": progress.num_tokens,
            "num_micro_batches": report.num_micro_batches,
            "tokens_per_s": report.num_tokens / seconds if seconds else 0.0,
            "arithmetic_share": operations / seconds / self._peak_per_s if seconds and self._peak_per_s else 0.0,
            "wait_s": report.wait_s,
            "compute_s": report.compute_s,
            **report.metrics,
        }
        self.numbers |= values
        if progress.step % self._every_steps == 0 or progress.step == progress.num_steps:
            for tracker in self._trackers:
                tracker.log(progress.step, values)
        self._bar.advance(
            loss=report.loss,
            tokens_per_s=round(self.tokens_per_s),
            arithmetic=f"{100 * self.arithmetic_share:.1f}%",
            grad_norm=report.grad_norm,
            lr=report.learning_rate,
            bottleneck=self.bottleneck,
        )

    def judged(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of an evaluation."""
        named = {f"eval/{name}": value for name, value in values.items()}
        self.numbers |= named
        for tracker in self._trackers:
            tracker.log(step, named)

    @property
    def tokens_per_s(self) -> float:
        """Since this process began, waiting included and evaluation and saving left out."""
        seconds = self.wait_s + self.compute_s
        return self.num_tokens / seconds if seconds else 0.0

    @property
    def arithmetic_share(self) -> float:
        """Share of what the devices could have computed in the time."""
        seconds = self.wait_s + self.compute_s
        return self.operations / seconds / self._peak_per_s if seconds and self._peak_per_s else 0.0

    @property
    def bottleneck(self) -> str:
        """What the run waits for most: data or computing."""
        seconds = self.wait_s + self.compute_s
        return "data" if seconds and self.wait_s > WAITING_SHARE * seconds else "compute"

    def summary(self) -> dict[str, float | str]:
        """The run in numbers."""
        return {
            "seconds": round(time.monotonic() - self._started_s, 3),
            "compute_s": round(self.compute_s, 3),
            "wait_s": round(self.wait_s, 3),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "arithmetic_share": round(self.arithmetic_share, 4),
            "bottleneck": self.bottleneck,
        }
