"""The engine on a GPU: its share of the bandwidth bound, with random pairs of the shapes of real networks.

    python bench/engine_gpu.py --json docs/results/engine-gpu.json
    python bench/engine_gpu.py --shapes NAME --sequences 64 --variants NAME --ways "products one by one"
    python bench/engine_gpu.py --device cpu --shapes tiny --peers tiny --sequences 1 4 --prompt-tokens 32   # tries it

For each shape and number of sequences: prompts of 1,024 tokens, then decoding, every sequence drawing in every step.
The bound is the bytes that a step must move (both networks' weights once, keys and values of every sequence, logits)
over the GPU's bandwidth, nominal and as a large copy measures it.
"""

import argparse
import copy
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from pairs_gpu import SHAPES, TINY, make_model, make_pair, make_tokenizer, prompts
from workload import conditions, write_json

from cong.config.engine import EngineConfig
from cong.engine import Engine, Generate, Rate, Rated
from cong.models import NetworkSet
from cong.schemas import Prompt, SamplingParameters
from cong.telemetry import configure_logging

NOMINAL_BYTES_PER_S = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.04e12}
BYTES_PER_LOGIT = 6
"""Written in 16 bits and read once in 32."""
CPU_BYTES = 1 << 26
"""For keys and values, where this program is only tried."""


