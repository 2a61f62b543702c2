"""A stream to a trained network: `python -m jobs.train --config run.yaml`, in a Ray job or beside a running Ray.

Killed at any moment and started again it goes on from its last checkpoint, with as many workers as it is given then.
Exit codes: 0 trained to the end, 1 failed for a reason that may pass, 2 wrong settings, 3 stopped before the end; after
1 and 3 run it again.
"""

import logging
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cong.cli.config import add_config_options, print_config, resolve_config
from cong.cli.dry_run import print_training_estimate
from cong.cli.parser import Parser
from cong.config import RunConfig
from cong.errors import ConfigError, CongError
from cong.telemetry import Progress, configure_logging, progress
from cong.train.pace import Pace
from cong.train.progress import Outcome
from cong.train.stopping import StopRequest
from cong.wording import told_by_the_machine
from jobs import connection
from jobs.claim import Claim, Driver, Interrupted
from jobs.planning import placed, require_backend, require_storage

if TYPE_CHECKING:
    from jobs.board import News, Numbers

EXIT_DONE, EXIT_FAILED, EXIT_WRONG, EXIT_STOPPED = 0, 1, 2, 3

logger = logging.getLogger("jobs.train")

_POLL_S = 0.5


class Refused(ConfigError):
    """A worker has met what starting again cannot change."""


class Failed(CongError):
    """Training ended for a reason that may pass."""


class Job:
    """One driver of a run."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._grace_s = config.training_job.grace_s

    def run(self, stop: StopRequest) -> Outcome | None:
        """Train until the end, or until asked to stop; None where nothing was saved after that."""
        from jobs.board import open_board
        from jobs.fitting import make_trainer, prepare_folder, say_what_is_there

        config = self._config
        claim = Claim(
            config.output_dir, Driver.this(connection.submission()), config.training_job.takeover_s, lambda: stop.is_set
        )
        with claim:
            token = prepare_folder(config)
            say_what_is_there(config)
            board = open_board()
            fit = Fit(make_trainer(config, board, self._folder, token))
            return self._watch(fit, board, claim, stop)

    def _watch(self, fit: "Fit", board: Any, claim: Claim, stop: StopRequest) -> Outcome | None:
        stop_until_s: float | None = None
        with ExitStack() as stack:
            shown = _Shown(stack, f"training {self._config.train.objective.name}")
            while fit.is_running:
                if claim.loss is not None:
                    raise Failed(f"{claim.loss}; this driver ends without saving")
                if stop.is_set and stop_until_s is None:
                    stop_until_s = time.monotonic() + self._grace_s
                    logger.info("asked to stop: waiting up to %.0f s for the step and its checkpoint", self._grace_s)
                if stop_until_s is not None and time.monotonic() > stop_until_s:
                    logger.warning("nothing was saved within %.0f s of being asked to stop", self._grace_s)
                    return None
                shown.take(_ask(board, stop))
                fit.wait(_POLL_S)
            shown.take(_ask(board, stop))
            if shown.refusal is not None:
                raise Refused(shown.refusal)
            return fit.outcome()


class Fit:
    """Ray Train in a thread of its own: the main one hears signals."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fit", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._trainer.fit()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._error = error

    @property
    def is_running(self) -> bool:
        """It has not ended."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Until it ends, but no longer."""
        self._thread.join(seconds)

    def outcome(self) -> Outcome:
        """How training ended; called once it has."""
        if self._error is not None:
            raise Failed(f"training failed: {self._error}") from self._error
        outcome = self._result.return_value
        if not isinstance(outcome, Outcome):
            raise Failed("the workers ended without saying how; their logs say more")
        return outcome


