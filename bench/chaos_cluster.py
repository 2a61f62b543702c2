"""Several machines of this computer with a Ray of their own, a pair served on them, and the lab's pipeline as a job.

What is needed to hurt them: who is killed is named by kind, and found by the titles of processes.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from bench.processes import family
from cong.config import LabConfig, RunConfig
from cong.config.loading import check
from jobs.machine import Machine, joined

KINDS = ("driver", "replica", "worker", "sampler", "trainer")
"""The last two are machines."""
LIMIT_S = 600.0
"""Longest wait for anything; reached only where something is broken."""
_TITLE_BYTES = 400
_AT_WORK = ("RayTrainWorker", "_perform")
"""Processes that do a stage: one of several that train, or one that samples or judges."""


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
        from serve.__main__ import DEFAULT_FILE
        from serve.files import read_serve_file
        from serve.local import deploy, wait_answering, wait_running
        from serve.ports import free_port

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
        wait_answering(file.url, LIMIT_S)
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

    def jobs(self) -> list[str]:
        """Every job that was submitted."""
        from ray.job_submission import JobSubmissionClient

        listed = JobSubmissionClient(self.head.dashboard_url).list_jobs()
        return [one.submission_id for one in listed if one.submission_id]

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
