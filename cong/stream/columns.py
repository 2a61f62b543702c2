"""Sample records as columns and back: the schema of a segment's Parquet file, and the hot path into it.

Knows no files. Log-probabilities are kept in single precision, as networks give them; everything else is kept
exactly. Writing packs a record's numbers once, into bytes; reading hands out columns, and whole records to people.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cong.errors import StreamCorrupt, StreamError
from cong.schemas import (
    SCHEMA_VERSION,
    NetworkIdentity,
    SampleRecord,
    SamplingParameters,
    canonical_json,
)
from cong.stream.keys import key_digest

ROLES = ("aligned", "base", "strong")

_INTS = pa.list_(pa.int32())
_FLOATS = pa.list_(pa.float32())
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

FIELDS = [
    ("schema_version", pa.int32()),
    ("key", pa.string()),
    ("kind", pa.string()),
    ("prompt_id", pa.string()),
    # Exactly one of the three forms of a prompt is not null.
    ("prompt_text", pa.string()),
    ("prompt_messages", _MESSAGES),
    ("prompt_given_token_ids", _INTS),
    ("prompt_token_ids", _INTS),
    ("completion_text", pa.string()),
    ("completion_token_ids", _INTS),
    # Derived when written, so that filters need not read what they are derived from.
    ("num_tokens", pa.int32()),
    ("implicit_reward_sum", pa.float64()),
    ("implicit_reward_mean", pa.float64()),
    # Null where the network took no part.
    ("logprobs_aligned", _FLOATS),
    ("logprobs_base", _FLOATS),
    ("logprobs_strong", _FLOATS),
    ("mixture_logprobs", _FLOATS),
    ("head_sizes", _INTS),
    ("finish_reason", pa.string()),
    ("sample_index", pa.int64()),
    # Canonical JSON.
    ("parameters", pa.string()),
    ("networks", pa.string()),
    ("software", pa.string()),
    ("tokenizer_fingerprint", pa.string()),
    ("writer", pa.string()),
    ("queued_s", pa.float64()),
    ("first_token_s", pa.float64()),
    ("total_s", pa.float64()),
    ("created_at", pa.string()),
]

VERSION_KEY = b"cong.schema_version"
SCHEMA = pa.schema(FIELDS, metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})

_PLAIN = (
    *("schema_version", "key", "kind", "prompt_token_ids", "completion_text", "completion_token_ids"),
    *("mixture_logprobs", "head_sizes", "finish_reason", "sample_index", "tokenizer_fingerprint", "writer"),
    "created_at",
)
"""Columns that are fields of a record under the same name."""

INT_LISTS = ("prompt_given_token_ids", "prompt_token_ids", "completion_token_ids", "head_sizes")
FLOAT_LISTS = ("logprobs_aligned", "logprobs_base", "logprobs_strong", "mixture_logprobs")

Ints = npt.NDArray[np.int32]


class PackedRow(NamedTuple):
    """One record, its values in the order of FIELDS and its numbers packed as little-endian bytes.

    The implicit reward is left open: it is computed for many rows at once, from the numbers as they are stored.
    """

    key: str
    digest: bytes
    values: tuple[Any, ...]
    num_bytes: int


@lru_cache(maxsize=4096)
def _ints(length: int) -> struct.Struct:
    return struct.Struct(f"<{length}i")


@lru_cache(maxsize=4096)
def _floats(length: int) -> struct.Struct:
    return struct.Struct(f"<{length}f")


@lru_cache(maxsize=1024)
def _parameters_json(parameters: SamplingParameters) -> str:
    return canonical_json(parameters.model_dump(mode="json"))


@lru_cache(maxsize=1024)
def _networks_json(networks: tuple[NetworkIdentity, ...]) -> str:
    return canonical_json([network.model_dump() for network in networks])


@lru_cache(maxsize=1024)
def _software_json(versions: tuple[tuple[str, str], ...]) -> str:
    return canonical_json(dict(versions))


def pack(record: SampleRecord) -> PackedRow:
    """A record as it will be stored; refuses numbers that the columns cannot hold."""
    try:
        numbers = {role: _floats(len(values)).pack(*values) for role, values in record.logprobs.items()}
        mixture = _floats(len(record.mixture_logprobs)).pack(*record.mixture_logprobs)
        completion = _ints(len(record.completion_token_ids)).pack(*record.completion_token_ids)
        heads = _ints(len(record.head_sizes)).pack(*record.head_sizes)
        asked = _ints(len(record.prompt_token_ids)).pack(*record.prompt_token_ids)
        prompt, timings, num_tokens = record.prompt, record.timings, len(record.completion_token_ids)
        given = _ints(len(prompt.token_ids)).pack(*prompt.token_ids) if prompt.token_ids else None
        if record.sample_index >= 2**63:
            raise OverflowError(f"sample_index is {record.sample_index}")
    except (OverflowError, struct.error) as error:
        raise StreamError(
            f"record {record.key} cannot be stored: {error}; whole numbers must be below 2**31 (sample_index 2**63) "
            "and log-probabilities within single precision"
        ) from error
    values = (
        record.schema_version,
        record.key,
        record.kind,
        prompt.prompt_id,
        prompt.text,
        [{"role": message.role, "content": message.content} for message in prompt.messages] or None,
        given,
        asked,
        record.completion_text,
        completion,
        num_tokens,
        None,
        None,
        numbers.get("aligned"),
        numbers.get("base"),
        numbers.get("strong"),
        mixture,
        heads,
        record.finish_reason,
        record.sample_index,
        _parameters_json(record.parameters),
        _networks_json(record.networks),
        _software_json(tuple(record.software.items())),
        record.tokenizer_fingerprint,
        record.writer,
        timings.queued_s,
        timings.first_token_s,
        timings.total_s,
        record.created_at,
    )
    text_bytes = len(record.completion_text) + len(prompt.text or "") + sum(len(m.content) for m in prompt.messages)
    return PackedRow(
        record.key, key_digest(record.key), values, 4 * (4 + len(numbers)) * num_tokens + len(asked) + text_bytes + 512
    )


def table_of(rows: Sequence[PackedRow]) -> pa.Table:
    """Packed rows as a table of SCHEMA."""
    columns = []
    named = dict(zip(SCHEMA.names, zip(*(row.values for row in rows), strict=True), strict=True))
    rewards = _rewards(named["logprobs_aligned"], named["logprobs_base"])
    for (name, kind), values in zip(FIELDS, named.values(), strict=True):
        if name == "implicit_reward_sum":
            columns.append(pa.array(rewards, from_pandas=True))
        elif name == "implicit_reward_mean":
            lengths = np.array(named["num_tokens"], dtype=np.float64)
            lengths[lengths == 0] = np.nan
            columns.append(pa.array(rewards / lengths, from_pandas=True))
        elif name in INT_LISTS:
            columns.append(_list_array(values, "<i4"))
        elif name in FLOAT_LISTS:
            columns.append(_list_array(values, "<f4"))
        else:
            columns.append(pa.array(values, kind))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _rewards(aligned: Sequence[bytes | None], base: Sequence[bytes | None]) -> npt.NDArray[np.float64]:
    """Sum of log p_aligned - log p_base for each row; NaN where one of them took no part."""
    is_pair = np.array([a is not None and b is not None for a, b in zip(aligned, base, strict=True)])
    rewards = np.where(is_pair, 0.0, np.nan)
    lengths = np.array([len(a) // 4 if a is not None else 0 for a in aligned])
    at = np.flatnonzero(is_pair & (lengths > 0))
    if len(at):
        starts = np.concatenate([[0], np.cumsum(lengths[at])[:-1]])
        for sign, column in ((1.0, aligned), (-1.0, base)):
            flat = np.frombuffer(b"".join(column[int(row)] or b"" for row in at), dtype="<f4").astype(np.float64)
            rewards[at] += sign * np.add.reduceat(flat, starts)
    return rewards


def _list_array(values: Sequence[bytes | None], dtype: str) -> pa.Array:
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([0 if value is None else len(value) // 4 for value in values], out=offsets[1:])
    flat = np.frombuffer(b"".join(value for value in values if value is not None), dtype=dtype)
    nulls = np.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), mask=pa.array(nulls) if nulls.any() else None)


@dataclass(frozen=True)
class Ragged:
    """A column of lists without copies: row i is values[offsets[i]:offsets[i + 1]]."""

    values: npt.NDArray[Any]
    offsets: Ints

    def row(self, row: int) -> npt.NDArray[Any]:
        """The list of one row."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]


