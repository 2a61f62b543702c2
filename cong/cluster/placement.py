"""Whether what is to run on a cluster has a place there, and takes nobody else's: files looked at together.

A machine with a resource of its own name, such as `trainer`, is set aside for those who ask for it: replicas and
training workers that do cannot starve each other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cong.cluster.document import documents
from cong.cluster.problem import Problem
from cong.config import RunConfig
from cong.config.loading import read_text
from cong.config.serving import IMPORT_PATH, Arguments

_COMMON = ("CPU", "GPU", "memory", "object_store_memory")


@dataclass(frozen=True)
class Demand:
    """So many processes, each of which needs so much of one machine."""

    who: str
    place: str
    """Where the file says so."""
    remedy: str
    needs: Mapping[str, float]
    num_wanted: int


@dataclass(frozen=True)
class MachineType:
    """What one machine of a kind offers, and how many there may be."""

    name: str
    offers: Mapping[str, float]
    num_most: int

    def num_of(self, needs: Mapping[str, float]) -> int:
        """Processes that fit on one machine."""
        wanted = {name: amount for name, amount in needs.items() if amount}
        shares = [self.offers.get(name, 0.0) / amount for name, amount in wanted.items()]
        return math.floor(min(shares)) if shares else 0

    @property
    def own(self) -> set[str]:
        """Resources by which it is set aside."""
        return {name for name in self.offers if name not in _COMMON}


def placement_problems(files: Sequence[Path], runs: Mapping[Path, RunConfig]) -> list[Problem]:
    """What files of clusters, Serve configurations and runs, each right by itself, are wrong in together."""
    clusters: dict[Path, dict[str, Any]] = {}
    demands: list[Demand] = []
    for path in files:
        for document in documents(read_text(path), str(path)):
            if document.format == "ray_cluster":
                clusters[path] = document.content
            elif document.format == "serve_file":
                demands += _replicas(document.content, path)
    demands += [_workers(run, path) for path, run in runs.items()]
    return [problem for path, cluster in clusters.items() for problem in _on(_types(cluster), demands, path)]


def _types(cluster: Mapping[str, Any]) -> list[MachineType]:
    most = cluster.get("max_workers", 2)
    head = cluster["head_node_type"]
    return [
        MachineType(name, node["resources"], 1 if name == head else node.get("max_workers", most))
        for name, node in cluster["available_node_types"].items()
    ]


def _replicas(content: Mapping[str, Any], path: Path) -> Iterator[Demand]:
    for number, application in enumerate(content["applications"]):
        if application["import_path"] != IMPORT_PATH:
            continue
        args = Arguments.model_validate(application.get("args") or {})
        resources = args.resources
        num_gpus = resources.num_gpus
        if num_gpus is None:
            num_gpus = 1.0 if args.models.device.startswith("cuda") else 0.0
        needs = {"CPU": resources.num_cpus, "GPU": num_gpus, **resources.custom}
        place = f"applications.{number}.args.resources"
        for deployment in application.get("deployments", ()):
            scaling = deployment.get("autoscaling_config") or {}
            num_replicas = deployment.get("num_replicas", 1)
            wanted = scaling.get("max_replicas", num_replicas if isinstance(num_replicas, int) else 1)
            yield Demand(f"a replica of {path}", place, f"{place}.custom", needs, wanted)


def _workers(run: RunConfig, path: Path) -> Demand:
    job = run.training_job
    remedy = "training_job.resources_per_worker"
    return Demand(f"a training worker of {path}", "training_job", remedy, job.resources, job.num_workers)


def _on(types: Sequence[MachineType], demands: Sequence[Demand], path: Path) -> Iterator[Problem]:
    for demand in demands:
        needs = ", ".join(f"{name} {amount:g}" for name, amount in demand.needs.items() if amount)
        fits = [each for each in types if each.num_of(demand.needs)]
        if not fits:
            offers = "; ".join(f"{one.name}: {_shown(one.offers)}" for one in types)
            yield Problem(demand.place, f"{demand.who} needs {needs}, and no machine of {path} offers that ({offers})")
            continue
        room = sum(one.num_of(demand.needs) * one.num_most for one in fits)
        if room < demand.num_wanted:
            yield Problem(
                demand.place,
                f"{demand.num_wanted} times {demand.who} may be wanted, and {path} has room for {room}; raise "
                "max_workers, or ask for fewer",
            )
        for one in fits:
            if one.own and not one.own & demand.needs.keys():
                name = min(one.own)
                yield Problem(
                    demand.place,
                    f"{demand.who} fits on {one.name!r} of {path}, which is set aside for who asks for {name!r}; ask "
                    f"for a resource of its own machines in {demand.remedy}",
                )
    for one in types:
        both = [demand for demand in demands if one.num_of(demand.needs)]
        others = {demand.place.partition(".")[0] for demand in both}
        if len(others) > 1:
            yield Problem(
                f"available_node_types.{one.name}",
                f"{' and '.join(demand.who for demand in both)} both fit on {one.name!r} of {path} and may starve each "
                "other; set machines aside by resources such as sampler and trainer",
            )


def _shown(offers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in offers.items())
