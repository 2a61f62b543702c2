"""What rank 0 shows and writes while a run goes on: the bar, the numbers of every step, and what holds it up.

An observer of the loop; knows no files but through its trackers.
"""

from collections.abc import Mapping, Sequence

from cong.telemetry import Progress as Bar
from cong.train.arithmetic import StepArithmetic
from cong.train.loop import StepReport
from cong.train.metrics import Tracker
from cong.train.pace import EVALUATION, Pace, Told
from cong.train.progress import Progress


class Monitor:
    """Numbers of the run so far, whoever did its steps; the bar shows the pace of this process."""

    def __init__(
        self,
        trackers: Sequence[Tracker],
        bar: Bar,
        arithmetic: StepArithmetic,
        peak_per_s: float,
        every_steps: int,
        told: Told,
    ) -> None:
        """`peak_per_s`: operations that all devices together can do; `told`: by the processes before."""
        self._trackers = trackers
        self._bar = bar
        self._arithmetic = arithmetic
        self._peak_per_s = peak_per_s
        self._every_steps = every_steps
        self._of_line = Pace()
        self._of_process = Pace()
        self._of_run = told.pace
        self.judged_step = told.judged_step
        """Of the last evaluation; None where there was none."""
        self.numbers: dict[str, float] = dict(told.numbers)
        """Of the last step, and of the last evaluation under names that begin with `eval/`."""

    def __call__(self, progress: Progress, report: StepReport) -> None:
        """Show the step; write it if it is time."""
        operations = self._arithmetic.operations(report.num_tokens, report.num_response_tokens)
        peak_s = operations / self._peak_per_s if self._peak_per_s else 0.0
        pace = Pace(report.num_tokens, report.wait_s, report.compute_s, peak_s)
        self._of_line += pace
        self._of_process += pace
        self._of_run += pace
        values = {
            **report.numbers,
            "learning_rate": report.learning_rate,
            "progress": progress.share,
            "num_examples": progress.num_examples,
            "num_tokens": progress.num_tokens,
            "num_micro_batches": report.num_micro_batches,
            "tokens_per_s": self._of_line.tokens_per_s,
            "arithmetic_share": self._of_line.arithmetic_share,
            "wait_s": self._of_line.wait_s,
            "compute_s": self._of_line.compute_s,
        }
        self.numbers |= values
        if progress.step % self._every_steps == 0 or progress.step == progress.num_steps:
            self._of_line = Pace()
            for tracker in self._trackers:
                tracker.log(progress.step, values)
        self._bar.advance(
            1,
            **{name: value for name, value in report.numbers.items() if name in ("loss", "grad_norm")},
            tokens_per_s=round(self._of_process.tokens_per_s),
            arithmetic=f"{100 * self._of_process.arithmetic_share:.1f}%",
            lr=report.learning_rate,
            bottleneck=self._of_process.bottleneck,
        )

    def judged(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of an evaluation."""
        named = {f"{EVALUATION}{name}": value for name, value in values.items()}
        self.judged_step = step
        self.numbers |= named
        for tracker in self._trackers:
            tracker.log(step, named)

    def summary(self) -> dict[str, float | str]:
        """The run in numbers."""
        run = self._of_run
        return {
            "compute_s": round(run.compute_s, 3),
            "wait_s": round(run.wait_s, 3),
            "tokens_per_s": round(run.tokens_per_s, 1),
            "arithmetic_share": round(run.arithmetic_share, 4),
            "bottleneck": run.bottleneck,
        }
