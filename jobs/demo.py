"""The real stack on this machine by one command: `python -m jobs.demo`, which `make demo` runs.

Starts a Ray that nobody else uses, submits the pipeline as a job until the weak pair is there, serves the pair, submits
the rest of the pipeline against that service, shows what came out, and ends what it started, whatever happens. Started
again after a stop it goes on. Exit codes: 0 done, 1 a job failed, 2 wrong settings, 130 stopped.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape

from cong.config import RunConfig, dump_config, load_config
from cong.errors import CongError, MissingExtra
from jobs import connection
from jobs.machine import Machine, free_port, joined
from jobs.planning import placed
from serve.private import make_private

EXIT_DONE, EXIT_FAILED, EXIT_WRONG, EXIT_STOPPED = 0, 1, 2, 130

_ROOT = Path(__file__).parent.parent
CONFIGS = (_ROOT / "configs" / "lab-pipeline.yaml", _ROOT / "configs" / "lab-cluster.yaml")
PAIR = "align-weak"
"""The stage after which there is a pair to serve."""
_TRAINER, _SAMPLER = "trainer", "sampler"
_JOB_LIMIT_S = 1800.0
_READY_S = 90.0
_SAVE_S = 60.0
"""So long may a job take to save what it has when the demo is stopped."""
_NUM_TAIL = 25


class JobFailed(CongError):
    """A job of the demo did not succeed."""


class Screen:
    """What a person watches: lines with the time since the start, and below them what is going on at the moment."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._status = self._console.status("")
        self._watched = ""
        self._started_s = time.monotonic()

    def __enter__(self) -> "Screen":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    @property
    def elapsed(self) -> str:
        """Since the start."""
        minutes, seconds = divmod(round(time.monotonic() - self._started_s), 60)
        return f"{minutes}:{seconds:02d}"

    def say(self, text: str, style: str = "") -> None:
        """A line that stays."""
        self._console.print(f"[dim]{self.elapsed:>5}[/]  {escape(text)}", style=style or None)

    def watch(self, text: str) -> None:
        """What is going on; elsewhere than on a terminal a line like any other."""
        if self._console.is_terminal:
            self._status.update(f"[dim]{escape(text)}[/]")
        elif text and text != self._watched:
            self.say(f"  {text}")
        self._watched = text

    def show(self, thing: Any) -> None:
        """A table."""
        self._console.print(thing)


