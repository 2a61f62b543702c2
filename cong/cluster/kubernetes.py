"""What Kubernetes objects must say beyond their shape: pods may do little, the control plane is shut, work can end."""

from collections.abc import Iterator
from typing import Any

from cong.cluster.images import image_trouble
from cong.cluster.problem import Problem, joined, near_misses, offered
from cong.cluster.serving import serve_problems
from cong.cluster.shape import Fit, known_keys, shape_of
from cong.config.loading import parse_documents
from cong.errors import ConfigError

PUBLIC_PORTS = frozenset({8000})
"""What may be reached from anywhere: the port of Serve."""
_SECRET_WORDS = ("TOKEN", "PASSWORD", "SECRET", "API_KEY", "ACCESS_KEY")
_SPOT = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
}

_DRAIN, _DRAIN_S = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "30"
"""How long Ray lets what runs on a node finish once it is told to stop, and what that is unless given."""
_POD_S = 30
"""What Kubernetes gives a pod to stop in unless told."""

Content = dict[str, Any]


def kubernetes_problems(kind: str, content: Content) -> Iterator[Problem]:
    """What is wrong in an object that has the right keys."""
    spec = content["spec"]
    if kind == "RayService":
        wrong = list(_embedded(spec["serveConfigV2"], "spec.serveConfigV2", "serve_file"))
        yield from wrong
        yield from _cluster(spec["rayClusterConfig"], "spec.rayClusterConfig")
        if not wrong:
            yield from _stopping(spec)
    elif kind == "RayJob":
        yield from _job(spec)
    elif kind == "RayCluster":
        yield from _cluster(spec, "spec")
    elif kind == "NetworkPolicy":
        yield from _network_policy(spec)


def _stopping(spec: Content) -> Iterator[Problem]:
    """Pods wait for their replicas: Ray, which is told to stop with the pod, longer than these, and the pod for Ray."""
    applications = embedded_yaml(spec["serveConfigV2"], "")["applications"]
    deployments = [one for application in applications for one in application.get("deployments", ())]
    replica_s = max((one.get("graceful_shutdown_timeout_s", 0.0) for one in deployments), default=0.0)
    for number, group in enumerate(spec["rayClusterConfig"].get("workerGroupSpecs", ())):
        place, pod = f"spec.rayClusterConfig.workerGroupSpecs.{number}.template.spec", group["template"]["spec"]
        given = {one["name"]: one.get("value") for one in pod["containers"][0].get("env", ())}
        try:
            drain_s = float(given.get(_DRAIN, _DRAIN_S))
        except (TypeError, ValueError):
            yield Problem(
                f"{place}.containers.0.env", f"{place}.containers.0.env: give {_DRAIN} as a number of seconds"
            )
            continue
        if drain_s < replica_s:
            yield Problem(
                f"{place}.containers.0.env",
                f"{place}.containers.0.env: a pod that is told to stop ends its replicas after {drain_s:g} s, and "
                f"graceful_shutdown_timeout_s is {replica_s:g}; set {_DRAIN} to as much",
            )
        pod_s = pod.get("terminationGracePeriodSeconds", _POD_S)
        if pod_s <= drain_s:
            yield Problem(
                f"{place}.terminationGracePeriodSeconds",
                f"{place}.terminationGracePeriodSeconds is {pod_s}, and Ray waits {drain_s:g} s for replicas before it "
                "ends; raise it",
            )


def embedded_yaml(text: str, place: str) -> Content:
    """A mapping that an object holds as text."""
    found = parse_documents(text, place)
    if len(found) != 1 or not isinstance(found[0], dict):
        raise ConfigError(f"{place} must hold one mapping of keys")
    content: Content = found[0]
    return content


def _embedded(text: str, place: str, shape: str) -> Iterator[Problem]:
    try:
        content = embedded_yaml(text, place)
    except ConfigError as error:
        yield Problem(place, str(error))
        return
    found = list(Fit(shape_of(shape)).problems(content))
    if not found and shape == "serve_file":
        found = list(serve_problems(content))
    for problem in found:
        yield Problem(joined(place, problem.path), f"{place}: {problem.message}")


