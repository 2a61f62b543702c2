"""What a folder of DeepSpeed's holds, whether it is whole, and its conversion for another number of ranks.

DeepSpeed writes one file per rank and announces nothing; a small list beside them, written last, says what must be
there. Knows DeepSpeed's file layout and its converter as a program, and imports neither.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cong.errors import CheckpointError

TAG = "state"
"""Folder of the one state that a folder holds."""
LIST = "deepspeed.json"
FORMAT = 1
_UNIVERSAL = "universal"
_SHOWN_OUTPUT_CHARS = 2000


@dataclass(frozen=True)
class SavedState:
    """What was saved, in terms of what decides whether it can be loaded."""

    zero_stage: int
    precision: str
    world_size: int
    deepspeed_version: str
    num_trained: dict[str, int]
    """Elements of each trained tensor, by its name in the network."""
    num_bytes: dict[str, int]
    """Of each file, by its path in the folder."""
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Put the list beside the files it names; it appears whole or not at all."""
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{LIST}.", delete=False, encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, folder / LIST)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The list of a folder, whose every file is there and as long as it was; anything else is refused."""
        try:
            saved = cls(**json.loads((folder / LIST).read_text(encoding="utf-8")))
            sizes = {str(name): int(size) for name, size in saved.num_bytes.items()}
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{folder} holds no {LIST}: saving never finished, or it is another folder"
            ) from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / LIST} cannot be read: {error}") from error
        if saved.format > FORMAT:
            raise CheckpointError(f"{folder} has format {saved.format}; this version reads up to {FORMAT}")
        for name, size in sizes.items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                problem = "is missing" if found is None else f"has {found} bytes"
                raise CheckpointError(f"{path} {problem}; {size} bytes were saved. Load an older checkpoint")
        return saved


def file_sizes(folder: Path) -> dict[str, int]:
    """Size of every file that DeepSpeed has written into a folder."""
    paths = [folder / "latest", *sorted((folder / TAG).rglob("*"))]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}


def universal_folder(folder: Path) -> Path:
    """Where the converted state lies, beside the folder it was made from."""
    return folder.with_name(f"{folder.name}.{_UNIVERSAL}")


def is_converted(folder: Path) -> bool:
    """Whether the state that lies in a folder now has been converted already."""
    try:
        return (universal_folder(folder) / LIST).read_bytes() == (folder / LIST).read_bytes()
    except FileNotFoundError:
        return False


class Conversion:
    """A saved state on its way to a form that any number of ranks can load; runs as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._source = folder
        self._target = universal_folder(folder)
        for leftover in self._target.parent.glob(f".{self._target.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._made = Path(tempfile.mkdtemp(prefix=f".{self._target.name}.", dir=self._target.parent))
        self._log = (self._made / "log").open("w+", encoding="utf-8")
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
        command += ["--input_folder", str(folder / TAG), "--output_folder", str(self._made / TAG)]
        # Without child processes of its own; the missing state is a version number.
        command += ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    def is_done(self) -> bool:
        """Whether the converted state lies where it belongs; raises if the conversion has failed."""
        status = self._process.poll()
        if status is None:
            return False
        if status != 0:
            self._log.seek(0)
            shown = self._log.read()[-_SHOWN_OUTPUT_CHARS:]
            self.close()
            raise CheckpointError(f"converting to {self._target} ended with status {status}:\n{shown}")
        self._log.close()
        shutil.copyfile(self._source / LIST, self._made / LIST)
        shutil.rmtree(self._target, ignore_errors=True)
        os.replace(self._made, self._target)
        return True

    def close(self) -> None:
        """End the conversion and leave nothing of it behind."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._made, ignore_errors=True)
