"""Tokens per second of training on a CPU: our loop, TRL's trainers, and a bare forward and backward of the same tokens.

    python bench/train.py --json docs/results/train.json

Supervised fine-tuning on records of mixed lengths and DPO with log-probs of the reference at hand, on one small
network; the rows take turns, `--rounds` times. A token is one that a network has to read, padding left out. DeepSpeed
runs in one and in two processes, and says what its stages hold between two steps, when gradients are gone but for those
of stage 3; that one runs a second time with a bucket for the gradients of the whole network. Figures are medians over
all steps of all rounds.
"""

import argparse
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from trainers import Timing, bare, ours, small_network, small_work, trl_trainer
from workload import conditions, summary, write_json

Steps = Sequence[tuple[float, int, int]]
"""Seconds, tokens and response tokens of each."""

ROWS = {
    "SFT: cong": lambda: ours(small_network(), small_work(1)),
    "SFT: cong, padded": lambda: ours(small_network(), small_work(1), is_packed=False),
    "SFT: TRL": lambda: trl_trainer(small_network(), small_work(1), per_device=8),
    "SFT: forward and backward alone": lambda: bare(small_network(), small_work(1)),
    "DPO: cong": lambda: ours(small_network(), small_work(2)),
    "DPO: TRL": lambda: trl_trainer(small_network(), small_work(2), per_device=8),
}
RATIOS = {
    "SFT of TRL": ("SFT: cong", "SFT: TRL"),
    "SFT of the bare passes": ("SFT: cong", "SFT: forward and backward alone"),
    "DPO of TRL": ("DPO: cong", "DPO: TRL"),
}


def deepspeed(world_size: int, stage: int, seconds: float, *options: str) -> dict[str, Any]:
    """Our loop in so many processes, which share the threads that this one has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // world_size)
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "deepspeed_worker.py")]
    processes = [
        subprocess.Popen(
            [*command, "--stage", str(stage), "--seconds", str(seconds), *options],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": str(threads),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=180.0 + seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    said: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return said


def memory_of(said: dict[str, Any], stage: int, num_parameters: int) -> dict[str, float]:
    """Bytes a parameter between two steps, as the formula has them and as they are."""
    foretold = dict(said["foretold_bytes"])
    if stage < 3:
        del foretold["gradients"]
    return {"foretold": sum(foretold.values()) / num_parameters, "held": said["held_bytes"] / num_parameters}


def speeds(steps: Steps) -> list[float]:
    """Tokens per second of each step."""
    return [tokens / seconds for seconds, tokens, _ in steps]


def show(figures: dict[str, list[float]], memory: dict[str, dict[str, Any]]) -> None:
    """Two tables."""
    table = Table("trainer", "tokens/s", "slowest step", "fastest step", "steps")
    for name, values in figures.items():
        numbers = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{value:,.0f}" for value in numbers), str(len(values)))
    Console(width=110).print(table)
    table = Table("ZeRO stage, 2 ranks", "bytes a parameter, formula", "held by rank 0")
    for name, found in memory.items():
        table.add_row(name, f"{found['foretold']:.2f}", f"{found['held']:.2f}")
    Console(width=110).print(table)


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of counted steps, in each row and round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    started_s, before = time.perf_counter(), conditions()
    trainers: dict[str, Callable[[float], Timing]] = {name: make() for name, make in ROWS.items()}
    figures: dict[str, list[float]] = {name: [] for name in trainers}
    memory: dict[str, dict[str, Any]] = {}
    for _ in range(arguments.rounds):
        for name, train in trainers.items():
            figures[name] += speeds(train(arguments.seconds).counted)
    num_parameters = sum(weight.numel() for weight in small_network().parameters())
    for world_size, stage in ((1, 1), (2, 1), (2, 2), (2, 3)):
        said = deepspeed(world_size, stage, arguments.seconds)
        figures[f"SFT: cong, DeepSpeed, stage {stage}, {world_size} rank{'s' * (world_size > 1)}"] = speeds(
            said["steps"]
        )
        if world_size > 1:
            memory[str(stage)] = memory_of(said, stage, num_parameters)
    said = deepspeed(2, 3, arguments.seconds, "--whole-bucket")
    said["foretold_bytes"]["bucket"] = 4 * num_parameters
    memory["3, bucket of the whole network"] = memory_of(said, 3, num_parameters)
    show(figures, memory)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratios = {name: medians[one] / medians[other] for name, (one, other) in RATIOS.items()}
    print({name: round(value, 2) for name, value in ratios.items()}, f"{time.perf_counter() - started_s:.0f} s in all")
    if arguments.json:
        work = small_work(1)
        write_json(
            arguments.json,
            {
                "conditions": before,
                "work": {
                    "examples_per_step": work.batch_size,
                    "max_tokens_per_pass": work.max_tokens,
                    "mean_tokens": sum(each.num_tokens for each in work.examples) / len(work.examples),
                    "parameters": num_parameters,
                    "rounds": arguments.rounds,
                    "seconds": arguments.seconds,
                },
                "tokens_per_s": {name: summary(values) for name, values in figures.items()},
                "ratios": ratios,
                "zero_bytes_per_parameter": memory,
            },
        )


if __name__ == "__main__":
    main()