def _job(spec: Content) -> Iterator[Problem]:
    variables: dict[str, str] = {}
    if "runtimeEnvYAML" in spec:
        wrong = list(_embedded(spec["runtimeEnvYAML"], "spec.runtimeEnvYAML", "runtime_env"))
        yield from wrong
        variables = {} if wrong else embedded_yaml(spec["runtimeEnvYAML"], "").get("env_vars", {})
    if "submitterPodTemplate" in spec:
        yield from _pod(spec["submitterPodTemplate"], "spec.submitterPodTemplate", must_stay="")
    cluster = spec.get("rayClusterSpec")
    if cluster is None:
        if "clusterSelector" not in spec:
            yield Problem("spec.rayClusterSpec", "spec.rayClusterSpec is missing; give it, or a clusterSelector")
        return
    yield from _cluster(cluster, "spec.rayClusterSpec")
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    named = {*variables, *(variable["name"] for variable in head.get("env", ()))}
    if "RAY_JOB_STOP_WAIT_TIME_S" not in named:
        yield Problem(
            "spec.runtimeEnvYAML",
            "RAY_JOB_STOP_WAIT_TIME_S is not set for the job; it is killed 3 s after it was told to stop, before a "
            "checkpoint is saved. Set it in the head container's env",
        )
    if spec.get("shutdownAfterJobFinishes") and spec.get("backoffLimit") is None:
        yield Problem(
            "spec.backoffLimit", "spec.backoffLimit is missing; a job that fails is not tried again unless it says so"
        )


def _cluster(spec: Content, place: str) -> Iterator[Problem]:
    mode = spec.get("authOptions", {}).get("mode")
    if mode != "token":
        yield Problem(
            f"{place}.authOptions.mode",
            f"{place}.authOptions.mode is {mode or 'not set'}; without a token whoever reaches a port can run code",
        )
    if "rayVersion" not in spec:
        yield Problem(f"{place}.rayVersion", f"{place}.rayVersion is missing; give the version that is in the image")
    head = spec["headGroupSpec"]
    service = head.get("headService", {}).get("spec", {}).get("type") or head.get("serviceType", "ClusterIP")
    if service != "ClusterIP":
        yield Problem(
            f"{place}.headGroupSpec.serviceType",
            f"{place}.headGroupSpec: the head's service is a {service}, which opens dashboard and jobs; use ClusterIP",
        )
    yield from _pod(head["template"], f"{place}.headGroupSpec.template", must_stay="the head")
    names: dict[str, str] = {}
    for number, group in enumerate(spec.get("workerGroupSpecs", ())):
        at = f"{place}.workerGroupSpecs.{number}"
        name = group["groupName"]
        if name in names:
            yield Problem(f"{at}.groupName", f"{at}.groupName is {name!r}, and so is {names[name]}")
        names[name] = f"{at}.groupName"
        low, wanted = group.get("minReplicas", 0), group.get("replicas", group.get("minReplicas", 0))
        high = group.get("maxReplicas", 2**31 - 1)
        if not low <= wanted <= high:
            yield Problem(f"{at}.replicas", f"{at}.replicas is {wanted}; it must lie in {low}..{high}")
        for key in ("idleTimeoutSeconds", "priority"):
            if key in group and spec.get("autoscalerOptions", {}).get("version") != "v2":
                yield Problem(
                    f"{at}.{key}",
                    f"{at}.{key} is set, and KubeRay refuses it unless {place}.autoscalerOptions.version is v2; leave "
                    "it out, or set that",
                )
        is_trainer = "trainer" in group.get("resources", {}) or "trainer" in group.get("rayStartParams", {}).get(
            "resources", ""
        )
        yield from _pod(group["template"], f"{at}.template", must_stay="a trainer" if is_trainer else "")
    if any(
        "resources" in group and "resources" in group.get("rayStartParams", {})
        for group in (head, *spec.get("workerGroupSpecs", ()))
    ):
        yield Problem(place, f"{place}: a group gives resources twice, in rayStartParams too; keep one")