class Jobs:
    """`ray job submit` and what it prints."""

    def __init__(self, url: str, folder: Path, screen: Screen) -> None:
        self._url = url
        self._folder = folder
        self._screen = screen

    def run(self, name: str, config: RunConfig, *options: str) -> None:
        """Submit the pipeline and follow it to its end; stopped with whoever waits for it."""
        log = config.output_dir / f"{name}.log"
        package = self._folder / name
        package.mkdir()
        (package / "run.yaml").write_text(dump_config(config), encoding="utf-8")
        wait_s = str(round(config.training_job.grace_s + _SAVE_S))
        environment = {"env_vars": {connection.STOP_WAIT_VARIABLE: wait_s}}
        command = ["ray", "job", "submit", "--address", self._url, "--submission-id", name, "--no-wait"]
        command += ["--working-dir", str(package), "--runtime-env-json", json.dumps(environment)]
        command += ["--", "python", "-m", "jobs.pipeline", "--config", "run.yaml", *options]
        self._screen.say(f"$ ray job submit --submission-id {name} -- {' '.join(command[command.index('--') + 1 :])}")
        try:
            self._submit(command)
            with log.open("w", encoding="utf-8") as file:
                for line in self._lines(name):
                    file.write(line)
                    self._show(line.rstrip().replace(f"{config.output_dir}/", ""))
            self._require_success(name, log)
        except BaseException:
            self._stop(name)
            raise
        finally:
            self._screen.watch("")

    def _submit(self, command: Sequence[str]) -> None:
        until_s = time.monotonic() + _READY_S
        while True:
            # A session of its own: Ctrl-C is for the demo, which then ends its jobs in order.
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_READY_S, check=False, start_new_session=True
            )
            if not done.returncode:
                return
            # A Ray that has just started says so.
            if connection.TRY_AGAIN not in done.stderr or time.monotonic() > until_s:
                raise JobFailed(f"`{' '.join(command[:3])}` failed: {(done.stderr or done.stdout).strip()[-2000:]}")
            time.sleep(1.0)

    def _lines(self, name: str) -> Iterator[str]:
        """What the job says, until its end."""
        command = ["ray", "job", "logs", "--address", self._url, "--follow", name]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        guard = threading.Timer(_JOB_LIMIT_S, process.kill)
        guard.start()
        try:
            assert process.stdout is not None
            yield from process.stdout
        finally:
            guard.cancel()
            process.kill()
            process.communicate()

    def _show(self, line: str) -> None:
        """A line of a job's log, for people."""
        if found := re.fullmatch(r"\S+ \S+ (INFO|WARNING|ERROR) (cong|jobs)\.\S+: (.*)", line):
            if found[1] == "INFO":
                self._screen.say(f"  {found[3]}", "" if ": complete after" in line else "dim")
            else:
                self._screen.say(f"  {found[3]}", "yellow")
        elif re.match(r"[\w -]+: (started|done|[\d,]+ of )", line):
            self._screen.watch(line)

    def _require_success(self, name: str, log: Path) -> None:
        status = self._status(name)
        until_s = time.monotonic() + _SAVE_S
        while not status.is_terminal() and time.monotonic() < until_s:
            time.sleep(0.2)
            status = self._status(name)
        if status.value != "SUCCEEDED":
            tail = "\n".join(f"  | {line}" for line in log.read_text(encoding="utf-8").splitlines()[-_NUM_TAIL:])
            raise JobFailed(f"job {name} has {status.value.lower()}; its log is {log} and ends\n{tail}")

    def _stop(self, name: str) -> None:
        """Let it save, and wait for that."""
        from ray.job_submission import JobSubmissionClient

        with contextlib.suppress(RuntimeError, ConnectionError):
            client = JobSubmissionClient(self._url)
            if not client.get_job_status(name).is_terminal():
                self._screen.say(f"stopping job {name}; it saves what it has")
                client.stop_job(name)
            until_s = time.monotonic() + _SAVE_S
            while not client.get_job_status(name).is_terminal() and time.monotonic() < until_s:
                time.sleep(0.2)

    def _status(self, name: str) -> Any:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self._url).get_job_status(name)


def configuration(files: Sequence[Path], overrides: Sequence[str]) -> RunConfig:
    """The pipeline's configuration, in which every name is absolute: a job starts in a folder of Ray's own."""
    config = placed(load_config(RunConfig, files, overrides), Path.cwd())
    world = config.output_dir / "world"
    here = {
        "models.base.source": "weak-base",
        "models.strong.source": "strong-base",
        "pipeline.prompts.source": "prompts.jsonl",
        "pipeline.preferences": "preferences.jsonl",
        "pipeline.gold_answers": "gold-answers.jsonl",
        "evaluation.prompts": "held-out.jsonl",
    }
    given = [f"{name}={json.dumps(str(world / file))}" for name, file in here.items()]
    folders = [f"{name}={json.dumps(str(getattr(config, name)))}" for name in ("output_dir", "cache_dir")]
    return load_config(RunConfig, files, [*given, *overrides, *folders])


def make_world(config: RunConfig) -> None:
    """What a user brings: two networks, prompts, preferences; and what the lab knows besides, the truth."""
    from cong.lab.cache import Cache
    from cong.lab.export import export_world

    export_world(config.lab, Cache(config.cache_dir / "lab"), config.output_dir / "world")


def pair_of(config: RunConfig) -> str:
    """The folder of the aligned weak model."""
    from cong.pipeline import Board

    (standing,) = [one for one in Board(config).survey() if one.stage.name == PAIR]
    assert standing.marker is not None, "the job has succeeded"
    assert standing.folder is not None, "the job has succeeded"
    return standing.marker.product(standing.folder).location


@contextlib.contextmanager
def served(config: RunConfig, aligned: str, screen: Screen) -> Iterator[str]:
    """The pair on Ray Serve; gives its address."""
    from serve.__main__ import DEFAULT_FILE
    from serve.files import read_serve_file
    from serve.local import deploy, drain, wait_running

    settings = {
        "uses_lab_pair": False,
        "models.aligned.source": aligned,
        "models.base.source": config.models.base.source,
        "models.dtype": config.models.dtype,
        "sampling.max_tokens": config.sampling.max_tokens,
        "output_dir": str(config.output_dir / "serve"),
        "resources.custom.sampler": 1,
    }
    overrides = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    file = read_serve_file(DEFAULT_FILE, overrides, {"port": free_port()})
    screen.say(f"deploying the pair on Ray Serve, from {DEFAULT_FILE.name}")
    try:
        deploy(file)
        wait_running(file.name, 180.0, lambda status: screen.watch(f"the service is {status.lower()}"))
        screen.say(f"the pair answers at {file.url}")
        yield file.url
    finally:
        screen.watch("the service stops")
        drain(file.name, 30.0)
        screen.say("the service has stopped")


