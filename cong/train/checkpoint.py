"""Checkpoints on disk: a folder per step, which is known to be whole when it is read. `commit` writes them.

Knows files only, and no torch: what the parts mean is said by whoever hands them in.
"""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cong.errors import CheckpointError
from cong.files import digest_of, digests_of, remove_folder
from cong.train.ledger import Part, damaged_parts, last_steps

logger = logging.getLogger(__name__)

VERSION = 1
STATE, MANIFEST, MARKER, BACKEND, NEWEST = "state.json", "manifest.json", "COMMITTED", "backend", "newest.json"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte has been checked."""

    folder: Path
    step: int
    state: Mapping[str, Any]

    @property
    def ledger_parts(self) -> tuple[Part, ...]:
        """The ledger up to it."""
        return tuple(Part(**part) for part in self.state["ledger"])


def folder_name(step: int) -> str:
    """What the folder of a step is called."""
    return f"step-{step:08d}"


def unfinished_folder(folder: Path, step: int) -> Path:
    """Where a checkpoint lies until it is whole."""
    return folder / f".{folder_name(step)}.unfinished"


def problem_with(folder: Path, ledger_folder: Path) -> str | None:
    """What keeps a folder from being a complete checkpoint."""
    try:
        if digest_of(folder / MANIFEST).encode() != (folder / MARKER).read_bytes():
            return f"{MANIFEST} is not the one that was committed"
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed: dict[str, str] = manifest["sha256"]
        missing = [name for name in listed if not (folder / name).is_file()]
        if missing:
            return f"{missing[0]} is missing"
        found = digests_of(folder, listed)
        wrong = [name for name in listed if found[name] != listed[name]]
        if wrong:
            return f"{wrong[0]} is not what was written"
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["version"] != VERSION:
            return f"its version is {state['version']}; this cong reads {VERSION}"
        damaged = damaged_parts(ledger_folder, [Part(**part) for part in state["ledger"]])
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read: {error}"
    return f"the ledger is damaged: {damaged[0]}" if damaged else None


def newest_complete(folder: Path, ledger_folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None only where there has never been one, or a kill cut off the first.

    Torn and missing ones are announced. Where there were checkpoints and none is left, it is an error: starting from
    zero must be asked for.
    """
    steps = sorted((int(match[1]) for path in _listed(folder) if (match := _NAME.fullmatch(path.name))), reverse=True)
    expected = _newest_step(folder)
    problems = []
    if expected is not None and expected not in steps:
        problems.append(f"{folder / folder_name(expected)} was committed and is missing")
    for step in steps:
        path = folder / folder_name(step)
        problem = problem_with(path, ledger_folder)
        if problem is None:
            for line in problems:
                logger.warning("stepping back to step %d: %s", step, line)
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            return Checkpoint(path, step, state)
        problems.append(f"{path} is not complete: {problem}")
    saved = last_steps(ledger_folder)
    if not problems and len(saved) == 1 and unfinished_folder(folder, saved[0]).is_dir():
        logger.warning("the first checkpoint, of step %d, was being written when the run ended; it begins anew", *saved)
        return None
    if problems or saved:
        listed = "\n  ".join(problems or [f"{ledger_folder} shows steps that were saved, and {folder} holds none"])
        raise CheckpointError(
            f"no checkpoint is left to resume from:\n  {listed}\nPut one back, or remove {folder} and {ledger_folder} "
            "to start from the beginning"
        )
    return None


def committed(folder: Path) -> list[Checkpoint]:
    """Every checkpoint with its marker and a state that can be read, oldest first; other bytes are not checked."""
    found = []
    for path in sorted(_listed(folder)):
        match = _NAME.fullmatch(path.name)
        if match and (path / MARKER).is_file():
            with contextlib.suppress(OSError, ValueError):
                found.append(Checkpoint(path, int(match[1]), json.loads((path / STATE).read_text(encoding="utf-8"))))
    return found


def remove_old(folder: Path, num_kept: int) -> None:
    """Keep the newest committed checkpoints, and nothing that was left unfinished."""
    for checkpoint in committed(folder)[:-num_kept]:
        remove_folder(checkpoint.folder)
    remove_unfinished(folder)


def remove_unfinished(folder: Path) -> None:
    """What was being written, fetched or removed when a process ended."""
    for path in _listed(folder):
        if path.name.startswith(".") and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith("."):
            path.unlink(missing_ok=True)


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _newest_step(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / NEWEST).read_text(encoding="utf-8"))["step"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s); the newest checkpoint is looked for", folder / NEWEST, error)
        return None
