"""Where a stream lies: a folder, or a prefix of an object store. Either publishes a whole file at once or not at all.

Knows nothing of records. A missing file is FileNotFoundError; every other failure below is a StreamError that names
the file and the cause.
"""

import contextlib
import errno
import posixpath
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

import fsspec

from cong.errors import MissingExtra, StreamError
from cong.stream.filesystem import Entry, FileSystem, LocalFileSystem, write_whole
from cong.stream.names import SEGMENTS, TEMPORARY_PREFIX, WRITERS
from cong.wording import with_remedy

DurableLevel = Literal["local", "shared"]


class Store(Protocol):
    """Whole files under short relative paths."""

    @property
    def location(self) -> str:
        """Folder or URL, for people."""

    @property
    def level(self) -> DurableLevel:
        """What a published file survives: this machine's crash, or this machine's loss."""

    @property
    def read_ahead_bytes(self) -> int:
        """How much is worth reading at once."""

    def prepare(self) -> None:
        """Make what the first file needs."""

    def names(self, folder: str) -> list[str]:
        """Names in a folder; none where there is no folder."""

    def entries(self, folder: str) -> list[Entry]:
        """Files in a folder with their sizes."""

    def size(self, path: str) -> int:
        """Bytes of a file."""

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, fewer at its end."""

    def publish(self, path: str, data: bytes) -> None:
        """Make a whole file appear, over an equal one if need be; durable at the store's level on return."""

    def create(self, path: str, data: bytes) -> bool:
        """Publish unless the name is taken; whether it was free."""

    def settle(self) -> None:
        """Make every file in sight as durable as the store makes its own."""

    def delete(self, paths: Sequence[str]) -> None:
        """Remove files; one that is gone already is no error."""


_READING = ("list", "look at", "read", "remove")


