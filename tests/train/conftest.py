"""One thread, quiet libraries, and a world of a tiny network with a stream of its samples."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.worlds import network_folder, sample, write_samples


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    """Training draws from global generators: tests do not see each other's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.set_num_threads(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a network and a finished stream of forty contrastive samples by two writers."""
    network_folder(tmp_path / "network")
    write_samples(tmp_path / "stream", (sample(number) for number in range(25)), "a")
    write_samples(tmp_path / "stream", (sample(number) for number in range(25, 40)), "b")
    return tmp_path
