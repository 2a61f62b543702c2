"""The mark of a complete stage: what it was made from, what it made, and every file of it; there or not there.

Written last and by a rename, so a stage that was killed has none. Knows no kinds of work.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from cong import __version__
from cong.config.models import NetworkConfig
from cong.files import write_file
from cong.pipeline.stage import Product
from cong.schemas import Record

MARKER_VERSION = 1
MARKER, BEGUN = "complete.json", "begun.json"


class FileFact(Record):
    """One file as it was when the stage was complete."""

    num_bytes: int
    modified_ns: int
    sha256: str


class Marker(Record):
    """A complete stage."""

    version: int = Field(default=MARKER_VERSION, ge=1, le=MARKER_VERSION)
    stage: str
    recipe: dict[str, Any]
    """Everything that decided what was made, flat: inputs by fingerprint, settings by their names."""
    fingerprint: str
    location: str
    """Of the product, relative to the stage's folder where it lies there."""
    network: bool = False
    facts: dict[str, int | float | str]
    files: dict[str, FileFact]
    """By name relative to the stage's folder."""
    seconds: float
    """Of the attempt that completed it."""
    finished_at: str
    software: dict[str, str]

    def product(self, folder: Path) -> Product:
        """What lies in the stage's folder."""
        location = str(folder / self.location)
        return Product(
            self.fingerprint, location, NetworkConfig(source=location) if self.network else None, dict(self.facts)
        )


def file_facts(folder: Path, names: Iterable[str]) -> dict[str, FileFact]:
    """Sizes, times and digests of a stage's files; a folder stands for every file in it that is not hidden."""
    facts = {}
    for path in _files(folder, names):
        stat = path.stat()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        facts[path.relative_to(folder).as_posix()] = FileFact(
            num_bytes=stat.st_size, modified_ns=stat.st_mtime_ns, sha256=digest
        )
    return facts


def _files(folder: Path, names: Iterable[str]) -> list[Path]:
    found: list[Path] = []
    for name in names:
        path = folder / name
        if path.is_dir():
            inside = (each for each in path.rglob("*") if each.is_file())
            found += [each for each in inside if not any(p.startswith(".") for p in each.relative_to(folder).parts)]
        else:
            found.append(path)
    return sorted(found)


def write_marker(
    folder: Path,
    stage: str,
    recipe: Mapping[str, Any],
    product: Product,
    files: Iterable[str],
    seconds: float,
) -> Marker:
    """Declare a stage complete."""
    marker = Marker(
        stage=stage,
        recipe=dict(recipe),
        fingerprint=product.fingerprint,
        location=Path(product.location).relative_to(folder).as_posix(),
        network=product.network is not None,
        facts=dict(product.facts),
        files=file_facts(folder, files),
        seconds=round(seconds, 3),
        finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        software={"cong": __version__},
    )
    write_file(folder / MARKER, (marker.model_dump_json(indent=1) + "\n").encode())
    return marker


def read_marker(folder: Path) -> Marker | None:
    """The mark of a stage's folder; None where it is not complete."""
    try:
        return Marker.model_validate_json((folder / MARKER).read_bytes())
    except (OSError, ValidationError):
        return None


def damage_of(folder: Path, marker: Marker) -> str:
    """What is not as it was when the stage was complete; empty = nothing. Bytes are read where times differ."""
    for name, fact in marker.files.items():
        path = folder / name
        try:
            stat = path.stat()
        except OSError:
            return f"{path} is gone"
        if stat.st_size != fact.num_bytes:
            return f"{path} has {stat.st_size} bytes and had {fact.num_bytes}"
        if stat.st_mtime_ns != fact.modified_ns:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != fact.sha256:
                    return f"{path} has another content"
    return ""


def write_begun(folder: Path, key: str, recipe: Mapping[str, Any], streams: Mapping[str, str | None]) -> None:
    """Say what a stage's folder is for, before any work; `streams` are the names of those that it reads."""
    content = {"key": key, "streams": dict(streams), "recipe": dict(recipe)}
    write_file(folder / BEGUN, (json.dumps(content, indent=1) + "\n").encode())


def read_begun(folder: Path) -> dict[str, str | None] | None:
    """The streams that the work in a folder was begun on, by role; None where none was begun."""
    try:
        streams: dict[str, str | None] = json.loads((folder / BEGUN).read_text(encoding="utf-8"))["streams"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return streams


def is_begun(folder: Path) -> bool:
    """Whether work has begun there."""
    return (folder / BEGUN).exists()
