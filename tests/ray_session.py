"""One Ray for all tests of a session that need one: private, on loopback, small, and gone afterwards.

Importing this module sets the environment that Ray reads when it is imported; so it is imported first of all.
"""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.private import make_private

FOLDER = Path(tempfile.mkdtemp(prefix="ct-"))
"""Its path is short, because those of sockets must be."""

make_private(FOLDER)
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A running Ray that this process is connected to."""
    home = FOLDER / "home"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        from serve.local import LocalRay

        # More than there are: what runs takes fractions, and what waits for nothing takes no time.
        with LocalRay(FOLDER, num_cpus=8):
            yield
