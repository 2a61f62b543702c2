"""One attempt at filling a stage's stream: what is there, what was given up and why, and what the attempt took.

Knows neither where records come from nor what they are for.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cong.config import RunConfig
from cong.files import write_file
from cong.pipeline.ordering import InOrder, Place, place_of
from cong.schemas import SampleRecord
from cong.stream import StreamReader, StreamWriter, open_store
from cong.stream.identity import read_identity
from cong.telemetry import Progress, progress

FAILURES, SESSIONS = "failures.jsonl", "sessions.jsonl"
_WRITER = "pipeline"


class Attempt:
    """An open stream that is filled in the order of the places wanted; as a context manager it sums itself up."""

    def __init__(self, config: RunConfig, places: Sequence[Place], label: str) -> None:
        stream = config.stream
        store = open_store(stream.location, stream.storage_options, is_shared=stream.is_shared)
        self._folder = config.output_dir
        self._reads = read_identity(store) is not None
        self._stack = ExitStack()
        self._started_s = time.monotonic()
        self._writer = StreamWriter(store, stream.write, writer_id=_WRITER, cache_dir=stream.cache_dir)
        there = self._places_there(store) if self._reads else set()
        self.missing = [place for place in places if place not in there]
        self.num_there = len(places) - len(self.missing)
        self._order = InOrder(self.missing, self._write)
        self._failures: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self.phases: Mapping[str, float] = {}
        """Seconds by what they went to, where whoever draws knows."""
        self._is_complete = False
        self._label, self._num_places = label, len(places)
        self._bar: Progress | None = None

    @staticmethod
    def _places_there(store: Any) -> set[Place]:
        found: set[Place] = set()
        for table, _ in StreamReader(store).tables(4096, ("prompt_id", "sample_index")):
            names = (table.column(name).to_pylist() for name in ("prompt_id", "sample_index"))
            found |= {(str(prompt_id), int(index)) for prompt_id, index in zip(*names, strict=True)}
        return found

    @property
    def awaited(self) -> Place | None:
        """Whose turn it is."""
        return self._order.awaited

    def take(self, record: SampleRecord, *, is_inherited: bool = False) -> None:
        """A record has come."""
        self._counts["inherited" if is_inherited else "drawn"] += 1
        self._counts["tokens"] += 0 if is_inherited else len(record.completion_token_ids)
        self._order.put(record)

    def give_up(self, places: Sequence[Place], error: str, reason: str) -> None:
        """These will not come in this attempt; the next one tries again."""
        for place in places:
            self._fail(place, error, reason)
        self._save_failures()
        for place in places:
            self._order.give_up(place)

    def bad_row(self, where: str, problem: str) -> None:
        """A row of the source that is no prompt."""
        self._failures.append({"where": where, "error": "BadRow", "reason": problem})

    def complete(self) -> None:
        """Everything that could come has come."""
        self._is_complete = True

    def _write(self, record: SampleRecord) -> None:
        if self._writer.append(record).is_duplicate:
            # It is kept under the id of the prompt that came first, and this one stays without.
            reason = "another prompt has the same tokens, and would get the same sample"
            self._fail(place_of(record), "Repeated", reason)
        if self._bar is not None:
            self._bar.advance(tokens=self._counts["tokens"], held=self._order.num_held)

    def _fail(self, place: Place, error: str, reason: str) -> None:
        prompt_id, index = place
        self._failures.append({"prompt_id": prompt_id, "sample_index": index, "error": error, "reason": reason})

    def _save_failures(self) -> None:
        lines = "".join(json.dumps(failure) + "\n" for failure in self._failures)
        write_file(self._folder / FAILURES, lines.encode())

    def __enter__(self) -> Self:
        self._save_failures()
        self._bar = self._stack.enter_context(
            progress(self._label, self._num_places, start=self.num_there, unit="samples")
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._save_failures()
        session = {
            "seconds": round(time.monotonic() - self._started_s, 3),
            "num_drawn": self._counts["drawn"],
            "num_inherited": self._counts["inherited"],
            "num_tokens": self._counts["tokens"],
            "phases": {name: round(seconds, 3) for name, seconds in self.phases.items()},
        }
        with (self._folder / SESSIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(session) + "\n")
        if self._is_complete and kind is None:
            self._writer.close()
            return
        # Whoever follows would take a closed lane for the end of the stream.
        try:
            self._writer.flush()
        finally:
            self._writer.abandon()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines; a torn last one is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