def ragged(table: pa.Table | pa.RecordBatch, name: str) -> Ragged:
    """A column of lists as numpy values and offsets; a null row is an empty one."""
    column = table.column(name)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = np.asarray(array.offsets)
    flat = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    return Ragged(flat.to_numpy(zero_copy_only=False), offsets - offsets[0])


def to_records(table: pa.Table | pa.RecordBatch) -> list[SampleRecord]:
    """Whole validated records, for people and tests; training reads columns."""
    records = []
    for row in table.to_pylist():
        forms = {
            "text": row["prompt_text"],
            "messages": row["prompt_messages"] or (),
            "token_ids": row["prompt_given_token_ids"] or (),
        }
        content = {name: row[name] for name in _PLAIN}
        content["prompt"] = {"prompt_id": row["prompt_id"], **forms}
        content["logprobs"] = {role: row[f"logprobs_{role}"] for role in ROLES if row[f"logprobs_{role}"] is not None}
        content["timings"] = {name: row[name] for name in ("queued_s", "first_token_s", "total_s")}
        for name in ("parameters", "networks", "software"):
            content[name] = json.loads(row[name])
        try:
            records.append(SampleRecord.model_validate(content))
        except ValueError as error:
            raise StreamCorrupt(f"record {row['key']} is not what a writer stores: {error}") from error
    return records


def upgraded(table: pa.Table, version: int) -> pa.Table:
    """A table of an older schema version with today's columns; version 1 is the first."""
    if not 1 <= version <= SCHEMA_VERSION:
        raise StreamError(
            f"the segment has schema version {version}; this cong reads 1 to {SCHEMA_VERSION}. Install a later cong"
        )
    return table
