"""The real stack on this machine by one command: `python -m jobs.demo`, which `make demo` runs.

Starts a Ray that nobody else uses, submits the pipeline as a job until the weak pair is there, serves the pair, submits
the rest of the pipeline against that service, shows what came out, and ends what it started, whatever happens. Started
again after a stop it goes on. Exit codes: 0 done, 1 a job failed, 2 wrong settings, 130 stopped.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from cong.cli.parser import Parser
from cong.config import RunConfig, load_config
from cong.errors import CongError
from cong.files import make_folder
from cong.wording import brought_by, require_installed
from jobs.followed import JobFailed, Jobs
from jobs.machine import Machine, joined
from jobs.planning import placed
from jobs.screen import Screen
from serve.ports import free_port
from serve.private import make_private

EXIT_DONE, EXIT_FAILED, EXIT_WRONG, EXIT_STOPPED = 0, 1, 2, 130

_ROOT = Path(__file__).parent.parent
CONFIGS = (_ROOT / "configs" / "lab-pipeline.yaml", _ROOT / "configs" / "lab-cluster.yaml")
PAIR = "align-weak"
"""The stage after which there is a pair to serve."""
_TRAINER, _SAMPLER = "trainer", "sampler"


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
    from serve.local import deploy, drain, wait_answering, wait_running

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

    def watch(status: str) -> None:
        screen.watch(f"the service is {status.lower()}")

    try:
        deploy(file)
        wait_running(file.name, 180.0, watch)
        wait_answering(file.url, 60.0, watch)
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
    make_folder(config.output_dir)
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
    parser = Parser(prog="python -m jobs.demo", description="The whole method in the lab's world on a Ray of its own.")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="everything goes here (default: runs/demo)")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=C", help="one setting of the pipeline"
    )
    arguments = parser.parse_args(argv)
    place = [f"output_dir={json.dumps(str(arguments.output_dir))}"] if arguments.output_dir else []
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        config = configuration(CONFIGS, [*arguments.overrides, *place])
        require_installed("report", "matplotlib", "jinja2")
        with tempfile.TemporaryDirectory(prefix="cong-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            make_private(Path(folder))
            # What a job starts as `python`, and the `ray` of this environment.
            os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
            os.environ.setdefault("OMP_NUM_THREADS", "1")
            with brought_by("dev"):
                import grpc  # noqa: F401  (Ray's client connects by it)
                import ray  # noqa: F401  (only to see that both are there)
            run(config, Path(folder))
        return EXIT_DONE
    except KeyboardInterrupt:
        print("demo: stopped; the same command goes on", file=sys.stderr)
        return EXIT_STOPPED
    except JobFailed as error:
        print(f"demo: {error}\nthe same command goes on from there", file=sys.stderr)
        return EXIT_FAILED
    except CongError as error:
        print(f"demo: {error}", file=sys.stderr)
        return EXIT_WRONG


if __name__ == "__main__":
    sys.exit(main())
