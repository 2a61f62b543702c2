"""What a cluster file of `ray up` must say beyond its shape, so that nothing falls back to the launcher's defaults.

Those defaults are dangerous: the dashboard on every address, an unreleased Ray for another Python, SSH for the whole
internet, a machine role that may do anything with machines and storage.
"""

from collections.abc import Callable, Iterator
from typing import Any

from cong.cluster.commands import docker_variables, flags_of, published_ports, variables_of
from cong.cluster.images import image_trouble
from cong.cluster.problem import Problem, near_misses, offered
from cong.config.spelling import nearest

Cluster = dict[str, Any]
Rule = Callable[[Cluster], Iterator[Problem]]

COMMAND_LISTS = {
    "initialization_commands": "nothing on AWS, and whatever the next release brings",
    "setup_commands": "an install of an unreleased Ray for another Python",
    "head_setup_commands": "an install of an unpinned package",
    "worker_setup_commands": "nothing, and whatever the next release brings",
    "head_start_ray_commands": "a dashboard on every address, without authentication",
    "worker_start_ray_commands": "a start without authentication",
}
"""Lists that a file must give, and what Ray puts in their place."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONTROL_PORTS = {6379: "cluster state", 8076: "object manager", 8265: "dashboard and jobs", 10001: "Ray client"}
_INTERNET = ("0.0.0.0/0", "::/0")


def _head(cluster: Cluster) -> str:
    return str(cluster["head_node_type"])


def _types(cluster: Cluster) -> dict[str, Cluster]:
    types: dict[str, Cluster] = cluster["available_node_types"]
    return types


def node_types(cluster: Cluster) -> Iterator[Problem]:
    """Names and numbers of machines fit together."""
    types, head = _types(cluster), _head(cluster)
    if head not in types:
        yield Problem(
            "head_node_type",
            f"head_node_type is {head!r}, and available_node_types has {', '.join(map(repr, types)) or 'none'}; "
            f"{offered(nearest(head, types))}",
        )
    resources = {name for node in types.values() for name in node["resources"]}
    for name in types:
        meant = near_misses(name, {head, *resources})
        if meant:
            place = f"available_node_types.{name}"
            yield Problem(place, f"{place}: nothing else in the file is called {name!r}; {offered(meant)}")
    most = cluster.get("max_workers", 2)
    for name, node in types.items():
        place = f"available_node_types.{name}"
        low, high = node.get("min_workers", 0), node.get("max_workers", most)
        if low > high:
            yield Problem(f"{place}.min_workers", f"{place}.min_workers is {low}, more than its max_workers, {high}")
        if high > most:
            yield Problem(
                f"{place}.max_workers",
                f"{place}.max_workers is {high}, more than the cluster's max_workers, {most}; raise that or lower this",
            )
        if name == head and node.get("max_workers", 0) > 0:
            yield Problem(
                f"{place}.max_workers", f"{place}.max_workers is {high}: the head is one machine; leave it out or say 0"
            )
    total = sum(node.get("min_workers", 0) for node in types.values())
    if total > most:
        yield Problem(
            "max_workers", f"max_workers is {most}, and the node types' min_workers add up to {total}; raise it"
        )


def commands(cluster: Cluster) -> Iterator[Problem]:
    """Every list of commands is the file's own, and starts Ray as it must be started."""
    for name, default in COMMAND_LISTS.items():
        if name not in cluster:
            yield Problem(name, f"{name} is missing; Ray puts in its own, which is {default}. Write [] for none")
    starts = {
        name: [flags for command in cluster.get(name, ()) if (flags := flags_of(command, "ray", "start")) is not None]
        for name in ("head_start_ray_commands", "worker_start_ray_commands")
    }
    for name, found in starts.items():
        if name in cluster and len(found) != 1:
            yield Problem(name, f"{name} starts Ray {len(found)} times; exactly one command must be `ray start ...`")
    for flags in starts["head_start_ray_commands"]:
        host = flags.get("--dashboard-host", "")
        if host not in LOOPBACK:
            yield Problem(
                "head_start_ray_commands",
                f"head_start_ray_commands: --dashboard-host is {host or 'not given'}; whoever reaches the dashboard "
                "can run code on the cluster. Give --dashboard-host=127.0.0.1 and use `ray dashboard` for a tunnel",
            )
        for flag in ("--head", "--autoscaling-config"):
            if flag not in flags:
                yield Problem("head_start_ray_commands", f"head_start_ray_commands: `ray start` lacks {flag}")
    for flags in starts["worker_start_ray_commands"]:
        if "--address" not in flags:
            yield Problem("worker_start_ray_commands", "worker_start_ray_commands: `ray start` lacks --address")
    for name in COMMAND_LISTS:
        for number, command in enumerate(cluster.get(name, ())):
            yield from _installs(f"{name}.{number}", command)


def _installs(place: str, command: str) -> Iterator[Problem]:
    if "ray-wheels/latest" in command:
        yield Problem(place, f"{place} installs an unreleased Ray; use the image's")
    for program in (("pip", "install"), ("python", "-m", "pip", "install"), ("uv", "pip", "install")):
        flags = flags_of(command, *program)
        bounds = ("--constraint", "--require-hashes", "--no-deps", "--no-index")
        if flags is not None and not any(flag in flags for flag in bounds):
            yield Problem(place, f"{place} installs whatever is newest; add --constraint FILE or --no-deps")


