"""The pipeline on a cluster of several machines, killed again and again, against the same pipeline left alone.

    python -m bench.chaos --kills 10 --seed 0 --json docs/results/chaos.json
    python -m bench.chaos --plan sampler trainer

Both run on one cluster of this computer: a head, two machines that sample and two that train, each with a Ray of its
own. The pair is served by Ray Serve; the pipeline is a job that samples through the service, trains with DeepSpeed on
two workers while samples still come, and judges. What is killed: the job's driver, the replica that answers, a worker
that trains, samples or judges, or a whole machine of either kind, which another one replaces. After each kill the
pipeline is submitted again, which does nothing where it still runs. In the end both must hold the same samples,
networks and rewards.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from bench.processes import family
from bench.workload import conditions, write_json
from cong.config import LabConfig, RunConfig
from cong.config.loading import check
from jobs.machine import Machine, joined
from serve.private import make_private

KINDS = ("driver", "replica", "worker", "sampler", "trainer")
"""The last two are machines."""
LIMIT_S = 600.0
"""Longest wait for anything; reached only where something is broken."""
_POLL_S = 0.1
_FOUND_WITHIN_S = 60.0
_TITLE_BYTES = 400
_AT_WORK = ("RayTrainWorker", "_perform")
"""Processes that do a stage: one of several that train, or one that samples or judges."""


@dataclass
class Kill:
    """One of them, and what came of it."""

    kind: str
    share: float
    """Of the files that an undisturbed run leaves, when it came."""
    during: tuple[str, ...]
    """Stages that were begun and not complete."""
    came_too_late: bool = False
    """The pipeline was done, and nothing was killed."""
    was_resubmitted: bool = False
    """The job had ended and another one went on."""
    answered_again_s: float | None = None
    """From the kill of a replica or of its machine to the next sample."""


@dataclass(frozen=True)
class Work:
    """How much the pipeline has to do."""

    num_prompts: int = 256
    num_pairs: int = 64
    num_held_out: int = 32
    max_tokens: int = 24


def configuration(work: Work, folder: Path, name: str) -> RunConfig:
    """The lab's pipeline in small, as a job of this cluster."""
    world, plain = folder / "world", {"temperature": 1.0, "max_tokens": work.max_tokens}
    content: dict[str, Any] = {
        "output_dir": str(folder / name),
        "cache_dir": str(folder / name / "cache"),
        "num_threads": 1,
        "models": {
            "base": {"source": str(world / "weak-base")},
            "strong": {"source": str(world / "strong-base")},
            "dtype": "float32",
        },
        "sampling": {"alpha": 0.4, "max_tokens": work.max_tokens},
        "engine": {"kv_memory_bytes": 20_000_000, "kernel": "torch"},
        "stream": {"write": {"max_age_s": 0.2, "rows_per_segment": 16}, "read": {"shuffle_rows": 16}},
        "train": {
            "backend": "deepspeed",
            "deepspeed": {"zero_stage": 2, "timeout_s": 60.0},
            "batches": {"batch_size": 8, "max_tokens_per_micro_batch": 512, "max_example_tokens": 64},
            "schedule": {"num_warmup_steps": 1},
            "precision": "float32",
            "checkpoints": {"every_steps": 4},
            "logging": {"has_tensorboard": False, "has_plots": False},
        },
        "training_job": {
            "num_workers": 2,
            "resources_per_worker": {"trainer": 1},
            "placement": "STRICT_SPREAD",
            "takeover_s": 6.0,
            "max_failures": 20,
        },
        "sampling_job": {"in_flight": 8},
        "pipeline": {
            "methods": ["cong"],
            "overlaps": True,
            "prompts": {"source": str(world / "prompts.jsonl")},
            "preferences": str(world / "preferences.jsonl"),
            "own_sampling": {**plain, "seed": 50},
            "align": {"objective": {"name": "dpo", "parameters": {"beta": 1.0}}, "learning_rate": 3e-4},
            "imitate": {"learning_rate": 2e-4, "num_epochs": 1},
            "prefer": {"learning_rate": 3e-4},
        },
        "evaluation": {
            "prompts": str(world / "held-out.jsonl"),
            "sampling": {"max_tokens": work.max_tokens},
            "judges": {"gold": {"kind": "program", "function": "cong.lab.world:gold_reward"}},
            "num_resamples": 100,
        },
    }
    return check(RunConfig, content, "chaos")


