"""What an evaluation has made so far, so that a killed one continues: samples and judgements under their keys.

JSON lines are whole up to the last line, which a kill may tear; it is cut off when the file is opened again.
"""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from cong.config.stream import StreamConfig
from cong.errors import EvaluationError
from cong.files import make_folder, naming, open_alone
from cong.schemas import Record, SampleRecord
from cong.stream import StreamReader, StreamWriter, open_store


def require_place(folder: Path) -> None:
    """Refuse a folder that cannot be written into; leaves nothing but the folder."""
    make_folder(folder)
    with naming(folder), tempfile.TemporaryFile(dir=folder):
        pass


class Keyed(Record):
    """A record that is stored under a key."""

    key: str


Stored = TypeVar("Stored", bound=Keyed | SampleRecord)


class KeyedLines(Generic[Stored]):
    """A file of JSON lines, one record each, held by one process at a time; of several with one key the last counts."""

    def __init__(self, path: Path, kind: type[Stored]) -> None:
        self.path = path
        self._kind: TypeAdapter[Stored] = TypeAdapter(kind)
        try:
            self._file = open_alone(path)
        except BlockingIOError as error:
            raise EvaluationError(f"{path} is being written by another evaluation; wait for it to end") from error
        try:
            self._records: dict[str, Stored] = self._read()
        except EvaluationError:
            self._file.close()
            raise

    def _read(self) -> dict[str, Stored]:
        records: dict[str, Stored] = {}
        self._file.seek(0)
        num_good_bytes = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                record = self._kind.validate_json(line)
            except ValidationError as error:
                raise EvaluationError(
                    f"{self.path}:{number} holds something else than was written there; remove the file, or give "
                    "another output_dir"
                ) from error
            num_good_bytes += len(line)
            records[record.key] = record
        self._file.truncate(num_good_bytes)
        return records

    def known(self, keys: Collection[str]) -> dict[str, Stored]:
        """Those of the keys that are there, with their records."""
        return {key: self._records[key] for key in keys if key in self._records}

    def write(self, record: Stored) -> None:
        """Append a record; it survives the death of this process."""
        with naming(self.path):
            self._file.write(record.model_dump_json().encode() + b"\n")
            self._file.flush()
        self._records[record.key] = record

    def close(self) -> None:
        """Let the file go."""
        with naming(self.path):
            self._file.close()


class SampleStore(Protocol):
    """Where sampled answers are kept."""

    def known(self, keys: Collection[str]) -> dict[str, SampleRecord]:
        """Those of the keys that are there, with their records."""
        ...

    def write(self, record: SampleRecord) -> None:
        """Keep a sample."""
        ...

    def close(self) -> None:
        """Make everything durable."""
        ...


class StreamedSamples:
    """Samples in a stream; they are durable within the seconds of `stream.write.max_age_s`, and all at the end."""

    def __init__(self, location: str, stream: StreamConfig) -> None:
        self._store = open_store(location, stream.storage_options, is_shared=stream.is_shared)
        self._writer = StreamWriter(self._store, stream.write, writer_id="cong-evaluate", cache_dir=stream.cache_dir)

    def known(self, keys: Collection[str]) -> dict[str, SampleRecord]:
        """Those of the keys that are there, with their records."""
        wanted = set(keys) - set(self._writer.missing(sorted(keys)))
        if not wanted:
            return {}
        self._writer.flush()
        found: dict[str, SampleRecord] = {}
        for record in StreamReader(self._store).records():
            if record.key in wanted:
                found[record.key] = record
                if len(found) == len(wanted):
                    break
        return found

    def write(self, record: SampleRecord) -> None:
        """Keep a sample."""
        self._writer.append(record)

    def close(self) -> None:
        """Make everything durable."""
        self._writer.close()


@contextmanager
def open_samples(path: Path, location: str, stream: StreamConfig) -> Iterator[SampleStore]:
    """The stream at a location, or the file at a path where there is none."""
    store: SampleStore = StreamedSamples(location, stream) if location else KeyedLines(path, SampleRecord)
    try:
        yield store
    finally:
        store.close()
