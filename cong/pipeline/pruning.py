"""What former recipes have left in a pipeline's folder, and its removal.

What cannot be told yet is kept: a stage that waits may turn out to need any of its folders, and one that still samples
takes over what earlier runs of it have drawn.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cong.config import RunConfig
from cong.errors import ConfigError
from cong.files import remove_folder
from cong.pipeline.board import Board, Standing
from cong.pipeline.conductor import only_one

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leftover:
    """A folder that nothing needs."""

    folder: Path
    reason: str
    num_bytes: int


def leftovers(config: RunConfig, others: Sequence[RunConfig] = ()) -> list[Leftover]:
    """What none of these configurations needs in the folder that they share."""
    for other in others:
        if other.output_dir != config.output_dir:
            raise ConfigError(
                f"output_dir is {other.output_dir} in a configuration to keep and {config.output_dir} in the pipeline; "
                "they must share it"
            )
    standings: dict[str, list[Standing]] = {}
    for each in (config, *others):
        for standing in Board(each).survey():
            standings.setdefault(standing.stage.name, []).append(standing)
    return list(_unneeded(config.output_dir / "stages", standings))


def prune(config: RunConfig, others: Sequence[RunConfig] = ()) -> list[Leftover]:
    """Remove it; refused while the pipeline is at work."""
    with only_one(config.output_dir):
        found = leftovers(config, others)
        for one in found:
            remove_folder(one.folder)
        return found


def _unneeded(root: Path, standings: dict[str, list[Standing]]) -> Iterator[Leftover]:
    for stage in sorted(root.iterdir()) if root.is_dir() else ():
        known = standings.get(stage.name, [])
        needed = {one.folder for one in known if one.folder is not None}
        keeps_all = any(_may_need_any(one) for one in known)
        for folder in sorted(path for path in stage.iterdir() if path.is_dir() and not path.is_symlink()):
            if folder.name.startswith("."):
                reason = "set aside as damaged, or half removed"
            elif not known:
                reason = "no method that is asked for has this stage"
            elif folder in needed or keeps_all:
                continue
            else:
                reason = "of a former recipe"
            yield Leftover(folder, reason, _size(folder))


def _may_need_any(standing: Standing) -> bool:
    return standing.folder is None or (standing.stage.kind == "sample" and standing.state != "done")


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