def make_pair(work: Work, folder: Path) -> str:
    """The lab's files, and its weak model aligned in this process; returns where that lies."""
    from cong.lab.cache import Cache
    from cong.lab.export import export_world
    from cong.pipeline import Board, run_pipeline

    lab = {
        "num_training_prompts": work.num_prompts,
        "alignment": {"num_pairs": work.num_pairs},
        "evaluation": {"num_prompts": work.num_held_out},
    }
    export_world(LabConfig.model_validate(lab), Cache(folder / "cache"), folder / "world")
    config = configuration(work, folder, "pair")
    config = config.model_copy(update={"train": config.train.model_copy(update={"backend": "torch"})})
    run_pipeline(config, until="align-weak")
    (made,) = [one for one in Board(config).survey() if one.stage.name == "align-weak"]
    assert made.marker is not None
    assert made.folder is not None
    return made.marker.product(made.folder).location


class Cluster:
    """Machines of this computer, a pair served on them, and a pipeline that runs there as a job."""

    def __init__(self, work: Work, folder: Path, private: Path, aligned: str) -> None:
        self._work = work
        self._folder = folder
        self._private = private
        self._aligned = aligned
        # Ray looks at its workers more often than it does by itself.
        environment = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
        self.head = Machine(private, "head", num_cpus=0, has_dashboard=True, environment=environment)
        self._machines: dict[str, list[Machine]] = {"sampler": [], "trainer": []}
        self._num_made = 0
        self.url = ""

    def add(self, kind: str) -> None:
        """One more machine."""
        self._num_made += 1
        name = f"{kind}-{self._num_made}"
        machine = Machine(self._private, name, self.head, num_cpus=2, resources={kind: 1})
        self._machines[kind].append(machine.start())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything up; and gone afterwards."""
        try:
            self.head.start()
            for kind in ("sampler", "trainer"):
                for _ in range(2):
                    self.add(kind)
            with joined(self.head.address):
                self._serve()
                yield
        finally:
            for machine in (*self._machines["sampler"], *self._machines["trainer"], self.head):
                machine.stop()

    def _serve(self) -> None:
        from jobs.machine import free_port
        from serve.__main__ import DEFAULT_FILE
        from serve.files import read_serve_file
        from serve.local import deploy, wait_running

        config = self.config("none")
        settings = {
            "uses_lab_pair": False,
            "models.aligned.source": self._aligned,
            "models.base.source": config.models.base.source,
            "models.dtype": config.models.dtype,
            "sampling.max_tokens": self._work.max_tokens,
            "output_dir": str(self._folder / "serve"),
            "resources.custom.sampler": 1,
            # Slow enough that there is something to interrupt.
            "engine.max_running": 4,
        }
        file = read_serve_file(
            DEFAULT_FILE, [f"{key}={json.dumps(value)}" for key, value in settings.items()], {"port": free_port()}
        )
        deploy(file)
        wait_running(file.name, LIMIT_S)
        self.url = file.url

    def config(self, name: str) -> RunConfig:
        """A pipeline of this cluster in a folder of its own."""
        config = configuration(self._work, self._folder, name)
        pipeline = config.pipeline.model_copy(update={"url": self.url})
        models = config.models.model_dump() | {"aligned": {"source": self._aligned}}
        return config.model_copy(update={"pipeline": pipeline, "models": type(config.models).model_validate(models)})

    # The job.

    def submit(self, config: RunConfig) -> str:
        """Submit it, unless it runs; returns the job's name."""
        from jobs.submit import submit

        said = StringIO()
        with redirect_stdout(said):
            submit(config, self.head.dashboard_url, "pipeline", 10.0)
        return said.getvalue().split()[1]

    def job(self, name: str) -> Any:
        """What the cluster knows of it."""
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.head.dashboard_url).get_job_info(name)

    def log(self, name: str) -> str:
        """What the job has said."""
        from ray.job_submission import JobSubmissionClient

        return str(JobSubmissionClient(self.head.dashboard_url).get_job_logs(name))

    # Killing.

    def kill(self, kind: str) -> bool:
        """End one of them at once; False where there is none at the moment."""
        if kind in self._machines:
            # Of the samplers the one that answers, so that somebody notices.
            machines = self._machines[kind]
            busy = [one for one in machines if _titled(one.pid, "ServeReplica", *_AT_WORK)]
            if kind == "trainer" and not busy:
                return False
            victim = (busy or machines)[0]
            machines.remove(victim)
            victim.lose()
            return True
        root = self.head.pid if kind == "driver" else None
        roots = [root] if root else [one.pid for many in self._machines.values() for one in many]
        titles = {"driver": ("jobs.pipeline",), "replica": ("ServeReplica",), "worker": _AT_WORK}[kind]
        found = [pid for each in roots for pid in _titled(each, *titles)]
        if not found:
            return False
        for pid in found if kind == "driver" else found[:1]:
            os.kill(pid, signal.SIGKILL)
        return True

    def answers(self) -> bool:
        """Whether a sample is drawn."""
        import httpx

        body = {"prompt": "Sdbgaf=", "parameters": {"max_tokens": 2}}
        try:
            return httpx.post(f"{self.url}/sample", json=body, timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False


def _titled(root: int, *titles: str) -> list[int]:
    """Processes below one that are called so."""
    found = []
    for pid in family(root)[1:]:
        try:
            name = (Path("/proc") / str(pid) / "cmdline").read_bytes()[:_TITLE_BYTES].replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        if any(title in name for title in titles):
            found.append(pid)
    return found


# What a run has and leaves.


def num_files(config: RunConfig) -> int:
    """Grows with every segment and mark; files that vanish while it looks do not matter."""
    return sum(len(files) for folder, _, files in os.walk(config.output_dir / "stages") if "checkpoints" not in folder)


def under_way(config: RunConfig) -> tuple[str, ...]:
    """Stages that were begun and are not complete."""
    stages = config.output_dir / "stages"
    begun = {path.parent for path in stages.glob("*/*/begun.json")}
    return tuple(sorted(path.parent.name for path in begun if not (path / "complete.json").exists()))


def has_sampled(config: RunConfig, num_records: int) -> bool:
    """Whether so many contrastive samples are in the stream."""
    from cong.stream import list_stream, open_store

    streams = (config.output_dir / "stages" / "sample").glob("*/stream")
    return sum(list_stream(open_store(str(one))).num_rows for one in streams) >= num_records


def has_saved(config: RunConfig) -> bool:
    """Whether a training is under way that has a checkpoint."""
    stages = config.output_dir / "stages"
    saved = {path.parents[2] for path in stages.glob("*/*/checkpoints/step-*/COMMITTED")}
    return any(not (folder / "complete.json").exists() for folder in saved)


def result_of(config: RunConfig) -> dict[str, Any]:
    """What two runs must have in common."""
    from cong.pipeline import Board
    from cong.stream import StreamReader, open_store
    from cong.stream.verify import verify

    found: dict[str, Any] = {"keys": {}, "networks": {}, "rewards": {}, "problems": []}
    for one in Board(config).survey():
        assert one.state == "done", f"{one.stage.name} is {one.state}: {one.reason}"
        assert one.folder is not None
        assert one.marker is not None
        if one.stage.kind == "sample":
            store = open_store(str(one.folder / "stream"))
            found["problems"] += [str(problem) for problem in verify(store).problems]
            found["keys"][one.stage.name] = [record.key for record in StreamReader(store).records()]
        elif one.stage.kind == "train":
            found["networks"][one.stage.name] = one.marker.fingerprint
        elif one.stage.kind == "evaluate":
            judged = json.loads((one.folder / "evaluation.json").read_text())
            found["rewards"] = {each["candidate"]: each["rewards"]["gold"] for each in judged["sets"]}
    return found


def eventually(is_so: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """The first true value within the limit."""
    until_s = time.monotonic() + limit_s
    while not (found := is_so()):
        if time.monotonic() > until_s:
            raise TimeoutError(f"not within {limit_s:g} s: {what}")
        time.sleep(_POLL_S)
    return found


# Runs.


def finish(cluster: Cluster, config: RunConfig) -> None:
    """Submit until it has succeeded."""
    for _ in range(5):
        name = cluster.submit(config)
        eventually(lambda name=name: cluster.job(name).status.is_terminal(), f"the end of {name}")
        status = cluster.job(name).status.value
        if status == "SUCCEEDED":
            return
        print(f"{name} has {status.lower()}:\n{cluster.log(name)[-1500:]}", file=sys.stderr)
    raise RuntimeError("it fails again and again")


def disturb(cluster: Cluster, config: RunConfig, kind: str, is_time: Callable[[], bool], total: int) -> Kill:
    """Wait for the moment, kill, replace what is gone, and submit again."""
    name = cluster.submit(config)
    until_s = time.monotonic() + LIMIT_S
    while not is_time() and not cluster.job(name).status.is_terminal():
        if time.monotonic() > until_s:
            raise TimeoutError(f"the moment for {kind} does not come; {cluster.log(name)[-1500:]}")
        time.sleep(_POLL_S)
    until_s = time.monotonic() + _FOUND_WITHIN_S
    while not cluster.kill(kind):
        status = cluster.job(name).status
        if status.value == "SUCCEEDED":
            return Kill(kind, 1.0, (), came_too_late=True)
        if status.is_terminal():
            # It has ended by itself; the next submission goes on.
            name, until_s = cluster.submit(config), time.monotonic() + _FOUND_WITHIN_S
        elif time.monotonic() > until_s:
            kind, until_s = "driver", time.monotonic() + _FOUND_WITHIN_S  # nobody trains at the moment
        time.sleep(_POLL_S)
    killed_s = time.monotonic()
    kill = Kill(kind, round(num_files(config) / total, 3), under_way(config))
    if kind in ("replica", "sampler"):
        eventually(cluster.answers, "an answer of the service")
        kill.answered_again_s = round(time.monotonic() - killed_s, 1)
    if kind in ("sampler", "trainer"):
        cluster.add(kind)
    if kind == "driver":
        eventually(lambda: cluster.job(name).status.is_terminal(), "the end of a job without a driver")
    kill.was_resubmitted = cluster.submit(config) != name
    print(f"{kill}", file=sys.stderr, flush=True)
    return kill


def chaos(work: Work, plan: list[str], seed: int, *, is_timed: bool, folder: Path) -> dict[str, Any]:
    """Both runs on one cluster, and what they have in common. `is_timed`: kills at random moments of the whole run;
    otherwise each where it hurts."""
    with tempfile.TemporaryDirectory(prefix="cx-", dir="/tmp", ignore_cleanup_errors=True) as private:
        make_private(Path(private))
        os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        os.environ["OMP_NUM_THREADS"] = "1"
        aligned = make_pair(work, folder)
        cluster = Cluster(work, folder, Path(private), aligned)
        with cluster.running():
            alone, killed = cluster.config("undisturbed"), cluster.config("killed")
            started_s = time.monotonic()
            finish(cluster, alone)
            seconds = {"undisturbed": round(time.monotonic() - started_s, 1)}
            total, rng = num_files(alone), random.Random(seed)
            print(f"undisturbed: {seconds['undisturbed']} s, {total} files", file=sys.stderr, flush=True)
            kills = []
            started_s = time.monotonic()
            for number, kind in enumerate(plan):
                goal = round(0.8 * total * (number + rng.random()) / len(plan))

                def at_random(goal: int = goal) -> bool:
                    return num_files(killed) >= goal

                def where_it_hurts(kind: str = kind) -> bool:
                    if kind in ("replica", "sampler"):
                        return has_sampled(killed, work.num_prompts // 4)
                    return has_saved(killed) if kind in ("worker", "trainer") else num_files(killed) > 4

                is_time = at_random if is_timed else where_it_hurts
                kills.append(disturb(cluster, killed, kind, is_time, total))
            finish(cluster, killed)
            seconds["killed"] = round(time.monotonic() - started_s, 1)
            left, right = result_of(alone), result_of(killed)
            resumed = sum(cluster.log(each).count("going on from step") for each in cluster_jobs(cluster))
    return {
        "seed": seed,
        "plan": plan,
        "work": asdict(work),
        "seconds": seconds,
        "kills": [asdict(kill) for kill in kills],
        "num_resumed_trainings": resumed,
        "num_samples": {stage: len(keys) for stage, keys in left["keys"].items()},
        "same_keys": {stage: set(keys) == set(right["keys"][stage]) for stage, keys in left["keys"].items()},
        "same_order": left["keys"] == right["keys"],
        "no_key_twice": all(len(keys) == len(set(keys)) for keys in right["keys"].values()),
        "problems_of_streams": right["problems"],
        "same_networks": left["networks"] == right["networks"],
        "same_rewards": left["rewards"] == right["rewards"],
        "rewards": left["rewards"],
    }


def cluster_jobs(cluster: Cluster) -> list[str]:
    """Every job that was submitted."""
    from ray.job_submission import JobSubmissionClient

    return [
        one.submission_id for one in JobSubmissionClient(cluster.head.dashboard_url).list_jobs() if one.submission_id
    ]


def main() -> int:
    """Run it; the exit code is 0 where both runs end the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plan", nargs="+", choices=KINDS, help="these, each where it hurts, in place of random ones")
    parser.add_argument("--prompts", type=int, default=Work.num_prompts)
    parser.add_argument("--folder", type=Path, help="keep everything here (default: a temporary folder)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plan = options.plan or [KINDS[number % len(KINDS)] for number in range(options.kills)]
    if not options.plan:
        random.Random(options.seed).shuffle(plan)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        work = Work(num_prompts=options.prompts)
        result = chaos(work, plan, options.seed, is_timed=not options.plan, folder=folder.resolve())
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    result |= {"conditions": conditions()}
    print(json.dumps(result, indent=1))
    if options.json is not None:
        write_json(options.json, result)
    same = [*result["same_keys"].values(), *(result[f"same_{what}"] for what in ("order", "networks", "rewards"))]
    return 0 if all([*same, result["no_key_twice"], not result["problems_of_streams"]]) else 1


if __name__ == "__main__":
    sys.exit(main())