@dataclass(frozen=True)
class Variant:
    """A way to run the engine."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


DEFAULT = Variant("cong")
VARIANTS = (
    Variant("one step at a time", {"looks_ahead": False}),
    Variant("products one by one", {"joins_products": False}),
    Variant("one network after the other", {"stacks_networks": False}),
    Variant("layers not compiled", {"compiles_layers": False}),
    Variant("no captured graphs", {"captures_graphs": False, "compiles_layers": False}),
    Variant("torch's own operators", {"captures_graphs": False, "compiles_layers": False, "kernel": "torch"}),
)


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by large copies."""
    source = torch.empty(2**31 if device == "cuda" else 2**27, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    num_copies, seconds = 4, []
    for _ in range(8):
        finish(device)
        started = time.perf_counter()
        for _ in range(num_copies):
            target.copy_(source)
        finish(device)
        seconds.append((time.perf_counter() - started) / num_copies)
    return 2 * source.numel() / statistics.median(seconds)


def finish(device: str) -> None:
    """Wait for what the device was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def nominal_bandwidth() -> float:
    """Of the data sheet."""
    name = device_name()
    return next((rate for key, rate in NOMINAL_BYTES_PER_S.items() if key in name), float("nan"))


def device_name() -> str:
    """Of the GPU, or what stands in for one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def step_bytes(engine: Engine, num_sequences: int, context: float) -> float:
    """What a decoding step must move: weights, keys and values, logits."""
    per_token = engine._runner.bytes_per_token
    logits = 2 * num_sequences * engine.networks.shared_vocab_size * BYTES_PER_LOGIT
    return engine.networks.own_bytes + num_sequences * context * per_token + logits


def step_bytes_alone(model: Any, num_sequences: int, context: float) -> float:
    """The same for one network of transformers'."""
    sizes = model.config
    head_dim = getattr(sizes, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads
    per_token = 2 * sizes.num_hidden_layers * sizes.num_key_value_heads * head_dim * model.dtype.itemsize
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights + num_sequences * (context * per_token + sizes.vocab_size * BYTES_PER_LOGIT)


def decode(engine: Engine, count: int, length: int, new_tokens: int, seed: int, **changes: Any) -> dict[str, Any]:
    """Prefill `count` prompts, then time `new_tokens` steps in which all of them draw."""
    # The first ones draw while the others' prompts are computed.
    new_tokens += 2 + count * length // max(engine.config.max_step_tokens - count, 1)
    parameters = SamplingParameters.contrastive(0.4, max_tokens=new_tokens, ignore_eos=True, seed=seed, **changes)
    for number, ids in enumerate(prompts(count, length, seed, engine.networks.shared_vocab_size)):
        engine.submit(Generate(f"{seed}-{number}", Prompt(token_ids=ids), parameters, (0,)))
    started = time.perf_counter()
    first_drawn = engine.stats().num_drawn_tokens
    steps: list[float] = []
    before: dict[str, float] = {}
    prefill_s = 0.0
    while engine.has_work:
        begun, drawn = time.perf_counter(), engine.stats().num_drawn_tokens
        engine.events()
        is_full = engine.stats().num_drawn_tokens - drawn == count
        if is_full and not before:
            prefill_s = time.perf_counter() - started
            before = engine.stats().seconds
        elif is_full:
            steps.append(time.perf_counter() - begun)
            after = engine.stats().seconds
    seconds = time.perf_counter() - started
    assert engine.stats().num_drawn_tokens - first_drawn == count * new_tokens
    step_s = statistics.median(steps)
    context = length + new_tokens / 2
    num_bytes = step_bytes(engine, count, context)
    shares = {name: (after[name] - before[name]) / sum(after[n] - before[n] for n in after) for name in after}
    return {
        "num_sequences": count,
        "step_ms": {"median": step_s * 1e3, "min": min(steps) * 1e3, "max": max(steps) * 1e3, "runs": len(steps)},
        "decode_tokens_per_s": count / step_s,
        "prefill_tokens_per_s": count * length / prefill_s,
        "tokens_per_s": count * new_tokens / seconds,
        "step_gib": num_bytes / 2**30,
        "share_of_nominal": num_bytes / nominal_bandwidth() / step_s,
        "step_shares": shares,
        "num_preemptions": engine.stats().num_preemptions,
    }


def continuous_batching(shape: dict[str, Any], count: int, length: int, new_tokens: int, device: str) -> dict[str, Any]:
    """transformers' continuous batching of ONE network, which takes the fastest attention that is installed."""
    model = make_model(shape, 0, torch.bfloat16, device)
    ids = [list(row) for row in prompts(count, length, 1, shape["vocab_size"])]
    # By default it takes nearly all memory that is free, which is right on a GPU alone.
    sizes = None if device == "cuda" else transformers.ContinuousBatchingConfig(num_blocks=2 * count)
    outputs: list[Any] = []
    for wanted in (2, new_tokens):  # the first warms up
        config = transformers.GenerationConfig(
            max_new_tokens=wanted, eos_token_id=-1, pad_token_id=2, do_sample=True, top_k=0
        )
        answers = model.generate_batch(
            inputs=ids,
            generation_config=config,
            continuous_batching_config=sizes,
            record_timestamps=True,
            progress_bar=False,
        )
        outputs = list(answers.values())
        assert sum(len(output.generated_tokens) for output in outputs) == count * wanted
    steps = steps_of_all([output.timestamps for output in outputs])
    step_s = statistics.median(steps)
    share = step_bytes_alone(model, count, length + new_tokens / 2) / nominal_bandwidth() / step_s
    return {
        "num_sequences": count,
        "step_ms": {"median": step_s * 1e3, "min": min(steps) * 1e3, "max": max(steps) * 1e3, "runs": len(steps)},
        "decode_tokens_per_s": count / step_s,
        "share_of_nominal": share,
        "attention": model.config._attn_implementation,
    }


def steps_of_all(stamps: list[list[float]]) -> list[float]:
    """Seconds between two tokens of a sequence, while every sequence draws."""
    begun, ended = max(own[0] for own in stamps), min(own[-1] for own in stamps)
    return [
        later - earlier
        for own in stamps
        for earlier, later in itertools.pairwise(own)
        if begun <= earlier and later <= ended
    ]


@torch.inference_mode()
def nearness(networks: NetworkSet, engine: Engine) -> dict[str, float]:
    """Log-probs of the engine in bfloat16 against the same weights on the CPU in float32: differences in nats."""
    ids = prompts(1, 96, 7, networks.shared_vocab_size)[0]
    engine.score(Rate("near", Prompt(token_ids=ids[:48]), ids[48:]))
    (score,) = [event.score for event in iter_events(engine) if isinstance(event, Rated)]
    differences = []
    for network in networks.networks:
        config = copy.deepcopy(network.model.config)
        auto: Any = transformers.AutoModelForCausalLM
        plain = auto.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
        plain.load_state_dict({name: tensor.float().cpu() for name, tensor in network.model.state_dict().items()})
        logits = plain(torch.tensor([ids]), use_cache=False).logits[0, 47:-1].log_softmax(-1)
        exact = logits.gather(1, torch.tensor(ids[48:])[:, None])[:, 0]
        differences += (torch.tensor(score.logprobs[network.role]) - exact).abs().tolist()
    return {"mean": statistics.mean(differences), "max": max(differences), "tokens": len(differences)}


def iter_events(engine: Engine) -> Iterator[Any]:
    """Everything that happens until nothing is left to do."""
    while engine.has_work:
        yield from engine.events()


def release() -> None:
    """Give memory back before the next engine."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe(row: dict[str, Any]) -> str:
    """A row in one line, while the others are measured."""
    phases = ", ".join(f"{phase} {share:.0%}" for phase, share in row["step_shares"].items())
    return (
        f"{row['shape']}, {row['num_sequences']} sequences, {row['variant']} {row['parameters'] or ''}: "
        f"step {row['step_ms']['median']:.2f} ms, {row['decode_tokens_per_s']:,.0f} tokens/s, "
        f"{row['share_of_nominal']:.0%} of the bound, prefill {row['prefill_tokens_per_s']:,.0f}/s, "
        f"start {row['start_s']:.0f} s, {phases}"
    )


def measure_shape(name: str, options: argparse.Namespace, console: Console, copied: float) -> list[dict[str, Any]]:
    """All rows of one shape."""
    shape, device = (SHAPES | {"tiny": TINY})[name], options.device
    tokenizer = make_tokenizer(shape["vocab_size"])
    results: list[dict[str, Any]] = []
    others = [variant for variant in VARIANTS if variant.name in options.ways]
    variants = (DEFAULT, *(others if name in options.variants else ()))
    for variant in variants:
        started = time.perf_counter()
        networks = make_pair(shape, tokenizer, device)
        counts = options.sequences if variant is DEFAULT else [64]
        config = EngineConfig(
            max_running=max(*options.sequences, *counts),
            max_step_tokens=options.step_tokens,
            kv_memory_fraction=0.9,
            kv_memory_bytes=0 if device == "cuda" else CPU_BYTES,
            **variant.settings,
        )
        # Before the engine: it takes the networks' weights over.
        engine = Engine(networks, config)
        start_s = time.perf_counter() - started
        room = engine.stats().num_blocks * config.block_size
        for count in counts:
            if count * (options.prompt_tokens + options.new_tokens + 40) > room:
                console.print(f"{name}: {count} sequences do not fit into {room:,} tokens of keys and values")
                continue
            decode(engine, min(count, 16), options.prompt_tokens, 6, 100)  # warms up
            published = {"top_p": 0.95, "repetition_penalty": 1.2}
            for parameters in ({}, published) if variant is DEFAULT and count == 64 else ({},):
                seed = 2 * count + bool(parameters)  # no prompt was seen before
                row = decode(engine, count, options.prompt_tokens, options.new_tokens, seed, **parameters)
                row |= {"shape": name, "variant": variant.name, "start_s": start_s, "parameters": parameters}
                row["share_of_copy"] = row["share_of_nominal"] * nominal_bandwidth() / copied
                results.append(row)
                console.print(describe(row))
        if options.profile and variant is DEFAULT:
            profile(engine, options, console)
        if variant is DEFAULT and name == next(iter(options.shapes)):
            near = nearness(networks, engine)
            console.print(f"{name}: log-probs differ from float32 on the CPU by {near}")
            results.append({"shape": name, "nearness": near})
        del engine, networks
        release()
    if name in options.peers:
        try:
            row = continuous_batching(shape, 64, options.prompt_tokens, 33, device)
            results.append(row | {"shape": name, "variant": "transformers continuous batching, ONE network"})
            console.print(f"{name}: transformers continuous batching, ONE network: {row}")
        except Exception as error:  # noqa: BLE001 a peer that fails is named and left out
            console.print(f"transformers continuous batching is left out: {error!r}", style="bold red")
        release()
    return results


def profile(engine: Engine, options: argparse.Namespace, console: Console) -> None:
    """Where the GPU's time of some decoding steps goes."""
    parameters = SamplingParameters.contrastive(0.4, max_tokens=60, ignore_eos=True)
    for number, ids in enumerate(
        prompts(options.sequences[-1], options.prompt_tokens, 100, engine.networks.shared_vocab_size)
    ):
        engine.submit(Generate(f"p{number}", Prompt(token_ids=ids), parameters, (0,)))
    while engine.stats().num_waiting or engine.stats().num_running == 0:
        engine.events()
    engine.events()
    num_steps = 4
    begun = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(num_steps):
            engine.events()
    step_s = (time.perf_counter() - begun) / num_steps
    for _ in iter_events(engine):
        pass
    kernels = profiler.key_averages()
    console.print(kernels.table(sort_by="self_cuda_time_total", row_limit=24, max_name_column_width=90))
    worked_s = sum(kernel.self_device_time_total for kernel in kernels) / 1e6 / num_steps
    console.print(f"a step: {step_s * 1e3:.2f} ms under the profiler, of which the GPU worked {worked_s * 1e3:.2f}")


def show(results: list[dict[str, Any]], console: Console) -> None:
    """All rows as a table."""
    table = Table("shape", "sequences", "what", "step ms", "tokens/s", "of the bound", "of a copy's rate", "prefill/s")
    for row in results:
        if "variant" not in row:
            continue
        share, copied = (f"{row[key]:.0%}" if key in row else "" for key in ("share_of_nominal", "share_of_copy"))
        what = row["variant"] + (" top-p, penalty" if row.get("parameters") else "")
        prefill = f"{row['prefill_tokens_per_s']:,.0f}" if "prefill_tokens_per_s" in row else ""
        table.add_row(
            row["shape"],
            str(row["num_sequences"]),
            what,
            f"{row['step_ms']['median']:.2f}",
            f"{row['decode_tokens_per_s']:,.0f}",
            share,
            copied,
            prefill,
        )
    console.print(table)


def main() -> int:
    """Measure, show, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="store the figures with their conditions")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=[*SHAPES, "tiny"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 16, 64, 256])
    parser.add_argument("--prompt-tokens", type=int, default=1_024)
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--step-tokens", type=int, default=8_192, help="tokens computed in one step, at most")
    parser.add_argument("--variants", nargs="*", default=[], help="shapes to run also with parts turned off")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--ways", nargs="*", default=names, choices=names, help="of these, the ones to run")
    parser.add_argument("--peers", nargs="*", default=[], help="shapes to run under transformers, too")
    parser.add_argument("--profile", action="store_true", help="print the kernels of some steps")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "torch sees no CUDA device here; run this where there is one, or try it with --device cpu --shapes tiny",
            file=sys.stderr,
        )
        return 2
    transformers.logging.set_verbosity_error()
    configure_logging("INFO")  # what could not be captured
    console = Console(width=180)
    copied = copy_bandwidth(options.device)
    console.print(f"{device_name()}: a copy moves {copied / 1e12:.2f} TB/s")
    release()
    results: list[dict[str, Any]] = []
    for name in options.shapes:
        results += measure_shape(name, options, console, copied)
        if options.json:
            facts = conditions() | {"copy_bytes_per_s": copied, "nominal_bytes_per_s": nominal_bandwidth()}
            write_json(options.json, {"conditions": facts, "results": results})
    show(results, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
