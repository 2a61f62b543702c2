"""Files that are right by themselves and wrong together: no place for what is to run, or a place that others need."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cong.cli import main
from cong.cluster.placement import placement_problems
from cong.config import RunConfig, load_config
from cong.config.loading import merge
from tests.test_house import ROOT

CLUSTERS = [ROOT / "cluster.yaml", ROOT / "deploy" / "cluster-gcp.yaml"]
SERVICE = ROOT / "serve" / "config.yaml"
RUNS = [
    path
    for path in sorted((ROOT / "configs").glob("*/*.yaml"))
    if load_config(RunConfig, [path]).training_job != RunConfig().training_job
]


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda path: path.name)
def test_the_shipped_service_and_runs_have_places_of_their_own(cluster: Path) -> None:
    assert RUNS
    assert not placement_problems([cluster, SERVICE], {path: load_config(RunConfig, [path]) for path in RUNS})


def changed(path: Path, folder: Path, changes: dict[str, Any]) -> Path:
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(merge(yaml.safe_load(path.read_text()), changes)))
    return copy


def of_replicas(resources: dict[str, Any]) -> dict[str, Any]:
    application = yaml.safe_load(SERVICE.read_text())["applications"][0]
    application["args"]["resources"] = {"num_cpus": 4, "num_gpus": 1, **resources}
    return {"applications": [application]}


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"custom": {}}, r"fits on 'trainer' of .*, which is set aside for who asks for 'trainer'"),
        ({"custom": {"sampler": 1}, "num_gpus": 2}, "needs CPU 4, GPU 2, sampler 1, and no machine of .* offers that"),
        ({"custom": {"trainer": 1}}, "'trainer' of .* and may starve each other"),
    ],
)
def test_a_replica_without_a_place_of_its_own_is_named(tmp_path: Path, resources: dict[str, Any], message: str) -> None:
    service = changed(SERVICE, tmp_path, of_replicas(resources))
    found = placement_problems([CLUSTERS[0], service], {RUNS[0]: load_config(RunConfig, [RUNS[0]])})
    assert any(re.search(message, str(problem)) for problem in found), found


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("{num_workers: 8, gpus_per_worker: 1}", "fits on 'sampler'"),
        (
            "{num_workers: 9, gpus_per_worker: 1, resources_per_worker: {trainer: 1}}",
            "9 times a training worker of .* may be wanted, and .* has room for 8",
        ),
    ],
)
def test_a_training_worker_without_a_place_of_its_own_is_named(tmp_path: Path, job: str, message: str) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(f"training_job: {job}\n")
    found = placement_problems([CLUSTERS[0], SERVICE], {run: load_config(RunConfig, [run])})
    assert any(re.search(message, str(problem)) for problem in found), found


def test_the_command_looks_at_its_files_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = changed(SERVICE, tmp_path, of_replicas({"custom": {}}))
    files = ["cluster", "check", "--template", str(CLUSTERS[0])]
    assert main([*files, str(SERVICE), "--run", str(RUNS[0])]) == 0
    assert main([*files, str(service), "--run", str(RUNS[0])]) == 2
    assert "set aside for who asks for 'trainer'" in capsys.readouterr().err
