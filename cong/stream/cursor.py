"""A reader's exact position, and the pure rules that turn it into the order of rows.

Order: rows are *admitted* in rounds. A round takes every row that is then in sight and was not admitted before, lane by
lane in the order of (writer, epoch), and each lane by row. Rounds follow one another; a stream that is finished before
it is read is one round, so its order is that of (writer, epoch, row). The cursor holds what is admitted and not yet
taken, so that resuming never depends on what has come into sight since. No clock takes part.

Shuffling permutes each window of a fixed number of consecutive rows, by a hash of (seed, window number, place).
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cong.errors import StreamError
from cong.stream.listing import Span
from cong.stream.names import Lane

CURSOR_VERSION = 1

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cursor:
    """Everything that decides what a reader does next, small enough for a checkpoint."""

    stream: str
    identity: Mapping[str, Any]
    """Filter and order; a reader with others is refused."""
    num_records: int = 0
    """Records handed out so far."""
    admitted: tuple[tuple[Lane, int], ...] = ()
    """For each lane the row after the last admitted."""
    pending: tuple[Span, ...] = ()
    """Admitted, and not yet in a window."""
    window: tuple[Span, ...] = ()
    """The present window, from its beginning."""
    num_windows: int = 0
    """Windows begun so far."""
    offset: int = 0
    """Rows of the present window that are done with."""
    skipped: tuple[Span, ...] = ()
    """Rows left out because they could not be trusted."""

    def to_json(self) -> str:
        """The cursor as text."""
        return json.dumps(
            {
                "version": CURSOR_VERSION,
                "stream": self.stream,
                "identity": dict(self.identity),
                "num_records": self.num_records,
                "admitted": [[lane.writer, lane.epoch, row] for lane, row in self.admitted],
                "pending": _spans_out(self.pending),
                "window": _spans_out(self.window),
                "num_windows": self.num_windows,
                "offset": self.offset,
                "skipped": _spans_out(self.skipped),
            },
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The cursor that `to_json` wrote."""
        try:
            content = json.loads(text)
            if content["version"] != CURSOR_VERSION:
                raise ValueError(f"version {content['version']} is not {CURSOR_VERSION}")
            return cls(
                stream=str(content["stream"]),
                identity=dict(content["identity"]),
                num_records=int(content["num_records"]),
                admitted=tuple((Lane(writer, epoch), row) for writer, epoch, row in content["admitted"]),
                pending=_spans_in(content["pending"]),
                window=_spans_in(content["window"]),
                num_windows=int(content["num_windows"]),
                offset=int(content["offset"]),
                skipped=_spans_in(content["skipped"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StreamError(f"this is not a stream cursor: {error}; take it from the checkpoint as it was") from error

    def needed_from(self, lane: Lane) -> int:
        """The first row of a lane that a reader at this cursor may still read; 0 for a lane it has not seen."""
        rows = [span.start for span in (*self.pending, *self.window) if span.lane == lane]
        return min([*rows, dict(self.admitted).get(lane, 0)])

    def has_passed(self, lane: Lane, row: int) -> bool:
        """Whether a row came before the present window, and was not left out for damage."""
        if row >= dict(self.admitted).get(lane, 0):
            return False
        return not any(
            span.lane == lane and span.start <= row < span.stop for span in (*self.pending, *self.window, *self.skipped)
        )


def _spans_out(spans: Iterable[Span]) -> list[list[Any]]:
    return [[span.lane.writer, span.lane.epoch, span.start, span.stop] for span in spans]


def _spans_in(content: Iterable[Sequence[Any]]) -> tuple[Span, ...]:
    return tuple(Span(Lane(str(writer), int(epoch)), int(start), int(stop)) for writer, epoch, start, stop in content)


def split_spans(spans: Sequence[Span], num_rows: int) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """The first rows of a sequence of spans, at most so many, and the rest."""
    taken: list[Span] = []
    for number, span in enumerate(spans):
        if span.num_rows > num_rows:
            head = [Span(span.lane, span.start, span.start + num_rows)] if num_rows else []
            return (*taken, *head), (Span(span.lane, span.start + num_rows, span.stop), *spans[number + 1 :])
        taken.append(span)
        num_rows -= span.num_rows
    return tuple(taken), ()


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64: a bijection whose bits look random, the same on every machine and version."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _one(value: int) -> npt.NDArray[np.uint64]:
    return np.array([value], dtype=np.uint64)


def window_order(num_rows: int, seed: int, window_number: int, is_shuffled: bool) -> Rows:
    """In which order the rows of a window are taken."""
    if not is_shuffled:
        return np.arange(num_rows, dtype=np.int64)
    start = mixed(mixed(_one(seed)) ^ _one(window_number))
    return np.argsort(mixed(start + np.arange(num_rows).astype(np.uint64)), kind="stable")


@dataclass(frozen=True)
class Draw:
    """Which rows come next, in order, and the cursor behind them: the same for every rank, and small enough to send."""

    lanes: tuple[Lane, ...]
    lane_numbers: Rows
    rows: Rows
    cursor: Cursor

    def __len__(self) -> int:
        return len(self.rows)

    def share(self, rank: int, world_size: int) -> "Draw":
        """The rows of one rank: each world_size-th. Any world size cuts the same draw, so none is lost or doubled."""
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        return Draw(self.lanes, self.lane_numbers[rank::world_size], self.rows[rank::world_size], self.cursor)

    def to_json(self) -> str:
        """The draw as text, for ranks that do not decide."""
        numbers = np.stack([self.lane_numbers, self.rows]).astype("<i8")
        return json.dumps(
            {
                "lanes": [[lane.writer, lane.epoch] for lane in self.lanes],
                "rows": base64.b64encode(numbers.tobytes()).decode(),
                "cursor": self.cursor.to_json(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Draw":
        """The draw that `to_json` wrote."""
        content = json.loads(text)
        numbers = np.frombuffer(base64.b64decode(content["rows"]), dtype="<i8").reshape(2, -1)
        lanes = tuple(Lane(writer, epoch) for writer, epoch in content["lanes"])
        return cls(lanes, numbers[0], numbers[1], Cursor.from_json(content["cursor"]))
