"""The whole method on a cluster: `python -m jobs.pipeline --config run.yaml`, here or by `ray job submit`.

Stages that train go to Ray Train's workers, the others to a worker of their own; this process only conducts. Killed at
any moment and started again it makes what is missing. Exit codes: 0 everything is done, 1 a stage failed for a reason
that may pass, 2 wrong settings, 3 stopped before the end; after 1 and 3 run it again.
"""

import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cong.cli.config import add_config_options, resolve_config
from cong.cli.parser import Parser
from cong.cli.pipeline import add_until, print_forecast, print_plan, tell
from cong.config import RunConfig
from cong.errors import CongError, PipelineError
from cong.pipeline import Running, Task, run_pipeline
from cong.pipeline.stopping import StoppedEarly
from cong.telemetry import configure_logging
from cong.train.stopping import StopRequest
from cong.wording import require_installed, told_by_the_machine
from jobs import connection
from jobs.claim import Interrupted
from jobs.planning import placed, require_backend, require_storage
from jobs.train import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_WRONG, Failed, Job

_LOOK_S = 0.5

logger = logging.getLogger("jobs.pipeline")


class OnCluster:
    """Does tasks on the cluster that this process is connected to."""

    def __init__(self, folder: Path) -> None:
        """`folder`: what relative places of inputs start from, on the machines that see it."""
        self._folder = folder

    def start(self, task: Task, stop: StopRequest) -> Running:
        """Begin a task."""
        if task.kind == "train":
            return _Training(task, self._folder, stop)
        return _Remote(task, self._folder, stop)

    def can_do_together(self, tasks: Sequence[Task]) -> bool:
        """Whether the cluster is large enough for all of them; what none of it has yet may still come."""
        import ray

        there: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        wanted = [needs_of(task) for task in tasks]
        for name in {name for each in wanted for name in each}:
            amounts = [each[name] for each in wanted if name in each]
            if len(amounts) > 1 and sum(amounts) > there.get(name, 0.0):
                logger.info(
                    "%s run one after another: together they need %g %s, and the cluster has %g",
                    " and ".join(task.stage for task in tasks),
                    sum(amounts),
                    name,
                    there.get(name, 0.0),
                )
                return False
        return True


def needs_of(task: Task) -> dict[str, float]:
    """What Ray sets aside for a task, all of its workers together."""
    job = task.config.training_job
    if task.kind == "train":
        return {name: amount * job.num_workers for name, amount in job.resources.items()}
    # Who only asks a service needs no place that somebody could train on.
    return {} if task.kind == "sample" and task.config.sampling_job.url else dict(job.resources)


class _Training:
    """Ray Train at work; its driver is a thread of this process."""

    def __init__(self, task: Task, folder: Path, stop: StopRequest) -> None:
        self._task = task
        self._stop = stop
        self._own_stop = StopRequest()
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._job = Job(task.config, folder)
        self._thread = threading.Thread(target=self._run, name=task.stage, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._job.run(self._own_stop)
        except BaseException as error:  # noqa: BLE001
            # Raised again by whoever waits.
            self._error = error

    def wait(self) -> None:
        """Until the last checkpoint is committed and the network exported."""
        while self._thread.is_alive():
            if self._stop.is_set:
                self._own_stop.set()
            self._thread.join(_LOOK_S)
        if isinstance(self._error, Interrupted):
            raise StoppedEarly from self._error
        if self._error is not None:
            raise self._error
        if self._outcome is None or not self._outcome.is_finished:
            raise StoppedEarly

    def end(self) -> None:
        """Ask it to stop; Ray Train's workers save and leave."""
        self._own_stop.set()
        self._thread.join()


class _Remote:
    """A worker of its own."""

    def __init__(self, task: Task, folder: Path, stop: StopRequest) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task.save()
        needs = needs_of(task)
        self._task = task
        self._stop = stop
        options: dict[str, Any] = {
            "num_cpus": needs.pop("CPU", 0.0),
            "num_gpus": needs.pop("GPU", 0.0),
            "resources": needs,
            "max_retries": 0,
        }
        if not needs and not options["num_cpus"]:
            # It ends with its driver in any case, so it does not depend on a second machine.
            here = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
        self._reference = ray.remote(_perform).options(**options).remote(str(task.folder), str(folder))

    def wait(self) -> None:
        """Until what it makes is there."""
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        while not ray.wait([self._reference], timeout=_LOOK_S)[0]:
            if self._stop.is_set:
                ray.cancel(self._reference)
        try:
            problem = ray.get(self._reference)
        except (TaskCancelledError, KeyboardInterrupt) as error:
            raise StoppedEarly from error
        except RayTaskError as error:
            raise Failed(f"{self._task.stage}: {error}") from error
        except RayError as error:
            raise Failed(f"{self._task.stage}: its worker is gone: {error}") from error
        if problem:
            raise PipelineError(f"{self._task.stage}: {problem}")

    def end(self) -> None:
        """Interrupt it; what it has written stays."""
        import ray

        ray.cancel(self._reference, force=True)


def _perform(folder: str, origin: str) -> str:
    """On a worker: do the task of a folder; returns what a user has to change, or nothing."""
    import torch

    from cong.pipeline.work import perform

    configure_logging()
    if os.path.isdir(origin):
        os.chdir(origin)
    task = Task.load(Path(folder))
    if task.config.num_threads:
        torch.set_num_threads(task.config.num_threads)
    try:
        with told_by_the_machine():
            perform(task, StopRequest())
    except CongError as error:
        return str(error)
    return ""


def run(config: RunConfig, *, is_local: bool, until: str = "") -> int:
    """Run the pipeline; returns the exit code."""
    folder = Path.cwd()
    config = placed(config, folder, is_unpacked=connection.is_unpacked(folder))
    require_storage(config)
    connection.warn_of_early_kill("training_job.grace_s", config.training_job.grace_s)
    with connection.connected(config, is_local=is_local), StopRequest() as stop:
        outcome = run_pipeline(config, OnCluster(folder), stop=stop, until=until)
    tell(outcome)
    return EXIT_DONE if outcome.is_finished else EXIT_STOPPED


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = Parser(prog="python -m jobs.pipeline", description="The whole method on a Ray cluster.")
    add_config_options(parser)
    add_until(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="start a private Ray on this machine")
    connection.add_submit(where)
    arguments = parser.parse_args(argv)
    configure_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every request
    try:
        with told_by_the_machine():
            config = resolve_config(arguments)
            require_backend(config)
            if arguments.dry_run:
                print_forecast(config)
                return print_plan(config)
            if arguments.submit is not None:
                from jobs.submit import submit

                until = ["--until", arguments.until] if arguments.until else []
                return submit(config, arguments.submit, "pipeline", config.training_job.grace_s, until)
            require_installed("report", "matplotlib", "jinja2")
            return run(config, is_local=arguments.local, until=arguments.until)
    except Failed as error:
        print(f"jobs.pipeline: {error}; run it again to go on", file=sys.stderr)
        return EXIT_FAILED
    except CongError as error:
        print(f"jobs.pipeline: {error}", file=sys.stderr)
        return EXIT_WRONG


if __name__ == "__main__":
    sys.exit(main())
