"""Tokens per second of training, ours and of trainers people use, on the same network and examples, in turn.

    python bench/train.py --json runs/bench-train.json

Every row trains the same optimiser steps of supervised fine-tuning `--rounds` times, the rows taking turns; a token is
one that a network reads, padding left out. Lengths are long-tailed, as answers are. Figures are medians.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from workload import VOCAB, conditions, make_network, summary, write_json

from cong.config.train import BatchSettings, OptimizerSettings
from cong.models import load_network
from cong.objectives import SFT
from cong.train.batch import Example
from cong.train.feed import Feed
from cong.train.loop import Progress, run
from cong.train.source import ExampleList
from cong.train.torch_backend import TorchBackend
from cong.train.trainee import pack_attention


def draw_examples(num_examples: int, median_tokens: int) -> list[Example]:
    """Random tokens; lengths of answers are lognormal, at most eight times the median."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(num_examples):
        length = int(min(8 * median_tokens, max(4, median_tokens * rng.lognormal(0.0, 0.8))))
        prompt, answer = (rng.integers(3, VOCAB, size).astype(np.int32) for size in (median_tokens // 2, length))
        found.append(Example(str(number), str(number), prompt, (answer,)))
    return found


def ours(folder: Path, examples: Sequence[Example], batch_size: int, *, is_packed: bool) -> Callable[[], float]:
    """Our loop with the plain torch backend."""
    network = load_network(str(folder), role="strong", dtype="float32", device="cpu")
    if is_packed:
        pack_attention(network)
    network.model.requires_grad_(True)
    backend = TorchBackend(network.model, OptimizerSettings(), precision="float32")
    batches = BatchSettings(batch_size=batch_size, max_tokens_per_micro_batch=4096, is_packed=is_packed)

    def measure() -> float:
        source = ExampleList(examples)
        num_steps = -(-len(examples) // batch_size)
        started_s = time.perf_counter()
        feed = Feed(source, batches, unit="tokens")
        done = run(backend, SFT(), feed, Progress(num_steps, source.position), lambda step: 1e-5, [])
        return done.num_tokens / (time.perf_counter() - started_s)

    return measure


def trl_trainer(folder: Path, examples: Sequence[Example], batch_size: int) -> Callable[[], float]:
    """TRL's trainer for fine-tuning, with its defaults: padded batches, loss on answers alone."""
    import datasets
    import trl

    rows = [
        {
            "input_ids": [*each.prompt_ids.tolist(), *each.responses[0].tolist()],
            "completion_mask": [0] * len(each.prompt_ids) + [1] * len(each.responses[0]),
        }
        for each in examples
    ]
    num_tokens = sum(len(row["input_ids"]) for row in rows)

    def measure() -> float:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype="float32")
        with tempfile.TemporaryDirectory() as output:
            settings = trl.SFTConfig(
                output_dir=output,
                per_device_train_batch_size=batch_size,
                num_train_epochs=1,
                learning_rate=1e-5,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                gradient_checkpointing=False,
                max_length=None,
                disable_tqdm=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
            trainer = trl.SFTTrainer(
                model=model, args=settings, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
            )
            started_s = time.perf_counter()
            trainer.train()
            return num_tokens / (time.perf_counter() - started_s)

    return measure


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--median-tokens", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    examples = draw_examples(arguments.examples, arguments.median_tokens)
    with tempfile.TemporaryDirectory() as folder:
        network = make_network(Path(folder) / "network", 0)
        size = arguments.batch_size
        rows = {
            "ours, packed": ours(network, examples, size, is_packed=True),
            "ours, padded": ours(network, examples, size, is_packed=False),
            "TRL SFTTrainer": trl_trainer(network, examples, size),
        }
        before = conditions()
        figures: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(arguments.rounds):
            for name, measure in rows.items():
                figures[name].append(measure())
    table = Table("what", "tokens/s", "from", "to")
    for name, values in figures.items():
        table.add_row(
            name, *(f"{value:,.0f}" for value in (sorted(values)[len(values) // 2], min(values), max(values)))
        )
    Console().print(table)
    if arguments.json:
        results = {name: summary(values) for name, values in figures.items()}
        write_json(
            arguments.json, {"conditions": before, "work": vars(arguments) | {"json": None}, "tokens_per_s": results}
        )


if __name__ == "__main__":
    main()