def _pod(template: Content, place: str, must_stay: str) -> Iterator[Problem]:
    spec = template["spec"]
    at = f"{place}.spec"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield Problem(f"{at}.{key}", f"{at}.{key} is true; the pod would be part of its machine. Leave it out")
    for number, volume in enumerate(spec.get("volumes", ())):
        if "hostPath" in volume:
            yield Problem(
                f"{at}.volumes.{number}", f"{at}.volumes.{number} is a folder of the machine; use a volume claim"
            )
    if must_stay and any(spec.get("nodeSelector", {}).get(key) == value for key, value in _SPOT.items()):
        yield Problem(
            f"{at}.nodeSelector", f"{at}.nodeSelector asks for spot machines, and {must_stay} must not vanish"
        )
    for number, container in enumerate([*spec.get("initContainers", ()), *spec["containers"]]):
        where = f"{at}.containers.{number}"
        yield from _container(container, where, spec.get("securityContext", {}))


def _container(container: Content, place: str, of_pod: Content) -> Iterator[Problem]:
    image = container.get("image")
    trouble = "give one" if image is None else image_trouble(image)
    if trouble:
        yield Problem(f"{place}.image", f"{place}.image is {image!r}: {trouble}")
    security = of_pod | container.get("securityContext", {})
    if security.get("runAsNonRoot") is not True:
        yield Problem(f"{place}.securityContext.runAsNonRoot", f"{place}.securityContext.runAsNonRoot must be true")
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield Problem(
            f"{place}.securityContext.allowPrivilegeEscalation",
            f"{place}.securityContext.allowPrivilegeEscalation must be false, and nothing privileged",
        )
    resources = container.get("resources", {})
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    if "memory" not in limits:
        yield Problem(
            f"{place}.resources.limits.memory",
            f"{place}.resources.limits.memory is missing; Ray takes the machine's memory for its own without it",
        )
    gpus = limits.get("nvidia.com/gpu"), requests.get("nvidia.com/gpu")
    if gpus[1] is not None and gpus[0] != gpus[1]:
        yield Problem(
            f"{place}.resources.requests.nvidia.com/gpu",
            f"{place}.resources.requests.nvidia.com/gpu is {gpus[1]} and the limit is {gpus[0]}; they must be equal",
        )
    for number, variable in enumerate(container.get("env", ())):
        name = variable["name"]
        meant = near_misses(name, known_keys("environment"))
        if meant:
            yield Problem(f"{place}.env.{number}.name", f"{place}.env has {name!r}; {offered(meant)}")
        if variable.get("value") and any(word in name for word in _SECRET_WORDS) and not name.endswith("_PATH"):
            yield Problem(
                f"{place}.env.{number}.value", f"{place}.env gives {name} in clear; use valueFrom.secretKeyRef"
            )


def _network_policy(spec: Content) -> Iterator[Problem]:
    if "Ingress" not in spec.get("policyTypes", ()):
        yield Problem("spec.policyTypes", "spec.policyTypes lacks Ingress; nothing that comes in is refused")
    for number, rule in enumerate(spec.get("ingress", ())):
        if rule.get("from"):
            continue
        place = f"spec.ingress.{number}"
        opened = [entry.get("port") for entry in rule.get("ports", ())]
        if not opened or not set(opened) <= PUBLIC_PORTS or any("endPort" in entry for entry in rule["ports"]):
            yield Problem(
                place,
                f"{place} lets everyone reach {', '.join(map(str, opened)) or 'every port'}; only "
                f"{', '.join(map(str, sorted(PUBLIC_PORTS)))} may be open, or say `from` whom",
            )
