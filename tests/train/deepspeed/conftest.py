"""Launches whose results several tests judge: starting ranks costs more than what they do."""

from pathlib import Path

import pytest
import torch

from tests.train.deepspeed.launch import launch
from tests.train.deepspeed.worlds import Trained


class Results:
    """What the ranks have left in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, name: str, *, rank: int = 0, world_size: int = 2) -> Trained:
        """What one rank has left under a name."""
        return Trained(**torch.load(self.folder / f"{name}.rank{rank}of{world_size}", weights_only=True))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every setting, trained by two ranks."""
    folder = tmp_path_factory.mktemp("trained")
    launch(2, "train", str(folder))
    return Results(folder)


@pytest.fixture(scope="session")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Saved after two steps, and gone on with in two ways."""
    folder = tmp_path_factory.mktemp("resumed")
    launch(2, "resume", str(folder))
    return Results(folder)


@pytest.fixture(scope="session")
def resized(resumed: Results) -> Results:
    """What two ranks saved, loaded and saved by one, and that by two again."""
    launch(1, "resize", str(resumed.folder), "saved", "saved-by-one", "2")
    launch(2, "resize", str(resumed.folder), "saved-by-one", "saved-by-two", "2")
    return resumed
