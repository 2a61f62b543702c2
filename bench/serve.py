"""What HTTP and Serve cost on top of the engine, what happens beyond capacity, and whether anything leaks.

    python bench/serve.py --launcher uvicorn ray --json docs/results/serve.json
    python bench/serve.py --launcher ray --only pace --seconds 30
    python bench/serve.py --launcher ray --only soak --soak-minutes 60

Engine alone and service take turns on the same pair and the same work; figures are medians over `--rounds`. The load
generator shares the machine with what it measures. Beyond capacity a request must be answered or refused at once; with
an engine of even pace, as an accelerator's is, whoever is answered waits no longer than the queue is long. Memory and
handles must stay flat while a tenth of the callers leaves early.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from launch import SEATS, Running, settings, start_service
from load import Outcome, Shot, arrivals, fire, keep_busy, percentile, sample_body, summarise
from processes import Elsewhere, Watch
from workload import PACED_STEP_S, Shape, Work, conditions, make_pair, summary, write_json

from cong.config import RunConfig
from cong.config.loading import check
from cong.engine import Engine, EngineProtocol, Generate
from cong.models import load_networks
from cong.schemas import Prompt, SamplingParameters

LOADS = (0.5, 0.8, 1.2, 10.0)
PARTS = ("throughput", "cost", "overload", "pace", "soak")
PACED = "bench.paced:build"
"""The application with an engine of even pace."""
PACED_WAITING = SEATS // 8
"""Who waits for one of so many seats waits about an eighth of a request's time."""


def engine_tokens_per_s(engine: EngineProtocol, work: Work, number: int) -> float:
    """The whole work by the engine alone."""
    parameters = SamplingParameters.contrastive(0.4, max_tokens=work.num_new_tokens, ignore_eos=True)
    started = time.perf_counter()
    for index, ids in enumerate(work.prompts(number)):
        engine.submit(Generate(f"{number}-{index}", Prompt(token_ids=tuple(ids)), parameters, (0,)))
    while engine.has_work:
        engine.events()
    return work.num_drawn / (time.perf_counter() - started)


def bodies(work: Work, number: int, form: str = "none") -> list[bytes]:
    """The same work as requests."""
    return [
        sample_body({"token_ids": ids}, num_tokens=work.num_new_tokens, seed=index, form=form)
        for index, ids in enumerate(work.prompts(number))
    ]


def service_tokens_per_s(running: Running, work: Work, number: int, num_clients: int, form: str = "none") -> float:
    """The whole work by the service, with so many clients."""
    seconds, outcomes = asyncio.run(keep_busy(running.target, bodies(work, number, form), num_clients))
    assert all(one.is_complete for one in outcomes), summarise(outcomes, seconds)
    return work.num_drawn / seconds


