"""Training on one GPU: our loop, TRL's trainers and a bare forward and backward, on networks of real shapes.

    python bench/train_gpu.py --json runs/train-gpu.json

Random weights, made on the device; records of mixed lengths; AdamW on float32 weights, a network in bfloat16. Every row
has a network of its own and the same records; where memory runs out it is tried again with smaller passes. MFU is the
share of the device's stated peak that the needed matrix products take: head on response tokens alone, attention not
counted, nothing counted that is computed twice. `--seconds` limits everything together; rows that find no time are
named.

    python bench/train_gpu.py --profile --shapes 3B --rows "SFT: cong, compiled"

shows where the time of one row goes: its kernels, and what share of their time is for what. It is the first of the rows
that `--shapes` and `--rows` leave.
"""

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Rows differ in length from step to step: without this the allocator's blocks seldom fit again.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import transformers
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from kernels import kernels_of, shares_of, show
from trainers import Timing, Trainer, Work, bare, draw_examples, has_trl, ours, pack_attention, trl_trainer
from workload import conditions, summary, write_json

from cong.objectives import SFT
from cong.train.arithmetic import StepArithmetic, peak_operations_per_s
from cong.train.data.batch import make_batch
from cong.train.forward import response_logits
from cong.train.loop import loss_share

SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "3B": {
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
}
"""As Llama 3.2 has them, and one to try this program with on a CPU."""
LEAST_S = 12.0
"""With less time left no row is begun."""
LEAST_TOKENS = 1024
"""Of a pass."""


@dataclass(frozen=True)
class Row:
    """One trainer on one network."""

    shape: str
    name: str
    make: Callable[[Any, Work], Trainer]
    is_paired: bool = False
    max_tokens: int = 16384
    reason: str = ""
    """Why it is not run."""