def show_results(config: RunConfig, screen: Screen) -> None:
    """The table that a person came for, and where the rest is."""
    from cong.evaluation import EvaluationResult
    from cong.evaluation.tables import cell
    from cong.pipeline import Board
    from cong.report import Column, Table, to_rich

    (judged,) = [one.folder for one in Board(config).survey() if one.stage.name == "evaluate"]
    assert judged is not None, "the job has succeeded"
    result = EvaluationResult.model_validate_json((judged / "evaluation.json").read_bytes())
    judge = result.judges[0].name
    recovered = {one.student: one.recovered for one in result.gaps if one.judge == judge}
    rows = [[one.candidate, cell(one.rewards[judge].reward), cell(recovered.get(one.candidate))] for one in result.sets]
    columns = [Column("model", "left"), Column(f"{judge} reward [95 %]", best="max"), Column("gap recovered [95 %]")]
    screen.show(to_rich(Table(f"{result.num_prompts:,} held-out prompts", columns, rows)))


def run(config: RunConfig, folder: Path) -> None:
    """The demo, with sockets and Ray's logs in a folder."""
    config.output_dir.mkdir(parents=True, exist_ok=True)
    job = config.training_job
    resources = {_SAMPLER: 1.0, _TRAINER: float(job.num_workers)}
    num_cpus = max(os.cpu_count() or 1, round(1 + job.num_workers * job.cpus_per_worker + 0.5))
    with Screen() as screen:
        screen.say("making the lab's world: two tiny networks, prompts, preferences")
        make_world(config)
        screen.say(f"starting Ray, for this demo alone: {job.num_workers} trainers, 1 sampler")
        try:
            machine = Machine(folder, "machine", num_cpus=num_cpus, resources=resources, has_dashboard=True)
            with machine, joined(machine.address):
                # After Ray has set its own handler.
                signal.signal(signal.SIGTERM, _as_interrupt)
                jobs = Jobs(machine.dashboard_url, folder, screen)
                screen.say("aligning the weak model with Ray Train and DeepSpeed")
                jobs.run("demo-align", config, "--until", PAIR)
                with served(config, pair_of(config), screen) as url:
                    pipeline = config.pipeline.model_copy(update={"url": url})
                    jobs.run("demo-pipeline", config.model_copy(update={"pipeline": pipeline}))
                screen.watch("Ray stops")
        except JobFailed:
            with contextlib.suppress(OSError):
                kept = config.output_dir / "ray-logs"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(folder / "session_latest" / "logs", kept)
                screen.say(f"Ray's own logs: {kept}", "yellow")
            raise
        screen.say("Ray has stopped, and nothing that was started is left")
        show_results(config, screen)
        screen.say(f"report: {config.output_dir / 'report.html'}")


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.demo", description="The whole method in the lab's world on a Ray of its own."
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="everything goes here (default: runs/demo)")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=C", help="one setting of the pipeline"
    )
    arguments = parser.parse_args(argv)
    place = [f"output_dir={json.dumps(str(arguments.output_dir))}"] if arguments.output_dir else []
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        from cong.cli.pipeline import require_report

        config = configuration(CONFIGS, [*arguments.overrides, *place])
        require_report()
        with tempfile.TemporaryDirectory(prefix="cong-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            make_private(Path(folder))
            # What a job starts as `python`, and the `ray` of this environment.
            os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            run(config, Path(folder))
        return EXIT_DONE
    except KeyboardInterrupt:
        print("demo: stopped; the same command goes on", file=sys.stderr)
        return EXIT_STOPPED
    except JobFailed as error:
        print(f"demo: {error}\nthe same command goes on from there", file=sys.stderr)
        return EXIT_FAILED
    except (CongError, MissingExtra) as error:
        print(f"demo: {error}", file=sys.stderr)
        return EXIT_WRONG


if __name__ == "__main__":
    sys.exit(main())
