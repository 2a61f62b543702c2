"""A disk in memory that fails on command: it crashes, loses power, runs full, writes short, and refuses operations.

Keeps what POSIX promises apart from what usually happens: bytes count after fsync, names after fsync of their folder.
Implements the stream's file-system seam; every operation that changes something is numbered.
"""

import errno
import os
import posixpath
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from cong.stream.filesystem import Entry


class Crashed(BaseException):
    """The machine or the process is gone; nothing may catch it and go on."""


@dataclass
class _Node:
    content: bytearray = field(default_factory=bytearray)
    num_durable: int = 0
    owner: int | None = None


class SimulatedDisk:
    """Files of one machine that may go down and come up again.

    `fault` is asked before each numbered operation with its number and name and may raise; `shortest` bounds what one
    write takes. After `crash` every operation raises Crashed until `restart`.
    """

    def __init__(
        self, fault: Callable[[int, str], None] | None = None, capacity: int | None = None, shortest: int | None = None
    ) -> None:
        self.fault = fault
        self.capacity = capacity
        self.shortest = shortest
        self.operations: list[str] = []
        self._folders: dict[str, dict[str, _Node | None]] = {"/": {}}
        self._durable: dict[str, dict[str, _Node | None]] = {"/": {}}
        self._handles: dict[int, _Node] = {}
        self._next_handle = 0
        self._is_down = False
        self._guard = threading.RLock()

    def crash(self) -> None:
        """Stop everything, locks included; what was written stays as it is until `restart`."""
        with self._guard:
            self._is_down = True

    def restart(self, is_power_lost: bool) -> None:
        """Come up again, with what fsync made sure of only, or with everything the dead process had written."""
        with self._guard:
            if is_power_lost:
                self._folders = {path: dict(names) for path, names in self._durable.items() if self._is_reached(path)}
            for names in self._folders.values():
                for node in names.values():
                    if node is not None:
                        node.owner = None
                        if is_power_lost:
                            del node.content[node.num_durable :]
            self._handles.clear()
            self._is_down = False
            self.fault = None

    def _is_reached(self, path: str) -> bool:
        if path == "/":
            return True
        folder, name = posixpath.split(path)
        return self._is_reached(folder) and name in self._durable.get(folder, {})

    def _step(self, name: str) -> None:
        if self._is_down:
            raise Crashed(name)
        self.operations.append(name)
        if self.fault is not None:
            try:
                self.fault(len(self.operations) - 1, name)
            except Crashed:
                self.crash()
                raise

    def _look(self) -> None:
        if self._is_down:
            raise Crashed("look")

    def _folder(self, path: str) -> dict[str, _Node | None]:
        if path not in self._folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._folders[path]

    def _node(self, path: str) -> _Node:
        folder, name = posixpath.split(path)
        node = self._folder(folder).get(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def _handle(self, node: _Node) -> int:
        self._next_handle += 1
        self._handles[self._next_handle] = node
        return self._next_handle

    @property
    def num_bytes(self) -> int:
        """What all files take."""
        nodes = {id(node): node for names in self._folders.values() for node in names.values() if node is not None}
        return sum(len(node.content) for node in nodes.values())

    def paths(self) -> list[str]:
        """Every file."""
        return sorted(
            posixpath.join(folder, name)
            for folder, names in self._folders.items()
            for name, node in names.items()
            if node is not None
        )

    def flip(self, path: str, at: int, mask: int = 0x01) -> None:
        """Change one byte of a file."""
        self._node(path).content[at] ^= mask

    # The seam.

    def make_directory(self, path: str) -> None:
        """Make a folder whose parent exists; nothing if it exists."""
        with self._guard:
            self._step("mkdir")
            folder, name = posixpath.split(path)
            self._folder(folder)[name] = None
            self._folders.setdefault(path, {})
            self._durable.setdefault(path, {})

    def exists(self, path: str) -> bool:
        """Whether a name is there."""
        with self._guard:
            self._look()
            folder, name = posixpath.split(path)
            return path == "/" or name in self._folders.get(folder, {})

    def create(self, path: str) -> int:
        """A new file for writing at its end; FileExistsError if the name is taken."""
        with self._guard:
            self._step("create")
            folder, name = posixpath.split(path)
            if name in self._folder(folder):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            node = self._folder(folder)[name] = _Node()
            return self._handle(node)

    def write(self, handle: int, data: bytes | memoryview) -> int:
        """Write some of the data; returns how many bytes were taken."""
        with self._guard:
            taken = bytes(data)[: self.shortest]
            try:
                self._step("write")
            except Crashed:
                # A process dies in the middle of a write: part of it may have arrived.
                self._handles[handle].content += taken[: len(taken) // 2]
                raise
            if self.capacity is not None:
                taken = taken[: max(0, self.capacity - self.num_bytes)]
                if not taken:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._handles[handle].content += taken
            return len(taken)

    def fsync(self, handle: int) -> None:
        """Force a file's bytes to the disk."""
        with self._guard:
            self._step("fsync")
            node = self._handles[handle]
            node.num_durable = len(node.content)

    def fsync_directory(self, path: str) -> None:
        """Force a folder's names to the disk."""
        with self._guard:
            self._step("fsync_directory")
            self._durable[path] = dict(self._folder(path))

    def close(self, handle: int) -> None:
        """Give up a handle."""
        with self._guard:
            self._look()
            node = self._handles.pop(handle)
            if node.owner == handle:
                node.owner = None

    def rename(self, source: str, target: str) -> None:
        """Move a name over another, at once."""
        with self._guard:
            self._step("rename")
            node = self._node(source)
            folder, name = posixpath.split(target)
            self._folder(folder)[name] = node
            del self._folder(posixpath.dirname(source))[posixpath.basename(source)]

    def link(self, source: str, target: str) -> None:
        """A second name; FileExistsError if it is taken."""
        with self._guard:
            self._step("link")
            folder, name = posixpath.split(target)
            if name in self._folder(folder):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            self._folder(folder)[name] = self._node(source)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        with self._guard:
            self._step("unlink")
            self._node(path)
            del self._folder(posixpath.dirname(path))[posixpath.basename(path)]

    def names(self, path: str) -> list[str]:
        """Names in a folder; FileNotFoundError where there is no folder."""
        with self._guard:
            self._look()
            return list(self._folder(path))

    def entries(self, path: str) -> list[Entry]:
        """Files in a folder with their sizes."""
        with self._guard:
            self._look()
            found = self._folder(path).items()
            return [Entry(name, len(node.content), 0.0) for name, node in found if node is not None]

    def size(self, path: str) -> int:
        """Bytes of a file."""
        with self._guard:
            self._look()
            return len(self._node(path).content)

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, fewer at its end."""
        with self._guard:
            self._look()
            return bytes(self._node(path).content[start:stop])

    def lock(self, path: str) -> int | None:
        """A handle for writing that holds the lock until it is closed; None where another holds it."""
        with self._guard:
            self._look()
            node = self._node(path)
            if node.owner is not None:
                return None
            handle = self._handle(node)
            node.owner = handle
            return handle
