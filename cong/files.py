"""Files that must survive a crash: whole or not there, forced to disk, and recognised by their digest."""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK_BYTES = 8 << 20


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the system the name of the file that is written: it tells none, or a passing hidden one.

    Where a file is made, what cannot be found is the place for it. That is no bug, so it counts as a path that leads to
    no folder.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise OSError(errno.ENOTDIR, error.strerror, str(path)) from error
    except OSError as error:
        is_told = error.filename is not None and not Path(os.fsdecode(error.filename)).name.startswith(".")
        if is_told or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of several files, by name."""
    listed = list(names)
    # Hashing releases the interpreter lock.
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(listed, pool.map(lambda name: digest_of(folder / name), listed), strict=True))


def files_below(folder: Path) -> list[str]:
    """Relative names of all files in a folder and its folders, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def sync_file(path: Path) -> None:
    """Force a file's bytes to disk, whoever wrote them."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Force a folder's names to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, their names forced to disk."""
    missing = [*itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents))]
    if not missing and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with naming(folder):
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)


def open_alone(path: Path) -> BinaryIO:
    """A file to read and to append to, for one process at a time: BlockingIOError while another one has it."""
    make_folder(path.parent)
    with naming(path):
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
    return file


def write_inside(path: Path, content: bytes) -> None:
    """A whole file in a folder that has not got its name yet: its bytes are forced to disk, the folder comes later."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, content: bytes) -> None:
    """A whole file, forced to disk under a temporary name and then renamed; its folder is made.

    A reader sees the former file or the new one, never a part.
    """
    if path.is_dir():
        # What a rename says of `.` or of a root names no folder.
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    make_folder(path.parent)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    with naming(path):
        try:
            write_inside(temporary, content)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def json_bytes(value: Any) -> bytes:
    """A value as JSON for people and programs."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def remove_folder(folder: Path) -> None:
    """Take a folder away at once: renamed first, so that no half of it is ever seen under its name."""
    if not folder.exists():
        return
    doomed = folder.with_name(f".removed-{folder.name.lstrip('.')}-{uuid.uuid4().hex[:8]}")
    folder.rename(doomed)
    # Else a loss of power may keep the former name over what is left inside.
    sync_folder(folder.parent)
    shutil.rmtree(doomed, ignore_errors=True)