@dataclass(frozen=True)
class Result:
    """What a row gave, or why it gave nothing."""

    row: Row
    timing: Timing | None = None
    reason: str = ""
    max_tokens: int = 0
    prepared_s: float = 0.0
    peak_gib: float = 0.0
    mfu: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Over all counted steps."""
        steps = self.timing.counted if self.timing is not None else []
        return sum(step[1] for step in steps) / sum(step[0] for step in steps) if steps else 0.0

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        if self.timing is None or not self.timing.counted:
            return {"reason": self.reason or "no step was finished in its time"}
        steps = self.timing.counted
        return {
            "tokens_per_s": self.tokens_per_s,
            "mfu": self.mfu,
            "tokens_per_s_of_steps": summary([tokens / seconds for seconds, tokens, _ in steps]),
            "num_tokens": sum(step[1] for step in steps),
            "num_response_tokens": sum(step[2] for step in steps),
            "max_tokens_per_pass": self.max_tokens,
            "prepared_s": self.prepared_s,
            "peak_gib": self.peak_gib,
        }


def make_model(shape: str, device: str) -> Any:
    """Random weights in float32, on the device from the start."""
    config = transformers.LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    with torch.device(device):
        made: Any = transformers.LlamaForCausalLM
        return made(config)


def rows_of(shapes: Sequence[str], names: str) -> list[Row]:
    """What is measured, the most wanted first."""
    missing = has_trl()

    def packed(model: Any, work: Work) -> Trainer:
        return ours(model, work)

    def compiled(model: Any, work: Work) -> Trainer:
        return ours(model, work, is_compiled=True)

    def trl(model: Any, work: Work) -> Trainer:
        # TRL's default of 8 examples a pass at the usual budget, fewer where memory ran out.
        return trl_trainer(model, work, per_device=max(1, 8 * work.max_tokens // 16384))

    found = []
    for shape in shapes:
        is_large = shape == "3B"
        size = 8192 if is_large else 16384
        found += [
            (0, Row(shape, "SFT: cong, compiled layers", compiled, max_tokens=size)),
            (1, Row(shape, "SFT: TRL", trl, max_tokens=size, reason=missing)),
            (2, Row(shape, "SFT: forward and backward alone", bare, max_tokens=size)),
            (3 + 4 * is_large, Row(shape, "DPO: cong, compiled layers", compiled, is_paired=True, max_tokens=size)),
            (4 + 4 * is_large, Row(shape, "DPO: TRL", trl, is_paired=True, max_tokens=size, reason=missing)),
            (5 + is_large, Row(shape, "SFT: cong", packed, max_tokens=size)),
        ]
    found.sort(key=lambda each: each[0])
    return [row for _, row in found if all(part in f"{row.shape} {row.name}" for part in names.split())]


def measure(row: Row, work: Work, seconds: float) -> Result:
    """Run one row, with smaller passes where memory runs out."""
    while (result := _try(row, work, seconds)) is None:
        forget()
        if work.max_tokens <= LEAST_TOKENS:
            return Result(row, reason=f"out of memory, even with passes of {work.max_tokens} tokens")
        work = replace(work, max_tokens=work.max_tokens // 2)
    return result


def _try(row: Row, work: Work, seconds: float) -> Result | None:
    """None = the memory ran out."""
    started_s = time.perf_counter()
    try:
        if work.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model = make_model(row.shape, work.device)
        arithmetic = StepArithmetic(model, is_recomputed=False)
        timing = row.make(model, work)(seconds)
    except torch.cuda.OutOfMemoryError:
        return None
    except Exception as error:  # noqa: BLE001 - a row that fails must not take the others with it
        traceback.print_exc()
        return Result(row, reason=f"{type(error).__name__}: {str(error)[:300]}")
    steps = timing.counted
    peak = peak_operations_per_s(torch.device(work.device), work.precision)
    spent_s = sum(step[0] for step in steps)
    operations = sum(arithmetic.operations(step[1], step[2]) for step in steps)
    return Result(
        row,
        timing,
        max_tokens=work.max_tokens,
        prepared_s=time.perf_counter() - started_s - spent_s,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if work.device == "cuda" else 0.0,
        mfu=operations / spent_s / peak if spent_s and peak else 0.0,
    )


def profiled(row: Row, seen: dict[str, Any]) -> Row:
    """The row with kernels shown of the same steps a second time, when all that is compiled is compiled."""

    def make(model: Any, work: Work) -> Trainer:
        train = row.make(model, work)

        def timed_and_profiled(seconds: float) -> Timing:
            train(0.0)
            started_s = time.perf_counter()
            timing = train(0.0)
            num_steps, wall_s = len(timing.stamps), time.perf_counter() - started_s
            kernels = kernels_of(lambda: train(0.0), work.device)
            show(kernels, num_steps)
            busy_s = sum(kernel.seconds for kernel in kernels)
            print(f"a step takes {1000 * wall_s / num_steps:.1f} ms, its kernels {1000 * busy_s / num_steps:.1f} ms")
            seen.update(step_s=wall_s / num_steps, kernels_s=busy_s / num_steps, shares=shares_of(kernels))
            return timing

        return timed_and_profiled

    return replace(row, make=make)


def forget() -> None:
    """Give back what the last row held."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def packed_agrees(shape: str, device: str, vocab: int) -> dict[str, float]:
    """One batch packed and padded: loss and gradients of both, and how far they are apart, in bfloat16."""
    model = make_model(shape, device).bfloat16()
    examples = draw_examples(12, vocab=vocab, median_tokens=64, num_responses=1, prompt_tokens=(4, 64), seed=5)
    found = []
    for is_packed in (False, True):
        if is_packed:
            pack_attention(model)
        batch = make_batch(examples, is_packed=is_packed).to(device)
        share = loss_share(lambda each: response_logits(model, each), SFT(), batch, 0.0)
        loss: Any = share.loss(sum(batch.responses.lengths))
        loss.backward()
        gradients = torch.cat([weight.grad.float().flatten() for weight in model.parameters()])
        found.append((loss.item(), gradients))
        model.zero_grad()
    (padded, padded_gradient), (packed, packed_gradient) = found
    apart = (packed_gradient - padded_gradient).norm() / padded_gradient.norm()
    return {"loss_padded": padded, "loss_packed": packed, "gradients_apart": apart.item()}


