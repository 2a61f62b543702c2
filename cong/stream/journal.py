"""A writer's write-ahead files: records that are durable on this machine before their segment is sealed.

A frame is a header with its own checksum and a payload with another. Its owner holds the file's lock, so that a file
that can be locked belongs to a process that is gone, and whoever locks it may carry its records on.
"""

import contextlib
import logging
import secrets
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from cong.stream.filesystem import FileSystem, write_whole
from cong.stream.names import TEMPORARY_PREFIX, JournalName, Lane

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<4sIQI")
_CRC = struct.Struct("<I")
_MAGIC = b"cgj1"
_FRAME_BYTES = _HEADER.size + _CRC.size


@dataclass(frozen=True)
class Frame:
    """A record of a lane as it was handed in."""

    row: int
    payload: bytes


@dataclass(frozen=True)
class JournalContent:
    """What a journal file holds; the tail of a write that was cut short is no damage, anything else is."""

    frames: tuple[Frame, ...]
    num_torn_bytes: int
    damage: tuple[str, ...]


def encode_frame(frame: Frame) -> bytes:
    """A frame's bytes."""
    header = _HEADER.pack(_MAGIC, len(frame.payload), frame.row, zlib.crc32(frame.payload))
    return header + _CRC.pack(zlib.crc32(header)) + frame.payload


def decode_frames(content: bytes) -> JournalContent:
    """Every whole frame; after damage the search goes on at the next header that is whole."""
    frames: list[Frame] = []
    damage: list[str] = []
    at = 0
    while at < len(content):
        header = content[at : at + _HEADER.size]
        if len(content) - at < _FRAME_BYTES and content[at : at + 4] == _MAGIC[: len(content) - at]:
            return JournalContent(tuple(frames), len(content) - at, tuple(damage))
        is_header = len(content) - at >= _FRAME_BYTES and content[at + _HEADER.size : at + _FRAME_BYTES] == _CRC.pack(
            zlib.crc32(header)
        )
        if is_header:
            _, length, row, crc = _HEADER.unpack(header)
            payload = content[at + _FRAME_BYTES : at + _FRAME_BYTES + length]
            if len(payload) < length:
                return JournalContent(tuple(frames), len(content) - at, tuple(damage))
            if zlib.crc32(payload) == crc:
                frames.append(Frame(row, payload))
            else:
                damage.append(f"the record of row {row} at byte {at} is not what was written")
            at += _FRAME_BYTES + length
        else:
            after = content.find(_MAGIC, at + 1)
            stop = len(content) if after < 0 else after
            damage.append(f"bytes {at} to {stop - 1} are not what was written")
            at = stop
    return JournalContent(tuple(frames), 0, tuple(damage))


@dataclass
class _File:
    path: str
    handle: int
    last_row: int = -1
    is_broken: bool = False


class Journal:
    """The write-ahead files of one lane; a file goes when every row in it is sealed."""

    def __init__(self, files: FileSystem, folder: str, lane: Lane, stream: str) -> None:
        self._files = files
        self._folder = folder
        self._lane = lane
        self._stream = stream
        self._number = 0
        self._current = self._start()
        self._older: list[_File] = []

    def _start(self) -> _File:
        """A new file, which has its name only when it is locked: without its lock it would pass for a dead writer's."""
        filename = JournalName(self._lane, self._number, self._stream).filename
        path = f"{self._folder}/{filename}"
        temporary = f"{self._folder}/{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{filename}"
        self._number += 1
        self._files.close(self._files.create(temporary))
        lock: int | None = None
        made = temporary
        try:
            lock = self._files.lock(temporary)
            assert lock is not None, (
                f"{temporary} was made a moment ago by this process, and nobody looks for such names"
            )
            self._files.link(temporary, path)
            self._files.unlink(temporary)
            made = path
            self._files.fsync_directory(self._folder)
        except OSError:
            with contextlib.suppress(OSError):
                self._files.unlink(made)
            if lock is not None:
                self._files.close(lock)
            raise
        return _File(path, lock)

    def append(self, frames: Sequence[Frame]) -> None:
        """Make frames durable with one fsync; on an error none of them is, and the file is not used again."""
        if self._current.is_broken:
            self.rotate()
        try:
            write_whole(self._files, self._current.handle, b"".join(map(encode_frame, frames)))
            self._files.fsync(self._current.handle)
        except OSError:
            self._current.is_broken = True
            raise
        self._current.last_row = frames[-1].row

    def rotate(self) -> None:
        """Later frames go to a new file, so that the present one can be removed when its rows are sealed."""
        fresh = self._start()
        self._older.append(self._current)
        self._current = fresh

    def remove_below(self, row: int) -> None:
        """Remove files of which every row is below `row`."""
        done = [file for file in self._older if file.last_row < row]
        for file in done:
            self._files.unlink(file.path)
            self._files.close(file.handle)
            self._older.remove(file)

    def close(self, is_clean: bool) -> None:
        """Give up the locks; with the files where every row is sealed, else they stay for a successor."""
        try:
            for file in [*self._older, self._current] if is_clean else []:
                self._files.unlink(file.path)
            if is_clean:
                self._files.fsync_directory(self._folder)
        except OSError as error:
            # A successor finds that every record in it is stored, and removes it.
            log.warning("a journal in %s that is done with stays: %s", self._folder, error)
        finally:
            for file in [*self._older, self._current]:
                self._files.close(file.handle)
