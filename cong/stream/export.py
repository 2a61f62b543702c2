"""A stream in the forms that other trainers read: prompt and completion, messages, or chosen and rejected.

As one JSONL or Parquet file, or as a folder for `datasets` with a card. A target appears whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cong.errors import StreamError
from cong.files import make_folder, sync_folder, write_inside
from cong.stream.card import CardFacts, dataset_card
from cong.stream.cursor import Draw
from cong.stream.names import Lane
from cong.stream.reader import StreamReader
from cong.stream.statistics import COLUMNS as FACT_COLUMNS
from cong.stream.statistics import SampleFacts
from cong.wording import with_remedy

Form = Literal["prompt-completion", "messages", "preference"]
Container = Literal["jsonl", "parquet", "dataset"]

_PROMPT_COLUMNS = ("prompt_id", "prompt_text", "prompt_messages")
_TEXT_COLUMNS = ("key", *_PROMPT_COLUMNS, "completion_text")
_COLUMNS = sorted({*_TEXT_COLUMNS, *FACT_COLUMNS})
_ROWS_AT_ONCE = 1024
_ROWS_PER_SHARD = 100_000

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

Row = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """How many records were read, and what became of them."""

    num_records: int
    num_rows: int
    num_cut: int
    """Samples in the rows that a limit of length has cut off."""


def export(
    reader: StreamReader,
    target: Path,
    form: Form,
    container: Container,
    rejected: StreamReader | None = None,
    licence: str = "",
) -> Exported:
    """Write what a reader hands out; `rejected` gives the other side of a preference, joined by prompt.

    Prompts of the same text share their samples, which bear the id of one of them, so the text joins where ids do not.
    """
    if (form == "preference") != (rejected is not None):
        raise StreamError("a preference export needs a reader of rejected samples, and no other export takes one")
    if target.exists():
        raise StreamError(f"{target} exists; remove it or choose another target")
    others = _Others(rejected) if rejected is not None else None
    facts = SampleFacts()
    sides = {"": facts} if others is None else {"chosen": others.chosen, "rejected": others.rejected}
    rows = _rows(reader, form, others, facts)
    first = next(rows, None)
    if first is None:
        unpaired = (
            ", or no prompt has both a contrastive and a plain sample; the plain ones may lie in another stream, which "
            "is then named as the rejected one"
        )
        raise StreamError(
            "there is nothing to export: no record passes the filter" + (unpaired if form == "preference" else "")
        )
    schema = _schema(first)
    made = temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        make_folder(target.parent)
        every = _with_first(first, rows)
        if container == "jsonl":
            num_rows = _write_jsonl(every, temporary)
        elif container == "parquet":
            num_rows = _write_parquet(every, temporary, schema)
        else:
            num_rows = _write_dataset(every, temporary, schema)
            card = CardFacts(target.name, form, num_rows, licence, schema.names, sides)
            write_inside(temporary / "README.md", dataset_card(card).encode("utf-8", "replace"))
            sync_folder(temporary)
        os.replace(temporary, target)
        made = target
        sync_folder(target.parent)
    except OSError as error:
        _remove(made)
        raise StreamError(f"cannot write {target}: {with_remedy(error)}; nothing is left of it") from error
    except BaseException:
        _remove(made)
        raise
    return Exported(facts.num_records, num_rows, sum(side.finish_reasons["length"] for side in sides.values()))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def _with_first(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _rows(reader: StreamReader, form: Form, others: "_Others | None", facts: SampleFacts) -> Iterator[Row]:
    for table, _ in reader.tables(_ROWS_AT_ONCE, _COLUMNS):
        facts.add(table)
        if others is None:
            yield from (_single(item, form) for item in table.select(list(_TEXT_COLUMNS)).to_pylist())
        else:
            yield from others.pairs(table)


_Asked = tuple[str, bytes]
"""Prompt id and digest of the text: an id alone may have been given to two prompts, and a pair has one."""


class _Others:
    """The rejected samples of each prompt, first in the stream first; their texts stay in the stream."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader
        self.chosen, self.rejected = SampleFacts(), SampleFacts()
        """Those in the pairs."""
        self._places: dict[_Asked, list[tuple[Lane, int]]] = {}
        self._ids: dict[bytes, str] = {}
        """The id that a text has here."""
        while (drawn := reader.draw(_ROWS_AT_ONCE)) is not None:
            items = reader.fetch(drawn, _PROMPT_COLUMNS).to_pylist()
            for item, number, row in zip(items, drawn.lane_numbers.tolist(), drawn.rows.tolist(), strict=True):
                text = _text_digest(item)
                self._places.setdefault((item["prompt_id"], text), []).append((drawn.lanes[number], row))
                self._ids.setdefault(text, item["prompt_id"])
        for found in self._places.values():
            found.reverse()

    def _next(self, item: Row) -> tuple[Lane, int] | None:
        """The next unused one for a chosen sample."""
        prompt_id: str = item["prompt_id"]
        text = _text_digest(item)
        asked = (prompt_id, text)
        if asked not in self._places:
            asked = (self._ids.get(text, prompt_id), text)
        return self._places[asked].pop() if self._places.get(asked) else None

    def pairs(self, table: pa.Table) -> Iterator[Row]:
        """Each chosen sample with its rejected one; a prompt without one is left out."""
        places = [self._next(item) for item in table.select(list(_TEXT_COLUMNS)).to_pylist()]
        matched = [place for place in places if place is not None]
        if not matched:
            return
        lanes = sorted({lane for lane, _ in matched})
        numbers = np.array([lanes.index(lane) for lane, _ in matched], dtype=np.int64)
        rows = np.array([row for _, row in matched], dtype=np.int64)
        others = self._reader.fetch(Draw(tuple(lanes), numbers, rows, self._reader.cursor), _COLUMNS)
        table = table.filter(pa.array([place is not None for place in places]))
        self.chosen.add(table)
        self.rejected.add(others)
        for chosen, other in zip(
            *(side.select(list(_TEXT_COLUMNS)).to_pylist() for side in (table, others)), strict=True
        ):
            better, worse = _single(chosen, "prompt-completion"), _single(other, "prompt-completion")
            yield {
                "prompt": better["prompt"],
                "chosen": better["completion"],
                "rejected": worse["completion"],
                "prompt_id": chosen["prompt_id"],
                "chosen_key": chosen["key"],
                "rejected_key": other["key"],
            }