@contextlib.contextmanager
def _mapped(doing: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and doing in _READING:
            raise
        raise StreamError(f"cannot {doing} {path}: {with_remedy(error)}") from error


def make_folders(files: FileSystem, folder: str) -> None:
    """Make a folder and those above it, their names forced to disk."""
    missing = []
    while folder and not files.exists(folder):
        missing.append(folder)
        folder = posixpath.dirname(folder)
    for path in reversed(missing):
        files.make_directory(path)
        files.fsync_directory(posixpath.dirname(path) or ".")


class LocalStore:
    """A folder: temporary name, fsync, rename, fsync of the folder."""

    read_ahead_bytes = 1 << 20

    def __init__(self, root: str, files: FileSystem, is_shared: bool = False) -> None:
        self.root = posixpath.normpath(root)
        self.files = files
        self.is_shared = is_shared

    @property
    def location(self) -> str:
        """Folder or URL, for people."""
        return self.root

    @property
    def level(self) -> DurableLevel:
        """`shared` only where the user says that the folder outlives the machine."""
        return "shared" if self.is_shared else "local"

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def prepare(self) -> None:
        """Make the folders, their names forced to disk."""
        with _mapped("make folders of", self.root):
            for folder in (SEGMENTS, WRITERS):
                make_folders(self.files, self._at(folder))

    def names(self, folder: str) -> list[str]:
        """Names in a folder; none where there is no folder."""
        with _mapped("list", self._at(folder)):
            try:
                return self.files.names(self._at(folder))
            except FileNotFoundError:
                return []

    def entries(self, folder: str) -> list[Entry]:
        """Files in a folder with their sizes."""
        with _mapped("list", self._at(folder)):
            try:
                return self.files.entries(self._at(folder))
            except FileNotFoundError:
                return []

    def size(self, path: str) -> int:
        """Bytes of a file."""
        with _mapped("look at", self._at(path)):
            return self.files.size(self._at(path))

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, fewer at its end."""
        with _mapped("read", self._at(path)):
            return self.files.read(self._at(path), start, stop)

    def publish(self, path: str, data: bytes) -> None:
        """Make a whole file appear, over an equal one if need be; durable at the store's level on return."""
        with _mapped("publish", self._at(path)):
            temporary = self._write_temporary(path, data)
            with self._removed_on_failure(temporary):
                self.files.rename(temporary, self._at(path))
            self.files.fsync_directory(posixpath.dirname(self._at(path)))

    def create(self, path: str, data: bytes) -> bool:
        """Publish unless the name is taken; whether it was free."""
        with _mapped("create", self._at(path)):
            temporary = self._write_temporary(path, data)
            is_free = True
            with self._removed_on_failure(temporary):
                try:
                    self.files.link(temporary, self._at(path))
                except FileExistsError:
                    is_free = False
            self.files.unlink(temporary)
            self.files.fsync_directory(posixpath.dirname(self._at(path)))
            return is_free

    def settle(self) -> None:
        """Force to disk the names that another process published and may not have forced yet; their bytes are."""
        for folder in (posixpath.dirname(self.root) or ".", self.root, self._at(SEGMENTS), self._at(WRITERS)):
            with _mapped("settle", folder):
                self.files.fsync_directory(folder)

    def delete(self, paths: Sequence[str]) -> None:
        """Remove files; one that is gone already is no error."""
        for path in paths:
            with _mapped("remove", self._at(path)), contextlib.suppress(FileNotFoundError):
                self.files.unlink(self._at(path))
        for folder in sorted({posixpath.dirname(self._at(path)) for path in paths}):
            with _mapped("remove files of", folder):
                self.files.fsync_directory(folder)

    def _write_temporary(self, path: str, data: bytes) -> str:
        folder, name = posixpath.split(path)
        temporary = self._at(posixpath.join(folder, f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{name}"))
        handle = self.files.create(temporary)
        with self._removed_on_failure(temporary):
            try:
                write_whole(self.files, handle, data)
                # A file whose fsync failed is never trusted again: the next try is a new file.
                self.files.fsync(handle)
            finally:
                self.files.close(handle)
        return temporary

    @contextlib.contextmanager
    def _removed_on_failure(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError):
                self.files.unlink(path)
            raise


class ObjectStore:
    """A prefix of an object store through fsspec: one PUT per file, confirmed before it counts."""

    level: DurableLevel = "shared"
    # A request costs tens of milliseconds, so a segment is fetched whole.
    read_ahead_bytes = 1 << 26

    def __init__(self, location: str, options: Mapping[str, Any]) -> None:
        protocol = location.partition("://")[0]
        try:
            self.files, path = fsspec.core.url_to_fs(location, **{"use_listings_cache": False, **options})
        except ImportError as error:
            raise MissingExtra("s3" if protocol in {"s3", "s3a"} else protocol, f"fsspec for {protocol}") from error
        except ValueError as error:
            raise StreamError(
                f"cannot open {location}: {error}; give a folder or a URL such as s3://bucket/x"
            ) from error
        self.location = location
        self.root: str = path.rstrip("/")

    def prepare(self) -> None:
        """Nothing: prefixes come with their first object."""

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def names(self, folder: str) -> list[str]:
        """Names in a folder; none where there is no folder."""
        return [entry.name for entry in self.entries(folder)]

    def entries(self, folder: str) -> list[Entry]:
        """Files in a folder with their sizes."""
        with _foreign("list", self._at(folder)):
            self.files.invalidate_cache(self._at(folder))
            try:
                found = self.files.ls(self._at(folder), detail=True)
            except FileNotFoundError:
                return []
        return [
            Entry(posixpath.basename(item["name"]), int(item["size"] or 0), _modified_s(item))
            for item in found
            if item["type"] == "file"
        ]

    def size(self, path: str) -> int:
        """Bytes of a file."""
        with _foreign("look at", self._at(path)):
            self.files.invalidate_cache(self._at(path))
            return int(self.files.info(self._at(path))["size"])

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, fewer at its end."""
        with _foreign("read", self._at(path)):
            return bytes(self.files.cat_file(self._at(path), start=start, end=stop))

    def publish(self, path: str, data: bytes) -> None:
        """One PUT, counted only when the store shows the object with its full size."""
        with _foreign("publish", self._at(path)):
            self.files.pipe_file(self._at(path), data)
            # A store that lags may not show yet what it has taken: that is no missing file, but a reason to try again.
            stored = self.size(path)
        if stored != len(data):
            raise StreamError(f"cannot publish {self._at(path)}: {stored} of {len(data)} bytes arrived; try again")

    def create(self, path: str, data: bytes) -> bool:
        """Publish unless the name is taken; whether it was free."""
        with _foreign("create", self._at(path)):
            try:
                self.files.pipe_file(self._at(path), data, mode="create")
            except OSError as error:
                # s3fs tells a failed precondition as EINVAL; after a lost reply it may be our own first try that won.
                if isinstance(error, FileExistsError) or error.errno == errno.EINVAL:
                    return False
                raise
        return True

    def settle(self) -> None:
        """Nothing: an object in sight is stored."""

    def delete(self, paths: Sequence[str]) -> None:
        """Remove files; one that is gone already is no error."""
        for path in paths:
            with _foreign("remove", self._at(path)), contextlib.suppress(FileNotFoundError):
                self.files.rm_file(self._at(path))


@contextlib.contextmanager
def _foreign(doing: str, path: str) -> Iterator[None]:
    """Back ends raise what they like: all of it is one kind of trouble here, a missing file aside."""
    try:
        yield
    except StreamError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and doing in _READING:
            raise
        raise StreamError(f"cannot {doing} {path}: {type(error).__name__}: {error}") from error


def _modified_s(item: Mapping[str, Any]) -> float:
    found = item.get("LastModified") or item.get("mtime") or item.get("created")
    return found.timestamp() if isinstance(found, datetime) else float(found or 0.0)


def open_store(location: str, options: Mapping[str, Any] | None = None, is_shared: bool = False) -> Store:
    """The store of a folder or URL; `options` are the fsspec back end's."""
    protocol, is_url, path = location.partition("://")
    if not is_url:
        return LocalStore(location, LocalFileSystem(), is_shared)
    if protocol in ("file", "local"):
        return LocalStore(path, LocalFileSystem(), is_shared)
    return ObjectStore(location, options or {})
