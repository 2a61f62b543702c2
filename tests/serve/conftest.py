"""One Serve instance for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from serve.ports import free_port

if TYPE_CHECKING:
    from .application import Deployed


@pytest.fixture(scope="session")
def deployed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Deployed]":
    """Serve on a port of its own; each module deploys what it needs."""
    # Imported late: it brings Ray along, and the tests of the HTTP application need none.
    from .application import Deployed

    application = Deployed(Path(tmp_path_factory.mktemp("serve")), free_port())
    yield application
    application.stop()
