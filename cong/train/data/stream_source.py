"""Samples of a stream as examples: a finished stream, read as often as there are epochs, or one that still grows.

A finished stream is read as it is when the run begins: what is appended later belongs to the next run, so a resumed
run sees what an unbroken one sees. Knows no tensors.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cong.config.stream import ReadSettings
from cong.errors import CheckpointError, ConfigError, StreamError
from cong.objectives import FrozenNetwork
from cong.stream import Cursor, Draw, Store, StreamReader, ragged
from cong.stream.reader import order_identity
from cong.train.data.batch import Example
from cong.train.data.reading import FINGERPRINT, Reading
from cong.train.data.source import Drawn

_COLUMNS = ("key", "prompt_id", "prompt_token_ids", "completion_token_ids", "finish_reason", FINGERPRINT)
_RECORDED: Mapping[FrozenNetwork, str] = {"aligned": "logprobs_aligned", "base": "logprobs_base"}
_COUNTED_AT_ONCE = 65_536


class StreamSource:
    """Samples as they come, one example each; log-probs of the weak pair are taken from the records."""

    def __init__(
        self,
        store: Store,
        settings: ReadSettings,
        reading: Reading,
        *,
        num_epochs: int = 1,
        frozen: tuple[FrozenNetwork, ...] = (),
        cache_dir: str = "",
        wants_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`wants_stop` is asked while the source waits for samples to come."""
        if settings.follow is not None and num_epochs > 1:
            raise ConfigError(
                f"num_epochs is {num_epochs} and stream.read.follow is set: a stream that grows is read once; train on "
                "it again when it has ended"
            )
        self._store = store
        self._settings = settings
        self._reading = reading
        self._cache_dir = cache_dir
        self._wants_stop = wants_stop
        self._recorded = tuple(name for name in frozen if name in _RECORDED)
        self._columns = (*_COLUMNS, *(_RECORDED[name] for name in self._recorded))
        self.num_epochs = num_epochs
        self.counts: dict[str, int] = {}
        self._epoch = 0
        reader = StreamReader(store, settings, cache_dir=cache_dir, wants_stop=wants_stop)
        self._stream = reader.cursor.stream
        self._reader = reader
        self._start: Cursor | None = None
        self._num_examples: int | None = None
        if settings.follow is None:
            self._start = reader.admit()
            self._num_examples = self._count()
            self._reader = self._open(0, self._start)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Which stream, and what decides the order."""
        return {"stream": self._stream, "order": order_identity(self._settings)}

    @property
    def num_examples(self) -> int | None:
        """Of one epoch; None while the stream grows, unless a number was asked for."""
        if self._num_examples is not None:
            return self._num_examples
        return self._settings.max_records or None

    @property
    def is_growing(self) -> bool:
        """Whether more may come while it is read."""
        return self._settings.follow is not None

    @property
    def position(self) -> str:
        """The epoch, what the run reads in each, and the cursor."""
        return json.dumps(
            {
                "epoch": self._epoch,
                "start": None if self._start is None else self._start.to_json(),
                "num_examples": self._num_examples,
                "cursor": self._reader.cursor.to_json(),
            }
        )

    def seek(self, position: str) -> None:
        """Go on from there, with what the run saw when it began."""
        try:
            content = json.loads(position)
            self._epoch = int(content["epoch"])
            self._num_examples = content["num_examples"]
            self._start = None if content["start"] is None else Cursor.from_json(content["start"])
            cursor = Cursor.from_json(content["cursor"])
        except (ValueError, KeyError, TypeError, StreamError) as error:
            raise CheckpointError(f"the checkpoint holds no position in a stream: {error}") from error
        self._reader = self._open(self._epoch, cursor)

    def draw(self, num_examples: int) -> Drawn | None:
        """The next records; waits for them only where the stream grows."""
        while (draw := self._reader.draw(num_examples)) is None:
            if self._start is None or self._epoch + 1 >= self.num_epochs or not self._num_examples:
                return None
            self._epoch += 1
            self._reader = self._open(self._epoch, self._start)
        return Drawn(draw.to_json(), self.position)

    def fetch(self, drawn: Drawn) -> list[Example]:
        """The records of a draw as examples."""
        return self._examples(self._reader, Draw.from_json(drawn.text))

    def scan(self, num_examples: int) -> Iterator[list[Example]]:
        """Every record of the run once, in the first epoch's order."""
        assert self._start is not None, "a stream that grows cannot be looked through"
        reader = self._open(0, self._start)
        while (draw := reader.draw(num_examples)) is not None:
            yield self._examples(reader, draw)

    def _open(self, epoch: int, cursor: Cursor) -> StreamReader:
        if self._start is None:
            return StreamReader(self._store, self._settings, cursor, self._cache_dir, wants_stop=self._wants_stop)
        seed = (self._settings.shuffle_seed + epoch) % 2**63
        settings = self._settings.model_copy(update={"shuffle_seed": seed})
        if self._num_examples is not None:
            settings = settings.model_copy(update={"max_records": self._num_examples})
        own = replace(cursor, identity=order_identity(settings))
        return StreamReader(self._store, settings, own, self._cache_dir, is_closed=True)

    def _count(self) -> int:
        assert self._start is not None, "a stream that grows cannot be counted"
        reader = self._open(0, self._start)
        while reader.draw(_COUNTED_AT_ONCE) is not None:
            pass
        return reader.cursor.num_records

    def _examples(self, reader: StreamReader, draw: Draw) -> list[Example]:
        table = reader.fetch(draw, self._columns)
        self._reading.require(reader, draw, table)
        keys, prompts = table.column("key").to_pylist(), table.column("prompt_id").to_pylist()
        is_cut_off = [reason == "length" for reason in table.column("finish_reason").to_pylist()]
        asked, said = ragged(table, "prompt_token_ids"), ragged(table, "completion_token_ids")
        known = {
            name: (ragged(table, _RECORDED[name]), table.column(_RECORDED[name]).is_null().to_pylist())
            for name in self._recorded
        }
        return [
            Example(
                key=key,
                prompt_id=prompt,
                prompt_ids=asked.row(row),
                responses=(said.row(row),),
                frozen={name: (column.row(row),) for name, (column, is_null) in known.items() if not is_null[row]},
                is_cut_off=is_cut_off[row],
            )
            for row, (key, prompt) in enumerate(zip(keys, prompts, strict=True))
        ]


def stream_cursors(position: str) -> list[Cursor]:
    """What retention must spare for a checkpoint with this position: its cursor, and the start of later epochs."""
    content = json.loads(position)
    if "cursor" not in content:
        return []
    return [Cursor.from_json(content[name]) for name in ("cursor", "start") if content.get(name) is not None]