class _Shown:
    """What a person sees of the workers: their log lines, and a bar from the first step on."""

    def __init__(self, stack: ExitStack, label: str) -> None:
        self._stack = stack
        self._label = label
        self._bar: Progress | None = None
        self.refusal: str | None = None

    def take(self, news: "News") -> None:
        """Show it."""
        for line in news.lines:
            logging.getLogger(line.logger).log(line.level, "%s", line.text)
        self.refusal = self.refusal or news.refusal
        if news.numbers is not None:
            self._advance(news.numbers)

    def _advance(self, numbers: "Numbers") -> None:
        if self._bar is None:
            bar = progress(self._label, numbers.num_steps, start=numbers.step - 1, unit="steps")
            self._bar = self._stack.enter_context(bar)
        pace = Pace(numbers.num_tokens, numbers.wait_s, numbers.compute_s)
        self._bar.advance(
            numbers.step - self._bar.done,  # below zero where workers have died and steps are done again
            **({} if numbers.loss is None else {"loss": numbers.loss}),
            tokens_per_s=round(pace.tokens_per_s),
            bottleneck=pace.bottleneck,
        )


def _ask(board: Any, stop: StopRequest) -> "News":
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    from jobs.board import ANSWER_LIMIT_S, News

    try:
        news: News = ray.get(board.ask.remote(stop.is_set), timeout=ANSWER_LIMIT_S)
    except GetTimeoutError:
        logger.warning("this machine is slow: no news of the workers for %.0f s", ANSWER_LIMIT_S)
        return News()
    except RayError as error:
        raise Failed(f"driver and workers cannot talk any more: {error}") from error
    return news


def report(config: RunConfig, outcome: Outcome | None) -> int:
    """Say how it went; returns the exit code."""
    if outcome is None or outcome.progress is None:
        print(f"{config.output_dir}: stopped before anything new was saved; run it again to go on")
        return EXIT_STOPPED
    step, num_steps = outcome.progress.step, outcome.progress.num_steps
    if not outcome.is_finished:
        print(f"{config.output_dir}: stopped and saved at step {step} of {num_steps}; run it again to go on")
        return EXIT_STOPPED
    left_out = ", ".join(f"{name} {number}" for name, number in outcome.counts.items() if number)
    numbers = {name: outcome.metrics[name] for name in ("loss", "eval/loss") if name in outcome.metrics}
    shown = "".join(f", {name} {value:.4g}" for name, value in numbers.items())
    print(f"trained for {step} steps on {outcome.progress.num_examples} examples{shown}")
    if left_out:
        print(f"examples: {left_out}")
    print(f"model: {outcome.model_folder}")
    return EXIT_DONE


def train(config: RunConfig, *, is_local: bool = False) -> int:
    """Run the job; returns its exit code."""
    folder = Path.cwd()
    config = placed(config, folder, is_unpacked=connection.is_unpacked(folder))
    require_storage(config)
    connection.warn_of_early_kill("training_job.grace_s", config.training_job.grace_s)
    with connection.connected(config, is_local=is_local), StopRequest() as stop:
        try:
            return report(config, Job(config, folder).run(stop))
        except Interrupted as error:
            print(f"jobs.train: {error}", file=sys.stderr)
            return EXIT_STOPPED


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = Parser(prog="python -m jobs.train", description="Train a network on a Ray cluster.")
    add_config_options(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="start a private Ray on this machine")
    connection.add_submit(where)
    arguments = parser.parse_args(argv)
    configure_logging()
    try:
        with told_by_the_machine():
            config = resolve_config(arguments)
            require_backend(config)
            if arguments.dry_run:
                print_training_estimate(config)
                return print_config(placed(config, Path.cwd()))
            if arguments.submit is not None:
                from jobs.submit import submit

                return submit(config, arguments.submit, "train", config.training_job.grace_s)
            return train(config, is_local=arguments.local)
    except Failed as error:
        print(f"jobs.train: {error}; run it again to go on from the last checkpoint", file=sys.stderr)
        return EXIT_FAILED
    except CongError as error:
        print(f"jobs.train: {error}", file=sys.stderr)
        return EXIT_WRONG


if __name__ == "__main__":
    sys.exit(main())
