"""Kubernetes objects: pods that may too much, an open control plane, work that cannot end."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cong.cluster.check import document_problems
from cong.cluster.document import recognise
from cong.config import RunConfig, load_config

from .shipped import KUBERNETES_FILES, ROOT, load, one
from .test_launcher import put, setting

Change = Callable[[dict[str, Any]], Any]
SERVICE, JOB, POLICY = (f"deploy/kuberay/{name}.yaml" for name in ("rayservice", "rayjob", "network-policy"))
CLUSTER = "spec/rayClusterConfig"
HEAD = f"{CLUSTER}/headGroupSpec/template/spec"
WORKER = f"{CLUSTER}/workerGroupSpecs/0"
CONTAINER = f"{WORKER}/template/spec/containers/0"


def messages(name: str, change: Change) -> list[str]:
    content = one(name)
    change(content)
    return [problem.message for problem in document_problems(recognise(content, name))]


def embedded(key: str, change: Change) -> Change:
    def outer(content: dict[str, Any]) -> None:
        inner = yaml.safe_load(content["spec"][key])
        change(inner)
        content["spec"][key] = yaml.safe_dump(inner)

    return outer


FAULTS: list[tuple[str, Change, str]] = [
    (SERVICE, setting(f"{CLUSTER}/authOptions", None), "authOptions.mode is not set"),
    (SERVICE, setting(f"{CLUSTER}/authOptions/mode", "disabled"), "authOptions.mode is disabled"),
    (SERVICE, setting(f"{CLUSTER}/authOptions/mode", "tokn"), "it must be 'disabled' or 'token'"),
    (SERVICE, setting(f"{CLUSTER}/rayVersion", None), "rayVersion is missing"),
    (SERVICE, setting(f"{CLUSTER}/rayVersion", 2.6), "rayVersion is 2.6: it must be text; put it in quotes"),
    (SERVICE, setting(f"{CLUSTER}/headGroupSpec/serviceType", "LoadBalancer"), "opens dashboard and jobs"),
    (SERVICE, setting(f"{WORKER}/minReplicas", 9), "replicas is 1; it must lie in 9..8"),
    (SERVICE, setting(f"{WORKER}/replicas", 9), "replicas is 9; it must lie in 1..8"),
    (SERVICE, setting(f"{WORKER}/idleTimeoutSeconds", 900), "idleTimeoutSeconds is set, and KubeRay refuses it unless"),
    (SERVICE, setting(f"{WORKER}/priority", 1), "priority is set, and KubeRay refuses it unless"),
    (
        SERVICE,
        setting("spec/serviceUnhealthySecondThreshold", 900),
        "unknown key 'spec.serviceUnhealthySecondThreshold'",
    ),
    (SERVICE, setting(f"{WORKER}/template/spec/hostNetwork", True), "hostNetwork is true"),
    (
        SERVICE,
        setting(f"{WORKER}/template/spec/volumes/0", {"name": "models", "hostPath": {"path": "/"}}),
        "volumes.0 is a folder of the machine",
    ),
    (SERVICE, setting(f"{CONTAINER}/image", "me/cong:latest"), "the tag 'latest' moves"),
    (SERVICE, setting(f"{CONTAINER}/image", None), "image is None: give one"),
    (SERVICE, setting(f"{WORKER}/template/spec/securityContext/runAsNonRoot", False), "runAsNonRoot must be true"),
    (SERVICE, setting(f"{CONTAINER}/securityContext", None), "allowPrivilegeEscalation must be false"),
    (SERVICE, setting(f"{CONTAINER}/securityContext/privileged", True), "and nothing privileged"),
    (SERVICE, setting(f"{CONTAINER}/resources/limits/memory", None), "limits.memory is missing"),
    (SERVICE, setting(f"{CONTAINER}/resources/limits", {"memory": "1Gi", "nvidia.com/gpu": "2"}), "they must be equal"),
    (
        SERVICE,
        setting(f"{CONTAINER}/env", [{"name": "RAY_AUTH_MOD", "value": "x"}]),
        "'RAY_AUTH_MOD'; the nearest known one is 'RAY_AUTH_MODE'",
    ),
    (SERVICE, setting(f"{CONTAINER}/env", [{"name": "CONG_API_KEY", "value": "x"}]), "gives CONG_API_KEY in clear"),
    (SERVICE, setting(f"{CONTAINER}/env", []), "ends its replicas after 30 s, and graceful_shutdown_timeout_s is 645"),
    (SERVICE, setting(f"{CONTAINER}/env/0/value", "690s"), "give RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S as a number"),
    (
        SERVICE,
        setting(f"{WORKER}/template/spec/terminationGracePeriodSeconds", 690),
        "terminationGracePeriodSeconds is 690, and Ray waits 690 s",
    ),
    (
        SERVICE,
        setting(f"{WORKER}/template/spec/terminationGracePeriodSeconds", None),
        "terminationGracePeriodSeconds is 30, and Ray waits 690 s",
    ),
    (SERVICE, setting(f"{HEAD}/nodeSelector", {"karpenter.sh/capacity-type": "spot"}), "the head must not vanish"),
    (SERVICE, embedded("serveConfigV2", setting("http_options/host", None)), "spec.serveConfigV2: http_options.host"),
    (SERVICE, embedded("serveConfigV2", setting("proxy_location", "Everywhere")), "proxy_location is 'Everywhere'"),
    (SERVICE, setting("spec/serveConfigV2", "- a\n"), "spec.serveConfigV2 must hold one mapping"),
    (SERVICE, setting("spec/serveConfigV2", "a: b: c"), "spec.serveConfigV2 is not YAML"),
    (SERVICE, setting("kind", "RayServise"), "kind is 'RayServise', and no such object is known here"),
    (SERVICE, setting("apiVersion", "ray.io/v1alpha1"), "apiVersion is 'ray.io/v1alpha1': it must be 'ray.io/v1'"),
    (JOB, setting("spec/backoffLimit", None), "spec.backoffLimit is missing"),
    (JOB, setting("spec/rayClusterSpec", None), "spec.rayClusterSpec is missing"),
    (JOB, embedded("runtimeEnvYAML", setting("env_vars/OMP_NUM_THREADS", 1)), "put it in quotes"),
    (
        JOB,
        setting(
            "spec/rayClusterSpec/workerGroupSpecs/0/template/spec/nodeSelector", {"cloud.google.com/gke-spot": "true"}
        ),
        "a trainer must not vanish",
    ),
    (JOB, setting("spec/submitterPodTemplate/spec/containers/0/image", "me/cong"), "it has no tag"),
    (POLICY, setting("spec/policyTypes", ["Egress"]), "spec.policyTypes lacks Ingress"),
    (POLICY, setting("spec/ingress/3/ports/0/port", 8265), "spec.ingress.3 lets everyone reach 8265"),
    (POLICY, setting("spec/ingress/3/ports/0/endPort", 9000), "spec.ingress.3 lets everyone reach 8000"),
    (POLICY, setting("spec/ingress/3", {}), "spec.ingress.3 lets everyone reach every port"),
    (POLICY, setting("spec/ingress/1/from", []), "spec.ingress.1 lets everyone reach 8265"),
]


@pytest.mark.parametrize(("name", "change", "complaint"), FAULTS, ids=[complaint[:50] for _, _, complaint in FAULTS])
def test_a_fault_is_named(name: str, change: Change, complaint: str) -> None:
    found = messages(name, change)
    assert any(complaint in message for message in found), found


def test_a_job_that_is_stopped_needs_time_to_save() -> None:
    def change(content: dict[str, Any]) -> None:
        embedded("runtimeEnvYAML", setting("env_vars", {}))(content)
        put(content, "spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/env", [])

    (message,) = messages(JOB, change)
    assert "killed 3 s after it was told to stop" in message


def test_what_only_the_newer_autoscaler_knows_may_be_said_to_it() -> None:
    def change(content: dict[str, Any]) -> None:
        put(content, f"{CLUSTER}/autoscalerOptions/version", "v2")
        put(content, f"{WORKER}/idleTimeoutSeconds", 900)

    assert messages(SERVICE, change) == []


def test_two_groups_of_one_name_are_refused() -> None:
    def change(content: dict[str, Any]) -> None:
        groups = content["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        groups.append(groups[0])

    assert any("groupName is 'sampler', and so is" in message for message in messages(SERVICE, change))


def test_an_object_without_a_kind_is_told_so() -> None:
    assert messages(POLICY, setting("kind", None)) == ["kind is missing"]


def documents(kind: str) -> list[dict[str, Any]]:
    return [content for path in KUBERNETES_FILES for content in load(path) if content["kind"] == kind]


def test_the_policy_covers_every_pod_of_the_shipped_clusters_and_of_no_other() -> None:
    (policy,) = documents("NetworkPolicy")
    label = policy["spec"]["podSelector"]["matchLabels"]
    specs = [service["spec"]["rayClusterConfig"] for service in documents("RayService")]
    specs += [job["spec"]["rayClusterSpec"] for job in documents("RayJob")]
    templates = [spec["headGroupSpec"]["template"] for spec in specs]
    templates += [group["template"] for spec in specs for group in spec["workerGroupSpecs"]]
    templates += [job["spec"]["submitterPodTemplate"] for job in documents("RayJob")]
    assert len(templates) == 5
    for template in templates:
        assert label.items() <= template["metadata"]["labels"].items()


def test_volumes_that_pods_ask_for_are_shipped() -> None:
    claims = {claim["metadata"]["name"] for claim in documents("PersistentVolumeClaim")}
    text = "".join(path.read_text() for path in KUBERNETES_FILES)
    asked = {part.split("}")[0].split(",")[0].strip() for part in text.split("claimName:")[1:]}
    assert asked == claims


def test_samplers_and_trainers_offer_what_replicas_and_workers_ask_for() -> None:
    (service,) = documents("RayService")
    asked = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]["resources"]
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    offered = yaml.safe_load(yaml.safe_load(group["rayStartParams"]["resources"]))
    assert asked["custom"].items() <= offered.items()
    assert asked["num_gpus"] <= int(group["rayStartParams"]["num-gpus"])
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert asked["num_cpus"] <= int(limits["cpu"])
    assert limits["nvidia.com/gpu"] == group["rayStartParams"]["num-gpus"]


def test_a_pod_outlives_what_its_replica_may_take_to_stop() -> None:
    (service,) = documents("RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    (deployment,) = application["deployments"]
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
    assert application["args"]["service"]["max_deadline_s"] < deployment["graceful_shutdown_timeout_s"] < grace_s


def test_the_service_is_that_of_the_file_that_explains_its_numbers() -> None:
    """Without a wait for company, a store on S3 is listed to a standstill: docs/scaling.md."""
    (service,) = documents("RayService")
    (ours,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    (explained,) = one("serve/config.yaml")["applications"]
    assert ours["args"]["stream"]["write"] == explained["args"]["stream"]["write"]
    (own,), (other,) = ours["deployments"], explained["deployments"]
    assert own == {name: value for name, value in other.items() if name != "max_surge_percent"}


def test_a_stopped_job_has_the_time_that_its_configuration_takes() -> None:
    (job,) = documents("RayJob")
    entrypoint = job["spec"]["entrypoint"].split()
    files = [ROOT / path for flag, path in itertools.pairwise(entrypoint) if flag == "--config"]
    settings = [setting for flag, setting in itertools.pairwise(entrypoint) if flag == "--set"]
    config = load_config(RunConfig, files, settings)
    waits = {int(yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])}
    pods = [job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]]
    pods += [group["template"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    waits |= {
        int(variable["value"])
        for variable in pods[0]["spec"]["containers"][0]["env"]
        if variable["name"] == "RAY_JOB_STOP_WAIT_TIME_S"
    }
    (wait_s,) = waits
    assert config.training_job.grace_s < wait_s
    assert all(pod["spec"]["terminationGracePeriodSeconds"] > wait_s for pod in pods)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert int(group["rayStartParams"]["num-gpus"]) >= config.training_job.num_workers
    assert Path(config.output_dir).is_relative_to("/runs"), "what a run writes outlives its pods"


def test_the_shipped_objects_name_the_pinned_ray() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    versions = {service["spec"]["rayClusterConfig"]["rayVersion"] for service in documents("RayService")}
    versions |= {job["spec"]["rayClusterSpec"]["rayVersion"] for job in documents("RayJob")}
    assert versions == {pinned["ray"]}
