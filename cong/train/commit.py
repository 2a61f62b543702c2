"""A checkpoint is written by all ranks together, and appears whole or not at all.

It is written under a temporary name. Every file is forced to disk and listed with its SHA-256 in `manifest.json`; the
marker `COMMITTED`, written last, holds the manifest's own. Then the folder takes its name.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cong.errors import CheckpointError
from cong.files import (
    digest_of,
    digests_of,
    files_below,
    json_bytes,
    make_folder,
    remove_folder,
    sync_file,
    sync_folder,
    write_file,
    write_inside,
)
from cong.train.backend import Backend
from cong.train.checkpoint import BACKEND, MANIFEST, MARKER, NEWEST, STATE, VERSION, folder_name, unfinished_folder


def save_checkpoint(
    backend: Backend, folder: Path, step: int, state: Callable[[], Mapping[str, Any]], own_files: Mapping[str, bytes]
) -> Path:
    """Write the checkpoint of a step, all ranks together.

    `state` is called on rank 0 once the backend's parts are written; `own_files` are small files of this rank.
    """
    target, unfinished = folder / folder_name(step), unfinished_folder(folder, step)
    is_first = backend.rank == 0
    with together(backend, target):
        if is_first:
            make_folder(folder)
            shutil.rmtree(unfinished, ignore_errors=True)
            (unfinished / BACKEND).mkdir(parents=True)
    with together(backend, target):
        backend.save(unfinished / BACKEND)
        for name, content in own_files.items():
            (unfinished / name).write_bytes(content)
    names: list[str] = json.loads(backend.from_first(json.dumps(files_below(unfinished)) if is_first else ""))
    # Each rank checks and forces to disk its share of all files; what it wrote itself does not matter.
    digests_name = f".digests-{backend.rank:05d}.json"
    with together(backend, target):
        mine = names[backend.rank :: backend.world_size]
        for name in mine:
            sync_file(unfinished / name)
        (unfinished / digests_name).write_bytes(json_bytes(digests_of(unfinished, mine)))
    with together(backend, target):
        if is_first:
            _commit(unfinished, target, backend.world_size, {"version": VERSION, "step": step, **state()})
    return target


@contextlib.contextmanager
def together(backend: Backend, target: Path) -> Iterator[None]:
    """A piece of work that fails on every rank if it fails on one, so that none waits for ever."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks have to hear of it
        failure = error
    failed = torch.tensor([0.0 if failure is None else 1.0], device=backend.device)
    num_failed = int(backend.total(failed).item())
    if num_failed:
        raise CheckpointError(
            f"{target} could not be written by {num_failed} of {backend.world_size} processes"
            f"{f': {failure}' if failure is not None else ''}; see that its disk has room, and run again: checkpoints "
            "before it are as they were"
        ) from failure


def _commit(unfinished: Path, target: Path, world_size: int, state: Mapping[str, Any]) -> None:
    write_inside(unfinished / STATE, json_bytes(state))
    digests: dict[str, str] = {STATE: digest_of(unfinished / STATE)}
    for rank in range(world_size):
        part = unfinished / f".digests-{rank:05d}.json"
        digests |= json.loads(part.read_text(encoding="utf-8"))
        part.unlink()
    write_inside(unfinished / MANIFEST, json_bytes({"sha256": digests}))
    for path in [*(path for path in unfinished.rglob("*") if path.is_dir()), unfinished]:
        sync_folder(path)
    write_inside(unfinished / MARKER, digest_of(unfinished / MANIFEST).encode())
    sync_folder(unfinished)
    remove_folder(target)
    unfinished.rename(target)
    sync_folder(target.parent)
    write_file(target.parent / NEWEST, json_bytes({"step": state["step"]}))