def throughput(engine: Engine, running: Running, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second with 64 at a time: engine alone, documents, streams of tokens, in turn."""
    work = Work(options.clients * options.turns, options.prompt_tokens, options.new_tokens)
    rates: dict[str, list[float]] = {"engine alone": [], "documents": [], "streams of tokens": []}
    for number in range(options.rounds + 1):
        found = {
            "engine alone": engine_tokens_per_s(engine, work, number),
            "documents": service_tokens_per_s(running, work, 1000 + number, options.clients),
            "streams of tokens": service_tokens_per_s(running, work, 2000 + number, options.clients, "tokens"),
        }
        if number:  # the first round warms up
            for name, rate in found.items():
                rates[name].append(rate)
    own = statistics.median(rates["engine alone"])
    return {
        "work": vars(work),
        "tokens_per_s": {name: summary(values) for name, values in rates.items()},
        "share_of_engine": {name: statistics.median(values) / own for name, values in rates.items()},
    }


def cost(engine: Engine, running: Running, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds that one caller alone pays for a request and for a token, beyond what the engine takes."""
    lengths = (1, options.new_tokens)
    times: dict[str, dict[int, list[float]]] = {
        name: {length: [] for length in lengths} for name in ("engine alone", "documents", "streams of tokens")
    }
    for number in range(options.rounds * 5 + 1):
        for length in lengths:
            work = Work(1, options.prompt_tokens, length)
            found = {
                "engine alone": length / engine_tokens_per_s(engine, work, 3000 + number),
                "documents": length / service_tokens_per_s(running, work, 4000 + number, 1),
                "streams of tokens": length / service_tokens_per_s(running, work, 5000 + number, 1, "tokens"),
            }
            if number:
                for name, seconds in found.items():
                    times[name][length].append(seconds)
    medians = {name: {length: statistics.median(times[name][length]) for length in lengths} for name in times}
    per_token = {name: (found[lengths[1]] - found[1]) / (lengths[1] - 1) for name, found in medians.items()}
    base = medians["engine alone"]
    return {
        "seconds": {name: {str(length): summary(times[name][length]) for length in lengths} for name in times},
        "request_s": {name: found[1] - base[1] for name, found in medians.items() if name != "engine alone"},
        "token_s": {
            name: each - per_token["engine alone"] for name, each in per_token.items() if name != "engine alone"
        },
    }


def _shots(
    rate: float, seconds: float, options: argparse.Namespace, seed: int, leaving: float = 0.0, spread: float = 0.0
) -> list[Shot]:
    """Lengths lie within a share of `new_tokens` of it."""
    rng = random.Random(seed)
    prompts = Work(64, options.prompt_tokens, options.new_tokens).prompts(seed)
    return [
        Shot(
            due_s,
            sample_body(
                {"token_ids": rng.choice(prompts)},
                num_tokens=round(options.new_tokens * (1 + spread * rng.uniform(-1, 1))),
                seed=seed + number,
                form="tokens",
            ),
            rng.randrange(1, options.new_tokens // 2) if rng.random() < leaving else None,
        )
        for number, due_s in enumerate(arrivals(rate, seconds, seed))
    ]


def overload(running: Running, options: argparse.Namespace, spread: float = 0.0) -> dict[str, Any]:
    """Open loop below, at and far beyond what the service can do."""
    work = Work(options.clients, options.prompt_tokens, options.new_tokens)
    rate = statistics.median(service_tokens_per_s(running, work, 6000 + n, options.clients, "tokens") for n in range(3))
    capacity = rate / options.new_tokens
    rows = []
    for number, load in enumerate(LOADS):
        shots = _shots(load * capacity, options.seconds, options, 100 * number, spread=spread)
        outcomes = asyncio.run(fire(running.target, shots, options.seconds + 60.0))
        rows.append({"load": load, **summarise(outcomes, options.seconds)})
        _store_lines(options, f"load-{load}", outcomes)
    return {
        "capacity_requests_per_s": capacity,
        "loads": rows,
        "promises": {
            "only 200 and 429, with Retry-After": all(
                set(row["statuses"]) <= {"200", "429"}
                and not row["refused_without_retry_after"]
                and not row["incomplete"]
                for row in rows
            ),
            "p99 of refusals under 100 ms": all((row["refusal_s_p99"] or 0.0) < 0.1 for row in rows),
        },
    }


def pace(running: Running, options: argparse.Namespace) -> dict[str, Any]:
    """The same with an engine that does not slow down: what is left of waiting is the queue's doing.

    Those of one length, begun together, would free all seats at once: `--spread 0`.
    """
    found = overload(running, options, options.spread)
    calm, flooded = (found["loads"][number]["total_s_p99"] or 0.0 for number in (0, -1))
    found["promises"]["p99 of accepted at 10 x under twice that at 0.5 x"] = flooded < 2 * calm
    return {"step_s": PACED_STEP_S, "max_waiting": PACED_WAITING, **found}


def soak(running: Running, options: argparse.Namespace) -> dict[str, Any]:
    """Steady load at half of capacity while a tenth of the callers leaves; memory and handles of every process."""
    work = Work(options.clients, options.prompt_tokens, options.new_tokens)
    rate = 0.5 * service_tokens_per_s(running, work, 7000, options.clients, "tokens") / options.new_tokens
    seconds = 60.0 * options.soak_minutes
    warm_up_s = min(300.0, 0.25 * seconds)
    watch = Watch(running.pid)

    async def run() -> list[Outcome]:
        async def look() -> None:
            while True:
                watch.look(asyncio.get_running_loop().time() - started_s)
                await asyncio.sleep(max(1.0, min(5.0, seconds / 60)))

        started_s = asyncio.get_running_loop().time()
        looking = asyncio.create_task(look())
        try:
            shots = _shots(rate, seconds, options, 9000, leaving=0.1)
            return await fire(running.target, shots, seconds + 60.0)
        finally:
            looking.cancel()

    outcomes = asyncio.run(run())
    _store_lines(options, "soak", outcomes)
    late = [one for one in outcomes if one.due_s >= warm_up_s]
    half = (warm_up_s + seconds) / 2
    halves = [
        [one.total_s for one in late if one.is_complete and (one.due_s >= half) is last] for last in (False, True)
    ]
    first_p99, last_p99 = (percentile(times, 0.99) for times in halves)
    trends = watch.trends(warm_up_s)
    return {
        "minutes": options.soak_minutes,
        "warm_up_s": warm_up_s,
        "rate_per_s": rate,
        **summarise(late, seconds - warm_up_s),
        "p99_first_half_s": first_p99,
        "p99_last_half_s": last_p99,
        "processes": trends,
        "promises": {
            "no 5xx and no cut stream": all(one.status in (200, 429) for one in late)
            and not any(one.status == 200 and not one.is_complete and not one.has_left for one in late),
            "memory grows by less than 1 MiB a minute": all(row["resident_mib_per_minute"] < 1.0 for row in trends),
            "p99 drifts by less than a fifth": bool(first_p99 and last_p99 and last_p99 < 1.2 * first_p99),
        },
    }


def _store_lines(options: argparse.Namespace, name: str, outcomes: list[Outcome]) -> None:
    if options.lines is not None:
        options.lines.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(asdict(one)) + "\n" for one in outcomes)
        (options.lines / f"{name}.jsonl").write_text(lines)


def show(launcher: str, result: dict[str, Any], console: Console) -> None:
    """What was found about one launcher, as tables."""
    if found := result.get("throughput"):
        table = Table("what", "tokens/s (median)", "spread", "of the engine", title=f"{launcher}: {found['work']}")
        for name, rate in found["tokens_per_s"].items():
            spread = f"{rate['min']:,.0f}-{rate['max']:,.0f}"
            table.add_row(name, f"{rate['median']:,.0f}", spread, f"{found['share_of_engine'][name]:.2f}")
        console.print(table)
    if found := result.get("cost"):
        for name in found["request_s"]:
            per_request, per_token = 1e3 * found["request_s"][name], 1e3 * found["token_s"][name]
            console.print(f"{launcher}, {name}: {per_request:.2f} ms a request, {per_token:.3f} ms a token")
    for part in ("overload", "pace"):
        if (found := result.get(part)) is None:
            continue
        columns = ("load", "complete", "refused", "first token p99", "total p99", "refusal p99", "sent late p99")
        table = Table(*columns, title=f"{launcher}, {part}: capacity {found['capacity_requests_per_s']:.1f} requests/s")
        for row in found["loads"]:
            names = ("first_token_s_p99", "total_s_p99", "refusal_s_p99", "late_s_p99")
            times = [f"{row[name]:.3f} s" if row[name] is not None else "" for name in names]
            table.add_row(f"{row['load']} x", str(row["complete"]), str(row["statuses"].get("429", 0)), *times)
        console.print(table)
    if found := result.get("soak"):
        table = Table("process", "MiB", "MiB a minute", "handles", title=f"{launcher}: {found['minutes']} minutes")
        for row in found["processes"]:
            handles = f"{row['handles_first']} to {row['handles_last']}"
            size, slope = f"{row['resident_mib_last']:.0f}", f"{row['resident_mib_per_minute']:+.2f}"
            table.add_row(row["name"], size, slope, handles)
        console.print(table)
    for name, part in result.items():
        console.print(f"{launcher}, {name}: other programs kept {part['cores_busy_elsewhere']:.2f} cores busy")
        for promise, is_kept in part.get("promises", {}).items():
            console.print(f"{'kept  ' if is_kept else 'BROKEN'} {promise}", style="green" if is_kept else "bold red")


def measure_part(part: str, engine: Engine, running: Running, options: argparse.Namespace) -> dict[str, Any]:
    """One part, and what other programs took of the machine meanwhile."""
    elsewhere = Elsewhere(running.pid)
    if part in ("throughput", "cost"):
        found = {"throughput": throughput, "cost": cost}[part](engine, running, options)
    else:
        found = {"overload": overload, "pace": pace, "soak": soak}[part](running, options)
    return {**found, "cores_busy_elsewhere": elsewhere.cores()}


def measure(launcher: str, engine: Engine, pair: tuple[Path, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Every part that was asked for, on one launcher."""
    result: dict[str, Any] = {}
    if parts := [part for part in options.only if part != "pace"]:
        with start_service(launcher, settings(pair, options), options) as running:
            result |= {part: measure_part(part, engine, running, options) for part in parts}
    if "pace" in options.only and launcher == "ray":
        config = settings(make_pair(options.cache.absolute(), Shape(num_layers=1, width=64)), options)
        config["num_threads"] = 1
        config["service"]["max_waiting"] = PACED_WAITING
        with start_service(launcher, config, options, PACED) as running:
            result["pace"] = measure_part("pace", engine, running, options)
    return result


def store(
    path: Path, launcher: str, result: dict[str, Any], before: dict[str, Any], options: argparse.Namespace
) -> None:
    """Each part with its conditions, in the place of what the file held of it; other parts stay."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    asked = {name: value for name, value in vars(options).items() if isinstance(value, int | float | str)}
    for part, figures in result.items():
        found.setdefault(launcher, {})[part] = {"conditions": before, "options": asked, **figures}
    write_json(path, found)


def main() -> int:
    """Measure, show, store; exit code 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="store the figures with their conditions")
    parser.add_argument("--lines", type=Path, help="folder for the outcome of every single request")
    parser.add_argument("--launcher", nargs="*", choices=("uvicorn", "ray"), default=["uvicorn", "ray"])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=["throughput", "cost", "overload", "pace"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--turns", type=int, default=4, help="requests of each client, one after the other")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument(
        "--spread", type=float, default=0.75, help="of lengths in `pace`: new tokens within this share of --new-tokens"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load in the open loop")
    parser.add_argument("--max-waiting", type=int, default=64, help="of the service: samples without a seat")
    parser.add_argument("--max-ongoing", type=int, default=80, help="of Serve: requests that the replica holds")
    parser.add_argument("--max-queued", type=int, default=64, help="of Serve: requests that wait for the replica")
    parser.add_argument("--stream-writes", type=float, default=500.0, help="a second, of all token streams together")
    parser.add_argument("--niceness", type=int, default=19, help="of the engine's threads, as shipped for laptops")
    parser.add_argument("--soak-minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=0, help="of tensor work; 0 = as many as there are cores")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"), help="where the networks are kept")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    pair = make_pair(options.cache.absolute())
    config = check(RunConfig, settings(pair, options), "bench")
    before = conditions()
    engine = Engine(load_networks(config.models), config.engine)
    results = {}
    for launcher in options.launcher:
        results[launcher] = measure(launcher, engine, pair, options)
        show(launcher, results[launcher], console)
        if options.json is not None:
            store(options.json, launcher, results[launcher], before, options)
    promises = [
        kept for result in results.values() for part in result.values() for kept in part.get("promises", {}).values()
    ]
    return 0 if all(promises) else 1


if __name__ == "__main__":
    sys.exit(main())
