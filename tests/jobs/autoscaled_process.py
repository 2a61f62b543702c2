"""A cluster whose machines come and go with what is wanted of it, under a service and under a training job.

`python -m tests.jobs.autoscaled_process FOLDER WORK` is that cluster: Ray's autoscaler with its provider of fake
machines, each a raylet of this computer. It prints what it has seen as JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from jobs.machine import Machine, joined
from serve.ports import free_port
from serve.private import make_private
from tests.jobs.training import (
    LIMIT_S,
    NUM_STEPS,
    GrowingStream,
    arguments,
    eventually,
    job_config,
    last_step,
    require_exact,
)

STORE_BYTES = 100 << 20
IDLE_MINUTES = 0.1
SCALING = {
    "min_replicas": 0,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 2.0,
    "downscale_to_zero_delay_s": 2.0,
    "look_back_period_s": 2.0,
}
LONG = {"prompt": "Sdbgaf=", "num_samples": 32, "parameters": {"max_tokens": 48, "min_tokens": 48, "ignore_eos": True}}
_LISTS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def autoscaling(address: str) -> dict[str, Any]:
    """A cluster file with a provider that makes machines of this computer."""
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    machine = {"CPU": 2, "object_store_memory": STORE_BYTES}
    kinds = {
        kind: {"resources": {**machine, kind: 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
        for kind in ("sampler", "trainer")
    }
    return {
        "cluster_name": "fake",
        "max_workers": 4,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 10.0,
        "provider": {
            "type": "external",
            "module": module,
            "gcs_address": address,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "use_node_id_as_ip": True,
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in _LISTS},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **kinds,
        },
    }


def num_machines(kind: str) -> int:
    """That are alive, by the resource that they are set aside with."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(node["Alive"] and kind in node["Resources"] for node in nodes)


def serve_under_load(folder: Path) -> dict[str, Any]:
    """Requests to a service that has no replica; then none."""
    import httpx

    from serve.__main__ import DEFAULT_FILE
    from serve.files import read_serve_file
    from serve.local import deploy, wait_answering, wait_running
    from tests.serve.load import under_load

    overrides = [f"output_dir={folder / 'serve'}", "resources.custom.sampler=1", "service.max_samples=64"]
    file = read_serve_file(DEFAULT_FILE, overrides, {"port": free_port()})
    (deployment,) = file.schema.applications[0].deployments
    options = deployment.model_dump(exclude_unset=True) | {"autoscaling_config": SCALING}
    del options["num_replicas"]
    file.schema.applications[0].deployments = [type(deployment).model_validate(options)]
    environment = file.schema.controller_options
    assert environment is not None
    assert environment.runtime_env is not None
    for name in ("HANDLE", "REPLICA"):
        environment.runtime_env["env_vars"][f"RAY_SERVE_{name}_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
    deploy(file)
    wait_running(file.name, 120.0)
    counts = [num_machines("sampler")]
    wait_answering(file.url, 120.0)  # which a first machine comes for
    with httpx.Client(base_url=file.url, timeout=httpx.Timeout(120.0)) as http:
        with under_load(http, num_at_once=8, body=LONG) as load:
            eventually(lambda: num_machines("sampler") == 2, "two machines for replicas")
            load.wait_for(16, 120.0)
        counts.append(2)
    eventually(lambda: num_machines("sampler") == 0, "no machine once nobody asks")
    counts.append(0)
    return {"machines": counts, "answers": len(load.outcomes), "failures": [one.reason for one in load.failures]}


def train(folder: Path) -> dict[str, Any]:
    """A training job where there is no machine to train on."""
    counts = [num_machines("trainer")]
    stream = GrowingStream(folder / "stream")
    stream.grow(24)
    job = {"resources_per_worker": {"trainer": 1.0}, "cpus_per_worker": 1.0, "placement": "STRICT_SPREAD"}
    config = job_config(folder, "run", stream.location, training_job=job)
    process = subprocess.Popen([sys.executable, "-m", "jobs.train", *arguments(config, folder)])
    try:
        eventually(lambda: last_step(config) > 2 or process.poll() is not None, "a step")
        counts.append(num_machines("trainer"))
        stream.finish()
        code = process.wait(LIMIT_S)
    finally:
        process.kill()
        process.wait(30.0)
    require_exact(config, stream.location)
    eventually(lambda: num_machines("trainer") == 0, "no machine once nothing is trained")
    counts.append(0)
    return {"machines": counts, "exit_code": code, "steps": last_step(config), "wanted_steps": NUM_STEPS}


WORK: dict[str, Callable[[Path], dict[str, Any]]] = {"serve": serve_under_load, "train": train}


def main(folder: Path, work: str) -> None:
    """Start the cluster, do the work, end it."""
    make_private(folder)
    file = folder / "fake.yaml"
    head = Machine(
        folder,
        "head",
        num_cpus=0,
        environment={"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
        options=(f"--autoscaling-config={file}",),
    )
    file.write_text(yaml.safe_dump(autoscaling(head.address)))
    os.environ["RAY_ADDRESS"] = head.address
    with head, joined(head.address):
        print(json.dumps(WORK[work](folder)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
