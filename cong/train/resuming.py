"""Going on from a checkpoint: which one, whether it belongs to this run, and everything put back as it was."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cong.errors import CheckpointError, CongError
from cong.stream import Cursor
from cong.train.backend import Backend
from cong.train.checkpoint import BACKEND, MARKER, STATE, Checkpoint, committed, folder_name, newest_complete
from cong.train.data.feed import Feed
from cong.train.data.stream_source import stream_cursors
from cong.train.folder import RunFolder
from cong.train.ledger import Ledger
from cong.train.progress import Progress
from cong.train.randomness import restore_generators, seed_all
from cong.train.recipe import Recipe, require_same
from cong.train.remote import RemoteCheckpoints
from cong.train.saving import generators_file

logger = logging.getLogger(__name__)

T = TypeVar("T")


def find_checkpoint(backend: Backend, folder: RunFolder, recipe: Recipe) -> Checkpoint | None:
    """The newest complete checkpoint of this run, on every rank; None where the run is new."""

    def look() -> int | None:
        if folder.remote is not None:
            _bring_newer(folder, folder.remote, recipe)
            folder.remote.require_place()
        found = newest_complete(folder.checkpoints, folder.ledger)
        if found is None:
            # What a first save left that was cut off; before its unfinished checkpoint goes, by which it is known.
            folder.new_ledger().remove_others()
            return None
        for line in require_same(_without_frozen(found.state["recipe"]), recipe, str(found.folder)):
            logger.warning("resuming with a setting changed: %s", line)
        return found.step

    step = on_first(backend, look)
    if step is None:
        return None
    path = folder.checkpoints / folder_name(step)
    try:
        return Checkpoint(path, step, json.loads((path / STATE).read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(
            f"rank {backend.rank} cannot read {path}, which rank 0 has found: {error}; output_dir must be a folder "
            "that every machine sees"
        ) from error


def on_first(backend: Backend, work: Callable[[], int | None]) -> int | None:
    """What rank 0 finds, on every rank; its failure is everybody's."""
    answer = ""
    failure: CongError | None = None
    if backend.rank == 0:
        try:
            answer = json.dumps({"found": work()})
        except CongError as error:
            failure = error
            answer = json.dumps({"error": str(error)})
    content = json.loads(backend.from_first(answer))
    if failure is not None:
        raise failure
    if "error" in content:
        raise CheckpointError(content["error"])
    found: int | None = content["found"]
    return found


def resume(
    checkpoint: Checkpoint, backend: Backend, feed: Feed, recipe: Recipe, folder: RunFolder
) -> tuple[Progress, Ledger]:
    """Put back weights, optimiser, counts and random generators; where the run stands, and its ledger."""
    state = checkpoint.state
    stored_frozen = {name: value for name, value in state["recipe"].items() if name.startswith("frozen.")}
    present_frozen = {name: value for name, value in recipe.items() if name in stored_frozen}
    require_same(stored_frozen, present_frozen or stored_frozen, str(checkpoint.folder))
    backend.load(checkpoint.folder / BACKEND)
    progress = Progress(**state["progress"])
    feed.restore(state["counts"])
    own = checkpoint.folder / generators_file(backend.rank)
    if state["world_size"] == backend.world_size and own.is_file():
        restore_generators(own.read_bytes(), backend.device)
    else:
        logger.warning(
            "%s was saved by %d processes and %d go on: dropout, if there is any, takes other numbers",
            checkpoint.folder,
            state["world_size"],
            backend.world_size,
        )
        seed_all(progress.step, backend.rank)
    ledger = Ledger(folder.ledger, checkpoint.ledger_parts, progress.step)
    if backend.rank == 0:
        ledger.remove_others()
        logger.info("going on from step %d of %d", progress.step, progress.num_steps)
    return progress, ledger


def _bring_newer(folder: RunFolder, remote: RemoteCheckpoints, recipe: Recipe) -> None:
    """Download the store's newest checkpoint where this machine has none that is as new; another run's is refused."""
    steps = remote.steps()
    name = folder_name(steps[-1]) if steps else ""
    if name and not (folder.checkpoints / name / MARKER).is_file():
        require_same(_without_frozen(remote.state(steps[-1])["recipe"]), recipe, f"{remote.url}/{name}")
        logger.warning("%s is not here; it is fetched from %s", folder.checkpoints / name, remote.url)
        remote.download(steps[-1], folder.checkpoints, folder.ledger)


def _without_frozen(recipe: Recipe) -> Recipe:
    """Frozen networks are compared once they are known."""
    return {name: value for name, value in recipe.items() if not name.startswith("frozen.")}


def cursors_in_use(output_dir: Path) -> list[Cursor]:
    """What `cong.stream.retain` has to be told, so that every checkpoint that is kept can go on.

    A run of which that is not known exactly is refused: it may still need everything.
    """
    folder = output_dir / "checkpoints"
    kept = committed(folder)
    unread = {path.parent for path in folder.glob(f"step-*/{MARKER}")} - {checkpoint.folder for checkpoint in kept}
    if unread:
        raise CheckpointError(
            f"{min(unread)} is committed and its state cannot be read, so what it needs is not known; restore it, or "
            "remove it"
        )
    if not kept:
        raise CheckpointError(
            f"{output_dir} has no committed checkpoint, so a run there may still read everything; wait for its first "
            "checkpoint, or give the output_dir of another run"
        )
    cursors = []
    for checkpoint in kept:
        found = stream_cursors(checkpoint.state["progress"]["position"])
        if not found:
            raise CheckpointError(
                f"{checkpoint.folder} holds no cursor of a stream: a run on pairs reads all of its data whenever it "
                "starts. Leave it out if it reads another stream or a file; else keep the stream until it has ended"
            )
        cursors += found
    return cursors
