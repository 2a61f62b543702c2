"""A file of samples as JSON lines: what it holds already, and how more of them get into it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cong.errors import ConfigError
from cong.files import make_folder, naming, open_alone
from cong.schemas import SampleRecord

_BEGINNING = b'{"schema_version":'


class SamplesFile:
    """An open file of samples, one process at a time; a last line that was torn by a crash is cut off."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self.keys: set[str] = set()
        self.require_place(path)
        try:
            self._file = open_alone(path)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process writes to {self.name}; wait for its end, or give another --out"
            ) from error
        try:
            good_bytes = 0
            for row, num_bytes in self._lines():
                self.keys.add(str(row["key"]))
                good_bytes += num_bytes
            self._file.truncate(good_bytes)
        except BaseException:
            self._file.close()
            raise

    @staticmethod
    def require_place(path: Path) -> None:
        """Refuse where no such file can lie; leaves nothing but its folder."""
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is no regular file, in which samples could be found again; give another --out")
        make_folder(path.parent)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The samples that were there at the start, as JSON."""
        yield from (row for row, _ in self._lines())

    def known(self, keys: set[str]) -> set[str]:
        """Those of some keys that are there."""
        return keys & self.keys

    def write(self, record: SampleRecord) -> None:
        """Add a sample; no crash of this process takes it away again."""
        with naming(self._path):
            self._file.write(record.model_dump_json().encode() + b"\n")
            self._file.flush()
        self.keys.add(record.key)

    def close(self) -> None:
        with naming(self._path):
            self._file.close()

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Whole lines, each with its bytes; refuses a file in which something else stands."""
        good_bytes = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") and (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
                    return  # one of ours that was torn: nothing can follow it
                try:
                    row = json.loads(line) if line.endswith(b"\n") else {}
                    row["key"]
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise ConfigError(
                        f"{self.name} holds something else than samples after byte {good_bytes}; give another --out"
                    ) from error
                good_bytes += len(line)
                yield row, len(line)
