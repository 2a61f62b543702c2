"""A training job over a stream that a test lets grow, its processes, and what it leaves."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from cong.config import RunConfig
from cong.stream import StreamWriter, open_store
from cong.train.ledger import read_ledger
from cong.train.metrics import read_metrics
from tests.train.worlds import SMALL, network_folder, run_config, sample, stream_keys

NUM_RECORDS = 48
BATCH_SIZE = 2
NUM_STEPS = NUM_RECORDS // BATCH_SIZE
CHECKPOINT_EVERY = 3
CHECKPOINTS_MIDWAY = [CHECKPOINT_EVERY, 2 * CHECKPOINT_EVERY]
NUM_RECORDS_MIDWAY = (CHECKPOINTS_MIDWAY[-1] + 1) * BATCH_SIZE
"""For two checkpoints and one step behind them: where a run waits for more, some of its work is not saved."""
LIMIT_S = 500.0
"""Longest wait for anything; reached only where something is broken."""


class GrowingStream:
    """A stream of one writer, which appends when it is told to."""

    def __init__(self, location: Path, num_records: int = NUM_RECORDS) -> None:
        self.location = location
        self._num_records = num_records
        self._num_written = 0
        self._writer = StreamWriter(open_store(str(location)), SMALL, "w")

    def grow(self, num_records: int) -> None:
        """So many more, durable on return."""
        first, self._num_written = self._num_written, self._num_written + num_records
        self._writer.append_many(
            sample(number % 200, sample_index=number // 200) for number in range(first, self._num_written)
        )
        self._writer.flush()

    def finish(self) -> None:
        """The rest."""
        self.grow(self._num_records - self._num_written)
        self._writer.close()


def job_config(root: Path, name: str, stream: Path, num_records: int = NUM_RECORDS, **sections: Any) -> RunConfig:
    """Two workers that follow a stream with ZeRO-2 and save now and then."""
    network_folder(root / "network")
    content: dict[str, Any] = {
        "backend": "deepspeed",
        "deepspeed": {"zero_stage": 2, "timeout_s": 120.0},
        "batches": {"batch_size": BATCH_SIZE},
        "checkpoints": {"every_steps": CHECKPOINT_EVERY},
        **sections.pop("train", {}),
    }
    job = {"num_workers": 2, "cpus_per_worker": 0.5, "takeover_s": 20.0, **sections.pop("training_job", {})}
    read = {"follow": {"poll_s": 0.1, "idle_timeout_s": LIMIT_S}, "max_records": num_records, "shuffle_rows": 0}
    config = run_config(
        root, content, stream={"location": str(stream), "read": read}, training_job=job, num_threads=1, **sections
    )
    return config.model_copy(update={"output_dir": root / name})


def eventually(is_so: Callable[[], Any], what: str) -> Any:
    """The first true value within the limit."""
    until_s = time.monotonic() + LIMIT_S
    while not (found := is_so()):
        assert time.monotonic() < until_s, f"not within {LIMIT_S:g} s: {what}"
        time.sleep(0.05)
    return found


def last_step(config: RunConfig) -> int:
    """That has been logged."""
    return max((int(line["step"]) for line in read_metrics(config.output_dir / "metrics.jsonl")), default=0)


def checkpoints(config: RunConfig) -> list[int]:
    """Steps of committed checkpoints, oldest first."""
    return sorted(int(path.parent.name[-8:]) for path in config.output_dir.glob("checkpoints/step-*/COMMITTED"))


def is_waiting_midway(config: RunConfig) -> bool:
    """All that NUM_RECORDS_MIDWAY gives has been trained, and what could be saved of it is."""
    return last_step(config) > CHECKPOINTS_MIDWAY[-1] and checkpoints(config) == CHECKPOINTS_MIDWAY


def workers_of(ray: psutil.Process) -> list[psutil.Process]:
    """Processes that train, below the one that has started Ray."""
    found = []
    for process in ray.children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def require_exact(config: RunConfig, stream: Path, num_steps: int = NUM_STEPS) -> None:
    """Every record was trained once, in steps without a gap."""
    steps = list(read_ledger(config.output_dir / "ledger"))
    assert [step for step, _ in steps] == list(range(1, num_steps + 1))
    trained = Counter(key for _, keys in steps for key in keys)
    assert trained == Counter(stream_keys(stream))
    assert set(trained.values()) == {1}


def arguments(config: RunConfig, folder: Path) -> Sequence[str]:
    """The configuration as a program takes it."""
    from cong.config import dump_config

    file = folder / f"{config.output_dir.name}.yaml"
    file.write_text(dump_config(config))
    return ["--config", str(file)]
