"""Ranks as processes of their own, on a free port, each with a hard limit, none of which outlives a test."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from serve.ports import free_port

ROOT = Path(__file__).parents[3]
LAUNCH_LIMIT_S = 600.0


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a launcher tells each process."""
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
    }


def launch(
    world_size: int, *arguments: str, limit_s: float = LAUNCH_LIMIT_S, variables: Mapping[str, str] | None = None
) -> list[str]:
    """Run the worker with these arguments on every rank; returns what each one printed, or fails with it.

    `variables` go over a launcher's; an empty value takes one away.
    """
    port = free_port()
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.train.deepspeed.worker", *arguments]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={k: v for k, v in {**environment(rank, world_size, port), **(variables or {})}.items() if v},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    deadline = time.monotonic() + limit_s
    is_late = False
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=max(0.1, deadline - time.monotonic()))[0])
        except subprocess.TimeoutExpired:
            is_late = True
            process.send_signal(signal.SIGABRT)  # faulthandler prints where it stands
            outputs.append(process.communicate()[0])
    shown = "\n".join(f"--- rank {rank}:\n{output[-6000:]}" for rank, output in enumerate(outputs))
    assert not is_late, f"not done after {limit_s:.0f} s\n{shown}"
    assert not any(process.returncode for process in processes), shown
    return outputs
