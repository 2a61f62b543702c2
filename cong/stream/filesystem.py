"""The few file operations that durability rests on, as a seam: tests crash, cut and fill the disk behind it.

Every operation may raise OSError. What survives a loss of power is what POSIX promises: bytes after `fsync`, names
after `fsync_directory`, nothing else.
"""

import fcntl
import os
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """A file of a folder; the time is for people, never for ordering."""

    name: str
    num_bytes: int
    modified_s: float


class FileSystem(Protocol):
    """POSIX files, narrowed to what the stream needs."""

    def make_directory(self, path: str) -> None:
        """Make a folder whose parent exists; nothing if it exists."""

    def exists(self, path: str) -> bool:
        """Whether a name is there."""

    def create(self, path: str) -> int:
        """A new file for writing at its end; FileExistsError if the name is taken."""

    def write(self, handle: int, data: bytes | memoryview) -> int:
        """Write some of the data; returns how many bytes were taken."""

    def fsync(self, handle: int) -> None:
        """Force a file's bytes to the disk."""

    def fsync_directory(self, path: str) -> None:
        """Force a folder's names to the disk."""

    def close(self, handle: int) -> None:
        """Give up a handle."""

    def rename(self, source: str, target: str) -> None:
        """Move a name over another, at once."""

    def link(self, source: str, target: str) -> None:
        """A second name; FileExistsError if it is taken."""

    def unlink(self, path: str) -> None:
        """Remove a name."""

    def names(self, path: str) -> list[str]:
        """Names in a folder; FileNotFoundError where there is no folder."""

    def entries(self, path: str) -> list[Entry]:
        """Files in a folder with their sizes."""

    def size(self, path: str) -> int:
        """Bytes of a file."""

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, fewer at its end."""

    def lock(self, path: str) -> int | None:
        """A handle for writing that holds the file's lock until it is closed; None where another holds it.

        The lock goes with its process, however that ends.
        """


class LocalFileSystem:
    """The operating system's own files."""

    def make_directory(self, path: str) -> None:
        """Make a folder whose parent exists; nothing if it exists."""
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def exists(self, path: str) -> bool:
        """Whether a name is there."""
        return os.path.lexists(path)

    def create(self, path: str) -> int:
        """A new file for writing at its end; FileExistsError if the name is taken."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def write(self, handle: int, data: bytes | memoryview) -> int:
        """Write some of the data; returns how many bytes were taken."""
        return os.write(handle, data)

    def fsync(self, handle: int) -> None:
        """Force a file's bytes to the disk; the size is data, the times are not needed."""
        os.fdatasync(handle)

    def fsync_directory(self, path: str) -> None:
        """Force a folder's names to the disk."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def close(self, handle: int) -> None:
        """Give up a handle."""
        os.close(handle)

    def rename(self, source: str, target: str) -> None:
        """Move a name over another, at once."""
        os.replace(source, target)

    def link(self, source: str, target: str) -> None:
        """A second name; FileExistsError if it is taken."""
        os.link(source, target)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)

    def names(self, path: str) -> list[str]:
        """Names in a folder; FileNotFoundError where there is no folder."""
        return os.listdir(path)

    def entries(self, path: str) -> list[Entry]:
        """Files in a folder with their sizes; one that vanishes meanwhile is left out."""
        found = []
        with os.scandir(path) as items:
            for item in items:
                try:
                    status = item.stat()
                except FileNotFoundError:
                    continue
                found.append(Entry(item.name, status.st_size, status.st_mtime))
        return found

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return os.stat(path).st_size

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, fewer at its end."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while start < stop:
                part = os.pread(handle, stop - start, start)
                if not part:
                    break
                parts.append(part)
                start += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(handle)

    def lock(self, path: str) -> int | None:
        """A handle for writing that holds the lock until it is closed; None where another holds it."""
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        return handle


def write_whole(files: FileSystem, handle: int, data: bytes) -> None:
    """Write all of the data, however little the disk takes at a time."""
    rest = memoryview(data)
    while rest:
        taken = files.write(handle, rest)
        if taken <= 0:
            raise OSError("the disk takes no more bytes")
        rest = rest[taken:]
