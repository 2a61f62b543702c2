"""What the products of a decoding step alone take on a GPU: one by one as layers call them, and joined where possible.

    python bench/products_gpu.py --json docs/results/products-gpu.json

The weights of a pair, random, of the shapes of real networks; every product of every layer for both networks at once,
in one captured graph, so that nothing is timed but kernels. "joined" computes q, k and v by one product, and gate and
up by one: fewer and wider kernels over the same weights, as the engine does. The bound is the weights' bytes over the
nominal bandwidth.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from engine_gpu import nominal_bandwidth
from pairs_gpu import SHAPES
from workload import conditions, write_json

Widths = dict[str, tuple[int, int]]
WAYS = ("one by one", "joined")


def widths_of(shape: dict[str, Any]) -> Widths:
    """Inputs and outputs of a layer's products, by name."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    head_dim = shape.get("head_dim") or hidden // shape["num_attention_heads"]
    queries, keys = shape["num_attention_heads"] * head_dim, shape["num_key_value_heads"] * head_dim
    return {
        "q": (hidden, queries),
        "k": (hidden, keys),
        "v": (hidden, keys),
        "o": (queries, hidden),
        "gate": (hidden, inner),
        "up": (hidden, inner),
        "down": (inner, hidden),
    }


def joined(widths: Widths) -> Widths:
    """The same with products of one input made one."""
    qkv = sum(widths[name][1] for name in ("q", "k", "v"))
    return {
        "qkv": (widths["q"][0], qkv),
        "o": widths["o"],
        "gate and up": (widths["gate"][0], 2 * widths["gate"][1]),
        "down": widths["down"],
    }


def make_step(widths: Widths, num_layers: int, rows: int, options: argparse.Namespace) -> Callable[[], Any]:
    """All products of a step, each reading weights of its own."""
    kind: Any = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    inputs = {size: torch.randn(2, rows, size, **kind) for size, _ in widths.values()}
    products = [
        (inputs[size], torch.randn(2, size, width, **kind))
        for _ in range(num_layers)
        for size, width in widths.values()
    ]

    def step() -> None:
        for hidden, weight in products:
            torch.bmm(hidden, weight)

    if options.device == "cpu":
        return step
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # picks its kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()

    def replay() -> None:
        assert products, "the graph reads these weights, and does not keep them"
        graph.replay()

    return replay


def seconds_of(step: Callable[[], Any], options: argparse.Namespace) -> float:
    """Median of single steps, each waited for."""
    seconds = []
    for _ in range(options.runs + 2):
        begun = time.perf_counter()
        step()
        if options.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[2:])


@torch.inference_mode()
def measure(name: str, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """One shape with so many tokens a step."""
    shape = SHAPES[name]
    widths, num_layers = widths_of(shape), options.layers or shape["num_hidden_layers"]
    size = torch.finfo(getattr(torch, options.dtype)).bits // 8
    num_bytes = 2 * num_layers * size * sum(inputs * outputs for inputs, outputs in widths.values())
    found = {
        way: seconds_of(make_step(these, num_layers, rows, options), options)
        for way, these in (("one by one", widths), ("joined", joined(widths)))
    }
    row: dict[str, Any] = {"shape": name, "rows": rows, "layers": num_layers, "seconds": found, "bytes": num_bytes}
    if options.device != "cpu":
        row["share_of_nominal"] = {way: num_bytes / nominal_bandwidth() / each for way, each in found.items()}
    return row


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """All rows as a table."""
    table = Table("shape", "tokens a step", *(f"{way}, ms" for way in WAYS), *(f"{way}, of the bound" for way in WAYS))
    for row in rows:
        seconds, shares = row["seconds"], row.get("share_of_nominal", {})
        times = (f"{1e3 * seconds[way]:.3f}" if way in seconds else "" for way in WAYS)
        table.add_row(
            row["shape"], str(row["rows"]), *times, *(f"{shares[way]:.0%}" if way in shares else "" for way in WAYS)
        )
    console.print(table)


def main() -> int:
    """Measure, show, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="store the figures with their conditions")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 16, 64, 256], help="tokens of one network in a step")
    parser.add_argument("--layers", type=int, default=0, help="fewer than the shape has")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "torch sees no CUDA device here; run this where there is one, or try it with --device cpu", file=sys.stderr
        )
        return 2
    facts = {"conditions": conditions(), "options": vars(options) | {"json": None}}
    rows = []
    for name in options.shapes:
        rows += [measure(name, each, options) for each in options.rows]
        if options.json:
            write_json(options.json, facts | {"rows": rows})
    show(rows, Console(width=140))
    return 0


if __name__ == "__main__":
    sys.exit(main())
