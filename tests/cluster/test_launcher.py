"""Cluster files of `ray up`: each fault that Ray would accept is named."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from cong.cluster.check import document_problems
from cong.cluster.document import recognise

from .shipped import one

Change = Callable[[dict[str, Any]], Any]


def messages(change: Change, name: str = "cluster.yaml") -> list[str]:
    content = one(name)
    change(content)
    return [problem.message for problem in document_problems(recognise(content, name))]


def put(content: Any, path: str, value: Any) -> None:
    *way, last = path.split("/")
    for key in way:
        content = content[int(key) if isinstance(content, list) else key]
    if value is None:
        del content[last]
    else:
        content[int(last) if isinstance(content, list) else last] = value


def setting(path: str, value: Any) -> Change:
    return lambda content: put(content, path, value)


FAULTS: list[tuple[Change, str]] = [
    (setting("head_node_type", "hed"), "head_node_type is 'hed', and available_node_types has"),
    (setting("available_node_types/sampler/min_workers", 9), "sampler.min_workers is 9, more than its max_workers, 8"),
    (
        setting("available_node_types/trainer/max_workers", 11),
        "trainer.max_workers is 11, more than the cluster's max_workers, 10",
    ),
    (setting("available_node_types/head/max_workers", 1), "the head is one machine"),
    (setting("available_node_types/sampler/resources/GPU", 0.5), "GPU is 0.5: it must be a whole number"),
    (setting("available_node_types/sampler/resources", None), "sampler.resources is missing"),
    (setting("available_node_types/sampler/node_config/InstanceType", None), "InstanceType is missing"),
    (
        setting("available_node_types/trainer/node_config/InstanceMarketOptions", {"MarketType": "spot"}),
        "'trainer' is a trainer, which must not vanish",
    ),
    (
        setting("available_node_types/head/node_config/InstanceMarketOptions", {"MarketType": "spot"}),
        "'head' is the head, which must not vanish",
    ),
    (
        setting("available_node_types/sampler/node_config/InstanceMarketOptions/MarketType", "spt"),
        "MarketType is 'spt': it must be 'spot' or 'capacity-block'",
    ),
    (setting("available_node_types/head/node_config/SecurityGroupIds", None), "lets the whole internet reach SSH"),
    (setting("available_node_types/head/node_config/IamInstanceProfile", None), "may do anything with machines"),
    (setting("available_node_types/sampler/node_config/IamInstanceProfile", None), "cannot reach shared storage"),
    (setting("docker/worker_image", "me/cong"), "docker.worker_image is 'me/cong': it has no tag"),
    (setting("docker/worker_image", "me/cong:latest"), "the tag 'latest' moves"),
    (setting("docker/worker_image", "me/cong:latest-cuda"), "the tag 'latest-cuda' moves"),
    (setting("docker/worker_image", "host:5000/cong"), "it has no tag"),
    (setting("docker/worker_image", "me/cong:cuda"), "holds no version"),
    (setting("docker/head_image", None), "docker.image is missing"),
    (setting("docker/container_name", None), "docker.container_name is missing"),
    (setting("docker", None), "docker is missing"),
    (setting("docker/run_options/2", "-e RAY_AUTH_MODE=disabled"), "RAY_AUTH_MODE is disabled"),
    (setting("docker/run_options/2", "--init"), "RAY_AUTH_MODE is not set"),
    (setting("docker/run_options/0", "-p 0.0.0.0:8265:8265"), "publishes 0.0.0.0:8265:8265"),
    (setting("docker/run_options/0", "--publish-all"), "publishes --publish-all"),
    (setting("file_mounts", {}), "no token is mounted there"),
    (setting("setup_commands", None), "setup_commands is missing; Ray puts in its own"),
    (setting("worker_setup_commands", None), "worker_setup_commands is missing"),
    (setting("initialization_commands", None), "initialization_commands is missing"),
    (setting("head_start_ray_commands/1", "ray start --head --autoscaling-config=x"), "--dashboard-host is not given"),
    (
        setting("head_start_ray_commands/1", "ray start --head --dashboard-host 0.0.0.0 --autoscaling-config=x"),
        "--dashboard-host is 0.0.0.0",
    ),
    (
        setting("head_start_ray_commands/1", "ray start --head --dashboard-host=127.0.0.1"),
        "`ray start` lacks --autoscaling-config",
    ),
    (setting("head_start_ray_commands", ["ray stop"]), "starts Ray 0 times"),
    (setting("worker_start_ray_commands/1", "ray start"), "`ray start` lacks --address"),
    (setting("setup_commands/0", "pip install cong"), "setup_commands.0 installs whatever is newest"),
    (
        setting("setup_commands/0", "which ray || pip install -U 'ray @ https://x/ray-wheels/latest/r'"),
        "unreleased Ray",
    ),
    (setting("setup_commands/0", "cd /x && python -m pip install -U cong"), "setup_commands.0 installs whatever"),
    (
        setting(
            "provider/security_group",
            {
                "IpPermissions": [
                    {"IpProtocol": "tcp", "FromPort": 0, "ToPort": 9000, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
                ]
            },
        ),
        "opens 6379 (cluster state), 8076 (object manager), 8265 (dashboard and jobs) to the internet",
    ),
    (
        setting(
            "provider/security_group", {"IpPermissions": [{"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}]}
        ),
        "10001 (Ray client) to the internet",
    ),
    (setting("provider/aws_credentials", {"aws_secret_access_key": "x"}), "keep secrets out of files"),
    (setting("provider/type", "azure"), "provider.type is 'azure': it must be 'aws' or 'gcp'"),
    (setting("provider/region", None), "provider.region is missing"),
    (setting("auth/ssh_user", None), "auth.ssh_user is missing"),
    (setting("max_workers", "10"), "max_workers is '10': it must be a whole number"),
    (setting("max_workers", -1), "max_workers is -1"),
]


@pytest.mark.parametrize(("change", "complaint"), FAULTS, ids=[complaint[:50] for _, complaint in FAULTS])
def test_a_fault_is_named(change: Change, complaint: str) -> None:
    found = messages(change)
    assert any(complaint in message for message in found), found


def test_machines_that_must_run_and_do_not_fit_are_counted() -> None:
    def change(content: dict[str, Any]) -> None:
        for name, number in (("sampler", 8), ("trainer", 1)):
            content["available_node_types"][name]["min_workers"] = number
        content["max_workers"] = 8

    assert "max_workers is 8, and the node types' min_workers add up to 9; raise it" in messages(change)


@pytest.mark.parametrize(
    "scheduling",
    [{"provisioningModel": "SPOT"}, {"preemptible": True}, [{"preemptible": True}]],
    ids=["model", "flag", "list"],
)
def test_spot_machines_are_seen_on_google_cloud(scheduling: Any) -> None:
    place = "available_node_types/trainer/node_config/scheduling"
    (message,) = messages(setting(place, scheduling), "deploy/cluster-gcp.yaml")
    assert "which must not vanish" in message
    assert messages(setting(place.replace("trainer", "sampler"), scheduling), "deploy/cluster-gcp.yaml") == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (setting("available_node_types/sampler/node_config/InstanceTyp", "x"), "node_config.InstanceTyp"),
        (setting("available_node_types/sampler/min_workers", 9), "more than its max_workers"),
        (setting("provider/regoin", "x"), "provider.regoin"),
        (setting("docker/worker_image", "me/cong:latest"), "moves"),
    ],
)
def test_ray_itself_takes_what_is_refused_here(change: Change, complaint: str) -> None:
    """The reason for this check; should Ray refuse these one day, its message may be enough."""
    content = one("cluster.yaml")
    change(content)
    validate_config(prepare_config(content))
    assert any(complaint in problem.message for problem in document_problems(recognise(content, "")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (setting("docker/worker_image", f"me/cong@sha256:{'0' * 64}"), "a digest stands for one image"),
        (setting("docker/worker_image", "host:5000/team/cong:0.1.0-cuda"), "a registry may have a port"),
        (setting("docker/run_options/0", "-p 127.0.0.1:8265:8265"), "loopback is no network"),
        (setting("docker/run_options/2", "--env=RAY_AUTH_MODE=token"), "another spelling"),
        (setting("setup_commands/0", "pip install --no-deps /wheels/cong.whl"), "nothing else comes along"),
        (setting("setup_commands/0", "python -m pip install --constraint c.txt cong"), "versions are bounded"),
        (
            setting(
                "available_node_types/judge",
                {
                    "resources": {"CPU": 4, "judge": 1},
                    "max_workers": 1,
                    "node_config": {"InstanceType": "x", "SecurityGroupIds": ["s"], "IamInstanceProfile": {"Arn": "a"}},
                },
            ),
            "names of one's own",
        ),
        (
            setting(
                "provider/security_group",
                {
                    "IpPermissions": [
                        {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
                    ]
                },
            ),
            "443 is no port of Ray",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_right_is_left_alone(change: Change, reason: str) -> None:
    assert messages(change) == [], reason


def test_authentication_may_stand_in_the_start_commands() -> None:
    def change(content: dict[str, Any]) -> None:
        content["docker"]["run_options"] = []
        prefix = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/home/ray/.ray/auth_token; "
        for name in ("head_start_ray_commands", "worker_start_ray_commands"):
            content[name] = [prefix + command for command in content[name]]

    assert messages(change) == []


def test_a_misspelt_name_of_a_node_type_is_noticed() -> None:
    content = one("cluster.yaml")
    types = content["available_node_types"]
    types["samper"] = types.pop("sampler")
    (problem,) = document_problems(recognise(content, ""))
    assert re.search("nothing else in the file is called 'samper'; the nearest known one is 'sampler'", problem.message)
