"""The deployment files of this repository, as data."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
LAUNCHER_FILES = [ROOT / "cluster.yaml", ROOT / "deploy" / "cluster-gcp.yaml"]
KUBERNETES_FILES = sorted((ROOT / "deploy" / "kuberay").glob("*.yaml"))
SERVE_FILES = sorted((ROOT / "serve").glob("*.yaml"))
CHECKED_FILES = [*LAUNCHER_FILES, *KUBERNETES_FILES, *SERVE_FILES]
EMBEDDED = ("serveConfigV2", "runtimeEnvYAML")
"""Keys whose value is YAML in YAML."""

Path_ = tuple[str | int, ...]


def load(path: Path) -> list[dict[str, Any]]:
    """The documents of a file, plainly."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document is not None]


def one(name: str) -> dict[str, Any]:
    """A shipped file with one document, to be changed at will."""
    (document,) = load(ROOT / name)
    return copy.deepcopy(document)


def key_paths(content: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every key, those of embedded YAML included."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*path, key)
            inner = yaml.safe_load(value) if key in EMBEDDED else value
            yield from key_paths(inner, (*path, key))
    elif isinstance(content, list):
        for number, member in enumerate(content):
            yield from key_paths(member, (*path, number))


def renamed(content: Any, path: Path_, name: str) -> Any:
    """The content with the key at a path under another name, at the same place; shares whatever is not on the way."""
    first, *rest = path
    if isinstance(content, str):
        return yaml.safe_dump(renamed(yaml.safe_load(content), path, name), sort_keys=False)
    if isinstance(content, list):
        assert isinstance(first, int)
        return [renamed(member, tuple(rest), name) if at == first else member for at, member in enumerate(content)]
    if not rest:
        return {name if key == first else key: value for key, value in content.items()}
    return {key: renamed(value, tuple(rest), name) if key == first else value for key, value in content.items()}
