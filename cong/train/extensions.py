"""C++ extensions that are compiled on first use: made ahead, by one process, within a limit, or refused clearly.

torch waits for ever on a lock file that a killed compilation leaves behind, and without a compiler its message names
a missing shared object. Both are looked for here before anything is loaded. Knows no DeepSpeed: it is given the command
that compiles.
"""

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from cong.errors import ConfigError, CongError

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "TORCH_EXTENSIONS_DIR"
STALE_AFTER_S = 30.0
"""A lock that no process of this machine holds open counts as left behind after so long."""
LOCK_LIMIT_S = 50.0
"""How long a lock that somebody holds is waited for."""
BUILD_LIMIT_S = 900.0
_POLL_S = 0.2
_SHOWN_OUTPUT_CHARS = 2000


def extensions_folder() -> Path:
    """Where compiled extensions lie; where nothing says it, a folder of the user's cache for these versions."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if not chosen:
        # torch's own default does not tell versions of torch apart, which cannot load each other's extensions.
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        versions = f"python{sys.version_info.major}.{sys.version_info.minor}-torch{torch.__version__}"
        chosen = os.environ[FOLDER_VARIABLE] = str(cache / "cong" / "extensions" / versions)
    return Path(chosen)


def prepare_extension(name: str, build_command: Sequence[str], *, build_limit_s: float = BUILD_LIMIT_S) -> Path:
    """See to it that an extension is compiled and nothing blocks its loading; returns the compiled file.

    Any number of processes may call at once: one compiles, the others wait for it.
    """
    root = extensions_folder()
    folder = root / name
    library = folder / f"{name}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with _turn(root / f"{name}.turn", build_limit_s):
        free_lock(folder / "lock")
        if not library.exists():
            require_compiler(name)
            _build(name, build_command, build_limit_s)
            if not library.exists():
                raise CongError(f"compiling {name} ended without {library}; its log is above")
    return library


def require_compiler(name: str) -> None:
    """Refuse to go on where the extension cannot be compiled."""
    compiler = os.environ.get("CXX", "c++")
    missing = [program for program in (compiler, "ninja") if shutil.which(program) is None]
    if missing:
        raise ConfigError(
            f"DeepSpeed's {name} has to be compiled once, and {' and '.join(missing)} cannot be found on PATH; install "
            f"a C++ compiler and ninja, point {FOLDER_VARIABLE} to a folder where it is compiled already, or set "
            "train.deepspeed.has_compiled_adam to false"
        )


def free_lock(
    path: Path,
    *,
    stale_after_s: float = STALE_AFTER_S,
    limit_s: float = LOCK_LIMIT_S,
    now: Callable[[], float] = time.time,
) -> None:
    """Wait until torch's lock file is gone; one that was left behind is removed, with a warning."""
    deadline = time.monotonic() + limit_s
    is_announced = False
    while (age_s := _age_s(path, now)) is not None:
        holder = _holder(path)
        if holder is None and age_s >= stale_after_s:
            logger.warning("removing %s: a compilation left it behind %.0f s ago and no process holds it", path, age_s)
            path.unlink(missing_ok=True)
            return
        if time.monotonic() > deadline:
            who = f"process {holder} holds it" if holder else "nobody on this machine holds it"
            raise CongError(
                f"{path} has been there for {age_s:.0f} s and {who}; waited {limit_s:.0f} s. End that compilation "
                "or let it finish, then start again"
            )
        if not is_announced:
            logger.warning("waiting for %s, held by %s", path, f"process {holder}" if holder else "nobody known")
            is_announced = True
        time.sleep(_POLL_S)


def _age_s(path: Path, now: Callable[[], float]) -> float | None:
    try:
        return now() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _holder(path: Path) -> int | None:
    """The process of this machine that has the file open: torch keeps its lock open while it compiles."""
    target = str(path.resolve())
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) == target for link in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:  # it has ended meanwhile, or belongs to somebody else
            continue
    return None


@contextmanager
def _turn(path: Path, limit_s: float) -> Iterator[None]:
    """One process at a time; the kernel ends the turn of one that dies."""
    deadline = time.monotonic() + limit_s
    is_announced = False
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            if time.monotonic() > deadline:
                raise CongError(f"another process has been compiling under {path} for {limit_s:.0f} s; is it stuck?")
            if not is_announced:
                logger.warning("waiting for another process that compiles %s", path.stem)
                is_announced = True
            time.sleep(_POLL_S)
        yield


def _build(name: str, command: Sequence[str], limit_s: float) -> None:
    logger.warning("compiling DeepSpeed's %s once; this can take a minute or two", name)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise CongError(f"compiling {name} took longer than {limit_s:.0f} s and was ended") from error
    if done.returncode != 0:
        shown = done.stdout[-_SHOWN_OUTPUT_CHARS:]
        raise CongError(f"compiling {name} failed with status {done.returncode}; the end of its output:\n{shown}")
