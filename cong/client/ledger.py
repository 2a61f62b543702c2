"""Which units of work the service has acknowledged: a file with a line for each, so that another run need not ask.

Only a shortcut: the service knows better. A line that is lost costs a question, which is answered as a duplicate.
"""

import logging
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from cong.errors import ConfigError
from cong.files import open_alone

log = logging.getLogger(__name__)

_HEADER = b"cong: acknowledged units, version 1\n"
_UNIT = re.compile(rb"[0-9a-f]{40}")


class Ledger:
    """The units that are done. One process at a time."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = open_alone(path)
        except BlockingIOError as error:
            raise ConfigError(
                f"{path} is in use by another run; wait for its end, or give another output_dir"
            ) from error
        self._done: set[bytes] = set()
        self._load(path)

    def _load(self, path: Path) -> None:
        self._file.seek(0)
        first = self._file.readline()
        if first and first != _HEADER:
            self._file.close()
            raise ConfigError(f"{path} is no ledger of this version; remove it to ask for everything again")
        line, num_damaged = first or b"\n", 0
        for line in self._file:
            if _UNIT.fullmatch(line.rstrip(b"\n")):
                self._done.add(bytes.fromhex(line.decode()))
            else:
                num_damaged += 1
        if num_damaged:
            log.warning("%s: %d damaged lines are ignored; their prompts are asked for again", path, num_damaged)
        if not first:
            self._file.write(_HEADER)
        elif not line.endswith(b"\n"):
            self._file.write(b"\n")
        self._file.flush()

    def __contains__(self, unit: str) -> bool:
        return bytes.fromhex(unit) in self._done

    def __len__(self) -> int:
        return len(self._done)

    def add(self, unit: str) -> None:
        """Note a unit as done; it outlives this process, whatever ends it."""
        digest = bytes.fromhex(unit)
        if digest not in self._done:
            self._file.write(unit.encode() + b"\n")
            self._file.flush()
            self._done.add(digest)

    def close(self) -> None:
        """Let another run have it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