def parse() -> argparse.Namespace:
    """What is asked; refused where no row is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=150.0, help="for everything together")
    parser.add_argument("--row-seconds", type=float, default=4.0, help="of counted steps in each row")
    parser.add_argument("--shapes", nargs="+", default=["1B", "3B"], choices=list(SHAPES))
    parser.add_argument("--rows", default="", help="only rows with these words in their names")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--median-tokens", type=int, default=256)
    parser.add_argument("--profile", action="store_true", help="show the kernels of one row instead")
    arguments = parser.parse_args()
    if not rows_of(arguments.shapes, arguments.rows):
        names = ", ".join(f"{row.shape} {row.name}" for row in rows_of(arguments.shapes, ""))
        parser.error(f"--rows {arguments.rows!r} names none of: {names}")
    return arguments


def main() -> None:
    """Measure and show."""
    arguments = parse()
    started_s = time.perf_counter()
    device, median = arguments.device, arguments.median_tokens
    before = {**conditions(), "peak_tflops": peak_operations_per_s(torch.device(device), "bfloat16") / 1e12}
    # The same for every shape: words of the smallest vocabulary.
    vocab = min(SHAPES[shape]["vocab_size"] for shape in arguments.shapes)
    drawn = {"vocab": vocab, "median_tokens": median, "prompt_tokens": (median // 8, median)}
    single = draw_examples(64 * 24, num_responses=1, seed=0, **drawn)
    paired = draw_examples(32 * 12, num_responses=2, seed=1, **drawn)
    rows = rows_of(arguments.shapes, arguments.rows)
    seen: dict[str, Any] = {}
    if arguments.profile:
        rows = [profiled(row, seen) for row in rows[:1]]
    results: list[Result] = []
    agreement: dict[str, float] = {}

    def store() -> None:
        if arguments.json:
            content = {
                "conditions": before,
                "work": {
                    **drawn,
                    "examples_per_step": 64,
                    "pairs_per_step": 32,
                    "mean_tokens": sum(each.num_tokens for each in single) / len(single),
                    "row_seconds": arguments.row_seconds,
                    "shapes": {shape: SHAPES[shape] for shape in arguments.shapes},
                },
                "packed_against_padded": agreement,
                **({"profile": seen} if seen else {}),
                "rows": {f"{each.row.shape} {each.row.name}": each.to_json() for each in results},
            }
            write_json(arguments.json, json.loads(json.dumps(content, default=list)))

    if not arguments.profile:
        agreement |= packed_agrees(arguments.shapes[0], device, vocab)
        print("packed against padded:", agreement, flush=True)
        forget()
    for row in rows:
        left_s = arguments.seconds - (time.perf_counter() - started_s)
        if row.reason or left_s < LEAST_S:
            results.append(Result(row, reason=row.reason or f"not measured: {left_s:.0f} s were left"))
        else:
            examples, size = (paired, 32) if row.is_paired else (single, 64)
            work = Work(examples, size, row.max_tokens, "bfloat16", device)
            results.append(measure(row, work, min(arguments.row_seconds, left_s / 3)))
        forget()
        shown = results[-1]
        print(
            f"{row.shape} {row.name}: {shown.tokens_per_s:,.0f} tokens/s, MFU {100 * shown.mfu:.1f} %, prepared in "
            f"{shown.prepared_s:.0f} s, {shown.peak_gib:.0f} GiB {shown.reason}",
            flush=True,
        )
        store()
    table = Table("network", "trainer", "tokens/s", "slowest step", "fastest step", "MFU", "GiB", "tokens a pass")
    for each in results:
        steps = [tokens / seconds for seconds, tokens, _ in each.timing.counted] if each.timing else []
        numbers = [f"{value:,.0f}" for value in (each.tokens_per_s, min(steps), max(steps))] if steps else ["-"] * 3
        table.add_row(
            each.row.shape,
            each.row.name + (f" ({each.reason[:60]})" if each.reason else ""),
            *numbers,
            f"{100 * each.mfu:.1f} %",
            f"{each.peak_gib:.1f}",
            str(each.max_tokens or "-"),
        )
    Console(width=130).print(table)
    print(f"{time.perf_counter() - started_s:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
