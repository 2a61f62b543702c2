"""Text to documents: which format each one is, and the shape that goes with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cong.cluster.problem import near_misses
from cong.cluster.shape import Fit, known_keys, shape_of
from cong.config.loading import parse_documents
from cong.errors import ConfigError

Format = Literal["ray_cluster", "kubernetes", "serve_file"]

FORMAT_NAMES: dict[Format, str] = {
    "ray_cluster": "a cluster file of `ray up`",
    "kubernetes": "a Kubernetes object",
    "serve_file": "a configuration of Ray Serve",
}
KINDS = ("RayCluster", "RayService", "RayJob", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget")
PROVIDERS = {"aws": ("aws_provider", "ec2_instance"), "gcp": ("gcp_provider", "gce_instance")}
"""By the launcher's name of a cloud: the shapes of its provider and of its machines."""


@dataclass(frozen=True)
class Document:
    """One document of a file."""

    content: dict[str, Any]
    format: Format
    kind: str
    """Of a Kubernetes object; empty elsewhere, and where it is not one that is known."""
    name: str
    """For people."""


def documents(text: str, origin: str) -> Iterator[Document]:
    """The documents of a file; empty ones are left out."""
    found = [content for content in parse_documents(text, origin) if content is not None]
    if not found:
        raise ConfigError(f"{origin} is empty; give a cluster file, a Serve configuration or a Kubernetes object")
    for content in found:
        if not isinstance(content, dict):
            raise ConfigError(f"{origin} holds a {type(content).__name__}; a mapping of keys is needed")
        yield recognise(content, origin)


def recognise(content: dict[str, Any], origin: str) -> Document:
    """The format with which a document shares most keys; misspelt ones count where none is spelt right."""
    known = {form: known_keys("object" if form == "kubernetes" else form) for form in FORMAT_NAMES}
    shared = {form: sum(key in keys for key in content) for form, keys in known.items()}
    if not any(shared.values()):
        shared = {form: sum(bool(near_misses(str(key), keys)) for key in content) for form, keys in known.items()}
    form = max(FORMAT_NAMES, key=lambda form: shared[form])
    if not shared[form]:
        raise ConfigError(
            f"{origin} is neither {', nor '.join(FORMAT_NAMES.values())}; its keys are "
            f"{', '.join(map(str, content)) or 'none'}"
        )
    kind = str(content.get("kind", "")) if form == "kubernetes" else ""
    return Document(content, form, kind if kind in KINDS else "", kind or FORMAT_NAMES[form])


def fit_of(document: Document) -> Fit:
    """The shape that a document must have."""
    if document.format == "kubernetes":
        return Fit(shape_of(document.kind or "object"))
    if document.format == "serve_file":
        return Fit(shape_of("serve_file"))
    provider = document.content.get("provider")
    cloud = provider.get("type") if isinstance(provider, dict) else None
    # Keys of an unknown cloud are compared with those of the one that shares most of them.
    mine = set(provider) if isinstance(provider, dict) else set[str]()
    likely = max(PROVIDERS, key=lambda name: len(mine & known_keys(PROVIDERS[name][0])))
    shape, machine = PROVIDERS.get(str(cloud), PROVIDERS[likely])
    return Fit(shape_of("ray_cluster"), {"provider": shape, "node_config": machine})
