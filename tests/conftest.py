"""What all tests share: a Ray of their own, for those that need one, Triton's interpreter without a GPU, and Ctrl-C."""

import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from .ray_session import ray_session

__all__ = ["ray_session"]

settings.register_profile("house", deadline=None)
settings.load_profile("house")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what it puts in the background; programs that tests start and stop would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Side by side, files go to whoever is free, but for those that need Ray: one process has them, and the one Ray."""
    from xdist.scheduler import LoadFileScheduling

    class OneRay(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "ray" if _needs_ray(config.rootpath / file) else file

    return OneRay(config, log)


@functools.cache
def _needs_ray(file: Path) -> bool:
    return "pytest.mark.ray" in file.read_text(encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs Ray takes longest, so it comes first."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