def authentication(cluster: Cluster) -> Iterator[Problem]:
    """Token mode on every node, and a token to go with it."""
    docker = cluster.get("docker", {})
    shared = docker_variables(docker.get("run_options", ()))
    for name, extra in (
        ("head_start_ray_commands", "head_run_options"),
        ("worker_start_ray_commands", "worker_run_options"),
    ):
        variables = shared | docker_variables(docker.get(extra, ()))
        for command in cluster.get(name, ()):
            variables |= variables_of(command)
        mode = variables.get("RAY_AUTH_MODE")
        if mode != "token":
            yield Problem(
                name,
                f"{name}: RAY_AUTH_MODE is {mode or 'not set'}; without a token whoever reaches a port can run "
                "code. Add `-e RAY_AUTH_MODE=token` to docker.run_options",
            )
        path = variables.get("RAY_AUTH_TOKEN_PATH", "")
        mounts = cluster.get("file_mounts", {})
        if path not in mounts:
            near = f"; of the mounts {offered(nearest(path, mounts))}" if path and mounts else ""
            yield Problem(
                "file_mounts",
                f"file_mounts: RAY_AUTH_TOKEN_PATH is {path!r} for {name}, and no token is mounted there{near}",
            )


def images(cluster: Cluster) -> Iterator[Problem]:
    """Every machine runs an image that stays what it is."""
    docker = cluster.get("docker")
    if docker is None:
        yield Problem("docker", "docker is missing; without an image every machine installs its own versions")
        return
    named = {f"docker.{key}": docker[key] for key in ("image", "head_image", "worker_image") if key in docker}
    for name, node in _types(cluster).items():
        if "worker_image" in node.get("docker", {}):
            named[f"available_node_types.{name}.docker.worker_image"] = node["docker"]["worker_image"]
    if "docker.image" not in named and not {"docker.head_image", "docker.worker_image"} <= set(named):
        yield Problem("docker.image", "docker.image is missing; give it, or both head_image and worker_image")
    for place, image in named.items():
        trouble = image_trouble(image)
        if trouble:
            yield Problem(place, f"{place} is {image!r}: {trouble}")
    if not docker.get("container_name"):
        yield Problem("docker.container_name", "docker.container_name is missing; Ray does not use docker without it")


def ports(cluster: Cluster) -> Iterator[Problem]:
    """Nobody outside reaches the control plane."""
    docker = cluster.get("docker", {})
    for key in ("run_options", "head_run_options", "worker_run_options"):
        for published in published_ports(docker.get(key, ())):
            if not published.startswith(tuple(f"{host}:" for host in LOOPBACK)):
                yield Problem(
                    f"docker.{key}", f"docker.{key} publishes {published}; the control plane must not be reachable"
                )
    group = cluster["provider"].get("security_group", {})
    for number, rule in enumerate(group.get("IpPermissions", ())):
        place = f"provider.security_group.IpPermissions.{number}"
        sources = [entry.get("CidrIp") for entry in rule.get("IpRanges", ())]
        sources += [entry.get("CidrIpv6") for entry in rule.get("Ipv6Ranges", ())]
        is_all = str(rule.get("IpProtocol", "-1")) == "-1" or rule.get("FromPort", -1) == -1
        first, last = (0, 65_535) if is_all else (rule["FromPort"], rule.get("ToPort", rule["FromPort"]))
        opened = [f"{port} ({what})" for port, what in CONTROL_PORTS.items() if first <= port <= last]
        if opened and any(source in _INTERNET for source in sources):
            yield Problem(place, f"{place} opens {', '.join(opened)} to the internet; open 22 to your own address only")


def machines(cluster: Cluster) -> Iterator[Problem]:
    """What is billed, what may vanish, and what a machine is allowed to do in the cloud."""
    head, is_aws = _head(cluster), cluster["provider"]["type"] == "aws"
    for name, node in _types(cluster).items():
        place, machine = f"available_node_types.{name}.node_config", node["node_config"]
        if _is_spot(machine) and (name == head or "trainer" in node["resources"]):
            what = "the head" if name == head else "a trainer"
            yield Problem(
                place, f"{place} asks for spot machines, and {name!r} is {what}, which must not vanish; use on-demand"
            )
        if is_aws and not (machine.keys() & {"SecurityGroupIds", "NetworkInterfaces"}):
            yield Problem(
                f"{place}.SecurityGroupIds",
                f"{place}.SecurityGroupIds is missing; Ray makes a group that lets the whole internet reach SSH",
            )
        role = "IamInstanceProfile" if is_aws else "serviceAccounts"
        if role not in machine:
            consequence = (
                "Ray makes a role that may do anything with machines and storage"
                if name == head
                else "the machine cannot reach shared storage"
            )
            yield Problem(f"{place}.{role}", f"{place}.{role} is missing; {consequence}")
    for key, value in cluster["provider"].get("aws_credentials", {}).items():
        if value:
            yield Problem(
                f"provider.aws_credentials.{key}", f"provider.aws_credentials.{key}: keep secrets out of files"
            )


def _is_spot(machine: Cluster) -> bool:
    scheduling = machine.get("scheduling", {})
    entries = scheduling if isinstance(scheduling, list) else [scheduling]
    return machine.get("InstanceMarketOptions", {}).get("MarketType") == "spot" or any(
        entry.get("preemptible") or entry.get("provisioningModel") == "SPOT" for entry in entries
    )


RULES: tuple[Rule, ...] = (node_types, commands, authentication, images, ports, machines)
