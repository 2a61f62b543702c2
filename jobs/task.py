"""What a driver hands to every worker of a training job, without torch: a driver and Ray's controller do not train."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cong.config import RunConfig
from cong.files import write_file
from jobs.claim import FOLDER

TOKEN = "token"


@dataclass(frozen=True)
class Task:
    """What a driver gives to each worker."""

    config: RunConfig
    """Its folders are absolute."""
    board: Any
    folder: str
    """Where the driver was started: names in the configuration are relative to it."""
    token: str
    """What the driver has written into the run's folder."""
    seen_within_s: float
    """So late may a worker see what others have written."""


def write_token(folder: Path) -> str:
    """What the driver leaves for its workers to find."""
    token = uuid.uuid4().hex
    for path in (folder / FOLDER).glob("probe-*"):
        path.unlink(missing_ok=True)
    write_file(folder / FOLDER / TOKEN, token.encode())
    return token
