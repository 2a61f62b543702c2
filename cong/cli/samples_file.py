"""A file of samples as JSON lines: what it holds already, and how more of them get into it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cong.errors import ConfigError
from cong.schemas import SampleRecord


class SamplesFile:
    """An open file of samples; a last line that was torn by a crash is cut off."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self.keys: set[str] = set()
        good_bytes = 0
        for row, num_bytes in self._lines():
            self.keys.add(str(row["key"]))
            good_bytes += num_bytes
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(good_bytes)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def rows(self) -> Iterator[dict[str, Any]]:
        """The samples that were there at the start, as JSON."""
        yield from (row for row, _ in self._lines())

    def known(self, keys: set[str]) -> set[str]:
        """Those of some keys that are there."""
        return keys & self.keys

    def write(self, record: SampleRecord) -> None:
        """Add a sample; no crash of this process takes it away again."""
        self._file.write(record.model_dump_json() + "\n")
        self._file.flush()
        self.keys.add(record.key)

    def close(self) -> None:
        self._file.close()

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Whole lines, each with its bytes; refuses a file in which something else stands."""
        if not self._path.exists():
            return
        good_bytes = 0
        with self._path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    row["key"]
                except (ValueError, KeyError, TypeError):
                    break
                if not line.endswith(b"\n"):
                    break
                good_bytes += len(line)
                yield row, len(line)
            rest = file.read()
        if rest.strip():
            raise ConfigError(
                f"{self.name} holds something else than samples after byte {good_bytes}; give another --out"
            )
