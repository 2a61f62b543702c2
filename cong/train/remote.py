"""Copies of checkpoints on an object store: all files first, one marker object last, found again by the markers.

A checkpoint whose marker is not there does not exist. Knows nothing of what is in the files.
"""

import json
import logging
import posixpath
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from cong.errors import CheckpointError, MissingExtra
from cong.files import digest_of, files_below, make_folder, remove_folder, sync_file, sync_folder
from cong.train.checkpoint import MANIFEST, MARKER, STATE, folder_name, problem_with
from cong.train.ledger import Part

logger = logging.getLogger(__name__)

_MARKER = re.compile(r"step-(\d{8})\.committed")


class RemoteCheckpoints:
    """Checkpoints under a prefix of an object store."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        protocol = url.partition("://")[0] if "://" in url else "file"
        try:
            self._files, root = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **(options or {})})
        except ImportError as error:
            raise MissingExtra("s3" if protocol in {"s3", "s3a"} else protocol, f"fsspec for {protocol}") from error
        except ValueError as error:
            raise CheckpointError(f"cannot open {url}: {error}; give a URL such as s3://bucket/prefix") from error
        self.url = url
        self._root = str(root).rstrip("/")

    def require_place(self) -> None:
        """Refuse a place that cannot be written to, now and not at the first checkpoint."""
        probe = f"probe-{uuid.uuid4().hex}"
        with self._mapped("write to"):
            self._make_folder(probe)
            self._files.pipe_file(self._at(probe), b"")
            self._files.rm_file(self._at(probe))

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, oldest first."""
        with self._mapped("list"):
            try:
                names = self._files.ls(self._root, detail=False, refresh=True)
            except FileNotFoundError:
                return []
        matches = (_MARKER.fullmatch(posixpath.basename(name)) for name in names)
        return sorted(int(match[1]) for match in matches if match)

    def upload(self, folder: Path, ledger_folder: Path, parts: Sequence[Part]) -> None:
        """Copy a committed checkpoint and the ledger up to it; it counts once its marker is there."""
        with self._mapped("upload to"):
            for name in files_below(folder):
                self._put(folder / name, f"{folder.name}/{name}")
            for part in parts:
                if not self._files.exists(self._at(f"ledger/{part.name}")):
                    self._put(ledger_folder / part.name, f"ledger/{part.name}")
            marker = {"manifest": digest_of(folder / MANIFEST), "ledger": [part.name for part in parts]}
            self._files.pipe_file(self._at(f"{folder.name}.committed"), json.dumps(marker).encode())

    def state(self, step: int) -> Mapping[str, Any]:
        """What a checkpoint says of its run; its other bytes are not looked at."""
        with self._mapped("read"):
            content: Mapping[str, Any] = json.loads(self._files.cat_file(self._at(f"{folder_name(step)}/{STATE}")))
            return content

    def download(self, step: int, folder: Path, ledger_folder: Path) -> None:
        """Bring a checkpoint back under its own name, after every byte has been checked."""
        name = folder_name(step)
        unfinished = folder / f".{name}.download"
        with self._mapped("download from"):
            marker = json.loads(self._files.cat_file(self._at(f"{name}.committed")))
            make_folder(folder)
            make_folder(ledger_folder)
            remove_folder(unfinished)
            base = self._at(name)
            for path in self._files.find(base):
                self._get(path, unfinished / posixpath.relpath(path, base))
            for part in marker["ledger"]:
                self._get(self._at(f"ledger/{part}"), ledger_folder / part)
        problem = problem_with(unfinished, ledger_folder)
        if problem is None and (unfinished / MARKER).read_bytes() != str(marker["manifest"]).encode():
            problem = "its marker belongs to another checkpoint"
        if problem is not None:
            raise CheckpointError(f"{self.url}/{name} is not complete: {problem}; remove its .committed object")
        remove_folder(folder / name)
        unfinished.rename(folder / name)
        sync_folder(folder)

    def remove_old(self, num_kept: int) -> None:
        """Keep the newest; of the others the marker goes first."""
        for step in self.steps()[:-num_kept]:
            with self._mapped("remove from"):
                self._files.rm_file(self._at(f"{folder_name(step)}.committed"))
                self._files.rm(self._at(folder_name(step)), recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_folder(self, name: str) -> None:
        """Object stores have none, and would make a bucket."""
        if not isinstance(self._files, AsyncFileSystem):
            self._files.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)

    def _put(self, source: Path, name: str) -> None:
        self._make_folder(name)
        self._files.put_file(str(source), self._at(name))
        stored = int(self._files.info(self._at(name))["size"])
        if stored != source.stat().st_size:
            raise CheckpointError(f"{self.url}/{name}: {stored} of {source.stat().st_size} bytes arrived; try again")

    def _get(self, source: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(source, str(target))
        sync_file(target)

    @contextmanager
    def _mapped(self, doing: str) -> Iterator[None]:
        """Back ends raise what they like: all of it is one kind of trouble here."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"cannot {doing} {self.url}: {type(error).__name__}: {error}") from error
