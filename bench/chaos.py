"""The pipeline on a cluster of several machines, killed again and again, against the same pipeline left alone.

    python -m bench.chaos --kills 10 --seed 0 --json docs/results/chaos.json
    python -m bench.chaos --plan sampler trainer

Both run on one cluster of this computer: a head, two machines that sample and two that train, each with a Ray of its
own. The pair is served by Ray Serve; the pipeline is a job that samples through the service, trains with DeepSpeed on
two workers while samples still come, and judges. What is killed: the job's driver, the replica that answers, a worker
that trains, samples or judges, or a whole machine of either kind, which another one replaces. After each kill the
pipeline is submitted again, which does nothing where it still runs. In the end both must hold the same samples,
networks and rewards.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.chaos_cluster import KINDS, LIMIT_S, Cluster, Work, make_pair
from bench.workload import conditions, write_json
from cong.config import RunConfig
from serve.private import make_private

_POLL_S = 0.1
_FOUND_WITHIN_S = 60.0


@dataclass
class Kill:
    """One of them, and what came of it."""

    kind: str
    share: float
    """Of the files that an undisturbed run leaves, when it came."""
    during: tuple[str, ...]
    """Stages that were begun and not complete."""
    came_too_late: bool = False
    """The pipeline was done, and nothing was killed."""
    was_resubmitted: bool = False
    """The job had ended and another one went on."""
    answered_again_s: float | None = None
    """From the kill of a replica or of its machine to the next sample."""


# What a run has and leaves.


def num_files(config: RunConfig) -> int:
    """Grows with every segment and mark; files that vanish while it looks do not matter."""
    return sum(len(files) for folder, _, files in os.walk(config.output_dir / "stages") if "checkpoints" not in folder)


def under_way(config: RunConfig) -> tuple[str, ...]:
    """Stages that were begun and are not complete."""
    stages = config.output_dir / "stages"
    begun = {path.parent for path in stages.glob("*/*/begun.json")}
    return tuple(sorted(path.parent.name for path in begun if not (path / "complete.json").exists()))


def has_sampled(config: RunConfig, num_records: int) -> bool:
    """Whether so many contrastive samples are in the stream."""
    from cong.stream import list_stream, open_store

    streams = (config.output_dir / "stages" / "sample").glob("*/stream")
    return sum(list_stream(open_store(str(one))).num_rows for one in streams) >= num_records


def has_saved(config: RunConfig) -> bool:
    """Whether a training is under way that has a checkpoint."""
    stages = config.output_dir / "stages"
    saved = {path.parents[2] for path in stages.glob("*/*/checkpoints/step-*/COMMITTED")}
    return any(not (folder / "complete.json").exists() for folder in saved)


def result_of(config: RunConfig) -> dict[str, Any]:
    """What two runs must have in common."""
    from cong.pipeline import Board
    from cong.stream import StreamReader, open_store
    from cong.stream.verify import verify

    found: dict[str, Any] = {"keys": {}, "networks": {}, "rewards": {}, "problems": []}
    for one in Board(config).survey():
        assert one.state == "done", f"{one.stage.name} is {one.state}: {one.reason}"
        assert one.folder is not None
        assert one.marker is not None
        if one.stage.kind == "sample":
            store = open_store(str(one.folder / "stream"))
            found["problems"] += [str(problem) for problem in verify(store).problems]
            found["keys"][one.stage.name] = [record.key for record in StreamReader(store).records()]
        elif one.stage.kind == "train":
            found["networks"][one.stage.name] = one.marker.fingerprint
        elif one.stage.kind == "evaluate":
            judged = json.loads((one.folder / "evaluation.json").read_text())
            found["rewards"] = {each["candidate"]: each["rewards"]["gold"] for each in judged["sets"]}
    return found


def eventually(is_so: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """The first true value within the limit."""
    until_s = time.monotonic() + limit_s
    while not (found := is_so()):
        if time.monotonic() > until_s:
            raise TimeoutError(f"not within {limit_s:g} s: {what}")
        time.sleep(_POLL_S)
    return found


# Runs.


def finish(cluster: Cluster, config: RunConfig) -> None:
    """Submit until it has succeeded."""
    for _ in range(5):
        name = cluster.submit(config)
        eventually(lambda name=name: cluster.job(name).status.is_terminal(), f"the end of {name}")
        status = cluster.job(name).status.value
        if status == "SUCCEEDED":
            return
        print(f"{name} has {status.lower()}:\n{cluster.log(name)[-1500:]}", file=sys.stderr)
    raise RuntimeError("it fails again and again")


def disturb(cluster: Cluster, config: RunConfig, kind: str, is_time: Callable[[], bool], total: int) -> Kill:
    """Wait for the moment, kill, replace what is gone, and submit again."""
    name = cluster.submit(config)
    until_s = time.monotonic() + LIMIT_S
    while not is_time() and not cluster.job(name).status.is_terminal():
        if time.monotonic() > until_s:
            raise TimeoutError(f"the moment for {kind} does not come; {cluster.log(name)[-1500:]}")
        time.sleep(_POLL_S)
    until_s = time.monotonic() + _FOUND_WITHIN_S
    while not cluster.kill(kind):
        status = cluster.job(name).status
        if status.value == "SUCCEEDED":
            return Kill(kind, 1.0, (), came_too_late=True)
        if status.is_terminal():
            # It has ended by itself; the next submission goes on.
            name, until_s = cluster.submit(config), time.monotonic() + _FOUND_WITHIN_S
        elif time.monotonic() > until_s:
            kind, until_s = "driver", time.monotonic() + _FOUND_WITHIN_S  # nobody trains at the moment
        time.sleep(_POLL_S)
    killed_s = time.monotonic()
    kill = Kill(kind, round(num_files(config) / total, 3), under_way(config))
    if kind in ("replica", "sampler"):
        eventually(cluster.answers, "an answer of the service")
        kill.answered_again_s = round(time.monotonic() - killed_s, 1)
    if kind in ("sampler", "trainer"):
        cluster.add(kind)
    if kind == "driver":
        eventually(lambda: cluster.job(name).status.is_terminal(), "the end of a job without a driver")
    kill.was_resubmitted = cluster.submit(config) != name
    print(f"{kill}", file=sys.stderr, flush=True)
    return kill


def chaos(work: Work, plan: list[str], seed: int, *, is_timed: bool, folder: Path) -> dict[str, Any]:
    """Both runs on one cluster, and what they have in common. `is_timed`: kills at random moments of the whole run;
    otherwise each where it hurts."""
    with tempfile.TemporaryDirectory(prefix="cx-", dir="/tmp", ignore_cleanup_errors=True) as private:
        make_private(Path(private))
        os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        os.environ["OMP_NUM_THREADS"] = "1"
        aligned = make_pair(work, folder)
        cluster = Cluster(work, folder, Path(private), aligned)
        with cluster.running():
            alone, killed = cluster.config("undisturbed"), cluster.config("killed")
            started_s = time.monotonic()
            finish(cluster, alone)
            seconds = {"undisturbed": round(time.monotonic() - started_s, 1)}
            total, rng = num_files(alone), random.Random(seed)
            print(f"undisturbed: {seconds['undisturbed']} s, {total} files", file=sys.stderr, flush=True)
            kills = []
            started_s = time.monotonic()
            for number, kind in enumerate(plan):
                goal = round(0.8 * total * (number + rng.random()) / len(plan))

                def at_random(goal: int = goal) -> bool:
                    return num_files(killed) >= goal

                def where_it_hurts(kind: str = kind) -> bool:
                    if kind in ("replica", "sampler"):
                        return has_sampled(killed, work.num_prompts // 4)
                    return has_saved(killed) if kind in ("worker", "trainer") else num_files(killed) > 4

                is_time = at_random if is_timed else where_it_hurts
                kills.append(disturb(cluster, killed, kind, is_time, total))
            finish(cluster, killed)
            seconds["killed"] = round(time.monotonic() - started_s, 1)
            left, right = result_of(alone), result_of(killed)
            resumed = sum(cluster.log(each).count("going on from step") for each in cluster.jobs())
    return {
        "seed": seed,
        "plan": plan,
        "work": asdict(work),
        "seconds": seconds,
        "kills": [asdict(kill) for kill in kills],
        "num_resumed_trainings": resumed,
        "num_samples": {stage: len(keys) for stage, keys in left["keys"].items()},
        "same_keys": {stage: set(keys) == set(right["keys"][stage]) for stage, keys in left["keys"].items()},
        "same_order": left["keys"] == right["keys"],
        "no_key_twice": all(len(keys) == len(set(keys)) for keys in right["keys"].values()),
        "problems_of_streams": right["problems"],
        "same_networks": left["networks"] == right["networks"],
        "same_rewards": left["rewards"] == right["rewards"],
        "rewards": left["rewards"],
    }


def main() -> int:
    """Run it; the exit code is 0 where both runs end the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plan", nargs="+", choices=KINDS, help="these, each where it hurts, in place of random ones")
    parser.add_argument("--prompts", type=int, default=Work.num_prompts)
    parser.add_argument("--folder", type=Path, help="keep everything here (default: a temporary folder)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plan = options.plan or [KINDS[number % len(KINDS)] for number in range(options.kills)]
    if not options.plan:
        random.Random(options.seed).shuffle(plan)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        work = Work(num_prompts=options.prompts)
        result = chaos(work, plan, options.seed, is_timed=not options.plan, folder=folder.resolve())
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    result |= {"conditions": conditions()}
    print(json.dumps(result, indent=1))
    if options.json is not None:
        write_json(options.json, result)
    same = [*result["same_keys"].values(), *(result[f"same_{what}"] for what in ("order", "networks", "rewards"))]
    return 0 if all([*same, result["no_key_twice"], not result["problems_of_streams"]]) else 1


if __name__ == "__main__":
    sys.exit(main())
