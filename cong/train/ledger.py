"""Which records each optimiser step of a run was trained on, in the lineage that led to its checkpoints.

Written in parts, one for each checkpoint and with it: steps that no checkpoint holds are trained again, so their keys
do not count. A part is one JSON line per step.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cong.files import digest_of, write_file

_NAME = re.compile(r"steps-\d{8}-(\d{8})\.jsonl")


@dataclass(frozen=True)
class Part:
    """The steps from behind `first_step` to `last_step`."""

    name: str
    sha256: str
    num_keys: int


class Ledger:
    """The ledger of a run that goes on; memory holds what lies behind the last checkpoint."""

    def __init__(self, folder: Path, parts: Sequence[Part] = (), step: int = 0) -> None:
        self.folder = folder
        self._parts = tuple(parts)
        self._step = step
        self._open: list[tuple[int, tuple[str, ...]]] = []

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is written."""
        return self._parts

    def add(self, step: int, keys: Sequence[str]) -> None:
        """A step was trained on these records."""
        self._open.append((step, tuple(keys)))

    def write(self, step: int) -> tuple[Part, ...]:
        """Put what is open into a part that ends with this step; all parts up to it."""
        if self._open:
            lines = "".join(json.dumps({"step": number, "keys": keys}) + "\n" for number, keys in self._open)
            name = f"steps-{self._step:08d}-{step:08d}.jsonl"
            write_file(self.folder / name, lines.encode())
            num_keys = sum(len(keys) for _, keys in self._open)
            self._parts = (*self._parts, Part(name, digest_of(self.folder / name), num_keys))
            self._open = []
        self._step = step
        return self._parts

    def remove_others(self) -> None:
        """Remove parts of steps that a resumed run takes again."""
        known = {part.name for part in self._parts}
        for path in self.folder.glob("steps-*.jsonl"):
            if path.name not in known:
                path.unlink()


def last_steps(folder: Path) -> list[int]:
    """With which step each part that lies in a folder ends, in order."""
    matches = (_NAME.fullmatch(path.name) for path in folder.glob("steps-*.jsonl"))
    return sorted(int(match[1]) for match in matches if match)


def parts_to_json(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """For a checkpoint."""
    return [asdict(part) for part in parts]


def damaged_parts(folder: Path, parts: Sequence[Part]) -> list[str]:
    """What is wrong with the parts that a checkpoint names."""
    problems = []
    for part in parts:
        path = folder / part.name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif digest_of(path) != part.sha256:
            problems.append(f"{path} is not what was written")
    return problems


def read_ledger(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Step after step with the keys of its records."""
    for path in sorted(folder.glob("steps-*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            yield int(entry["step"]), [str(key) for key in entry["keys"]]
