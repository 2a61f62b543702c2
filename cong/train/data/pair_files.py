"""Preference pairs as examples, read from files. Knows no tensors and no training."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cong.errors import ConfigError
from cong.models import Tokenizer, encode_completion, prompt_token_ids
from cong.schemas import Completion, PreferenceRecord, content_key
from cong.train.data.batch import Example, TokenIds
from cong.train.data.pairs import Pairs
from cong.wording import brought_by, causes

_AT_ONCE = 1024


def read_pairs(path: Path, tokenizer: Tokenizer) -> Pairs:
    """Preferences of a .jsonl or .parquet file, or of a folder that `datasets` has saved.

    A row is a `PreferenceRecord`, or has `prompt`, `chosen` and `rejected` as text or as lists of messages, or has
    whole conversations as `chosen` and `rejected`.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, Example] = {}
    for place, row in _rows(path):
        record = _record(row, f"{path}:{place}")
        example = _pair_of(record, tokenizer)
        _require_known(example, tokenizer, f"{path}:{place}")
        counts["pairs_read"] += 1
        if np.array_equal(example.responses[0], example.responses[1]):
            counts["pairs_equal"] += 1
        elif example.key in examples:
            counts["pairs_duplicate"] += 1
        else:
            examples[example.key] = example
    return Pairs(list(examples.values()), dict(counts))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give the pairs' file or folder as train.data.path")
    if path.is_dir():
        yield from enumerate(_dataset_rows(path), start=1)
    elif path.suffix == ".parquet":
        yield from enumerate(_parquet_rows(path), start=1)
    elif path.suffix in (".jsonl", ".ndjson"):
        yield from _json_rows(path)
    else:
        raise ConfigError(f"{path} is neither .jsonl nor .parquet nor a folder; give one of them")


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(text) if text.strip() else None
            except UnicodeDecodeError as error:
                raise ConfigError(f"{path}:{number} is not UTF-8 text: {error}; save it as UTF-8") from error
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{path}:{number} is not JSON: {error}; a row is one JSON object on one line"
                ) from error
            if text.strip():
                yield number, row


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(_AT_ONCE):
            yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}; write it again") from error


def _dataset_rows(folder: Path) -> Iterator[Any]:
    with brought_by("train"):
        import datasets

    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        found = datasets.load_from_disk(str(folder))
    else:
        files = [str(path) for path in sorted(folder.rglob("*.parquet"))]
        if not files:
            raise ConfigError(f"{folder} holds neither a saved dataset nor Parquet files")
        found = datasets.Dataset.from_parquet(files)
    if isinstance(found, datasets.DatasetDict):
        if list(found) != ["train"]:
            raise ConfigError(f"{folder} holds the splits {', '.join(found)}; save the one to train on by itself")
        found = found["train"]
    yield from found


def _record(row: Any, where: str) -> PreferenceRecord:
    row = _with_prompt(row) if isinstance(row, dict) else {}
    if any(row.get(name) is None for name in ("prompt", "chosen", "rejected")):
        raise ConfigError(f"{where} has not all of prompt, chosen and rejected; rename its columns")
    fields = {name: value for name, value in row.items() if name in PreferenceRecord.model_fields}
    fields["prompt"] = _plain_prompt(row)
    for side in ("chosen", "rejected"):
        fields[side] = _plain_completion(row[side], row.get(f"{side}_key") or "", where)
    try:
        return PreferenceRecord.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{name}: {words}" for name, words in causes(error.errors()))
        raise ConfigError(f"{where} is no preference: {problems}") from error


def _with_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """Of two whole conversations, what comes before their last messages is the prompt; a text beside it repeats it."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, list) or not isinstance(rejected, list) or not isinstance(row.get("prompt", ""), str):
        return row
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        return row
    return {**row, "prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _plain_prompt(row: Mapping[str, Any]) -> Any:
    prompt = row["prompt"]
    if isinstance(prompt, dict):
        return {name: value for name, value in prompt.items() if value is not None}
    named = {"prompt_id": row["prompt_id"]} if row.get("prompt_id") else {}
    return {"messages" if isinstance(prompt, list) else "text": prompt, **named}


def _plain_completion(side: Any, key: str, where: str) -> Any:
    if isinstance(side, list):
        if len(side) != 1:
            raise ConfigError(
                f"{where}: an answer has {len(side)} messages; it must be one, by the assistant, or both sides whole "
                "conversations that differ in the last message alone"
            )
        side = side[0].get("content", "") if isinstance(side[0], dict) else side[0]
    return {"text": side, "key": key} if isinstance(side, str) else side


def _pair_of(record: PreferenceRecord, tokenizer: Tokenizer) -> Example:
    sides = (_completion_ids(record.chosen, tokenizer), _completion_ids(record.rejected, tokenizer))
    asked = prompt_token_ids(tokenizer, record.prompt)
    named = [record.chosen.key, record.rejected.key]
    key = "/".join(named) if all(named) else "c-" + content_key([asked, *([*map(int, side)] for side in sides)])
    return Example(key, record.prompt.prompt_id, np.array(asked, dtype=np.int32), sides, weight=record.weight)


def _require_known(example: Example, tokenizer: Tokenizer, where: str) -> None:
    highest = max(int(ids.max(initial=0)) for ids in (example.prompt_ids, *example.responses))
    if highest >= tokenizer.num_tokens:
        raise ConfigError(
            f"{where} holds token id {highest}, and the network's tokenizer has ids up to {tokenizer.num_tokens - 1}: "
            "they are another tokenizer's; give the pair as text"
        )


def _completion_ids(completion: Completion, tokenizer: Tokenizer) -> TokenIds:
    """Given ids as they are; a text ends with the end of the sequence, or nobody would learn to stop."""
    if completion.token_ids:
        return np.array(completion.token_ids, dtype=np.int32)
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return np.array([*encode_completion(tokenizer, completion.text), *end], dtype=np.int32)