def _text_digest(item: Row) -> bytes:
    content = json.dumps([item["prompt_text"], item["prompt_messages"]])
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _single(item: Row, form: Form) -> Row:
    turns, text, completion = item["prompt_messages"], item["prompt_text"], item["completion_text"]
    if turns is None and text is None:
        raise StreamError(f"record {item['key']} was prompted with token ids and has no text to export")
    ids = {"prompt_id": item["prompt_id"], "key": item["key"]}
    answer = {"role": "assistant", "content": completion}
    if form == "messages":
        return {"messages": [*(turns or [{"role": "user", "content": text}]), answer], **ids}
    if turns is not None:
        return {"prompt": turns, "completion": [answer], **ids}
    return {"prompt": text, "completion": completion, **ids}


def _schema(first: Row) -> pa.Schema:
    return pa.schema([(name, pa.string() if isinstance(value, str) else _TURNS) for name, value in first.items()])


def _checked(rows: Iterator[Row], schema: pa.Schema) -> Iterator[Row]:
    is_text = {name: schema.field(name).type == pa.string() for name in schema.names}
    for row in rows:
        if any(isinstance(value, str) != is_text[name] for name, value in row.items()):
            found = "chat messages" if is_text.get("prompt") else "plain text"
            raise StreamError(
                f"prompt {row['prompt_id']} is {found}, unlike the first one; one column cannot hold both. Export with "
                "the form `messages`"
            )
        yield row


def _batches(rows: Iterator[Row], schema: pa.Schema) -> Iterator[pa.Table]:
    batch: list[Row] = []
    for row in _checked(rows, schema):
        batch.append(row)
        if len(batch) == _ROWS_AT_ONCE:
            yield pa.Table.from_pylist(batch, schema)
            batch = []
    if batch:
        yield pa.Table.from_pylist(batch, schema)


def _write_jsonl(rows: Iterator[Row], path: Path) -> int:
    num_rows = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            num_rows += 1
        _settle(file.fileno(), file.flush)
    return num_rows


def _write_parquet(rows: Iterator[Row], path: Path, schema: pa.Schema) -> int:
    num_rows = 0
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in _batches(rows, schema):
                writer.write_table(table)
                num_rows += table.num_rows
        _settle(file.fileno(), file.flush)
    return num_rows


def _write_dataset(rows: Iterator[Row], folder: Path, schema: pa.Schema) -> int:
    data = folder / "data"
    data.mkdir(parents=True)
    shards: list[Path] = []
    num_rows = 0
    while (first := next(rows, None)) is not None:
        shard = data / f"shard-{len(shards)}"
        num_rows += _write_parquet(_at_most(_ROWS_PER_SHARD, first, rows), shard, schema)
        shards.append(shard)
    for number, shard in enumerate(shards):
        shard.rename(data / f"train-{number:05d}-of-{len(shards):05d}.parquet")
    sync_folder(data)
    return num_rows


def _at_most(limit: int, first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    for _ in range(limit - 1):
        row = next(rest, None)
        if row is None:
            return
        yield row


def _settle(descriptor: int, flush: Any) -> None:
    flush()
    os.fsync(descriptor)
