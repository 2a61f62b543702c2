"""Prompts from files and datasets, read row by row: JSON lines, text, Parquet, and what `datasets` reads.

Knows no tokenizer and no network. A row that is no prompt is named, by its file and number.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
import fsspec.utils
import pyarrow.parquet as pq
from pydantic import ValidationError

from cong.config.jobs import PromptsConfig
from cong.errors import ConfigError, CongError
from cong.schemas import Prompt
from cong.wording import brought_by, causes, with_remedy

_FIELDS = ("prompt", "text", "messages", "token_ids")
_JSON = (".jsonl", ".json", ".ndjson", ".jsonlines")
_PARQUET = (".parquet", ".pq")
_TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".ods")
_PACKED = (".zip", ".tar", ".tgz", ".7z", ".zst", ".lz4", ".snappy", ".br")
"""May hold many files, of which only one would be read, or need packages that are not there."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ROWS_AT_ONCE = 1024
_BEGINNING = 4096
"""Bytes that tell an array from lines."""


@dataclass(frozen=True)
class BadRow:
    """A row that is no prompt."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where} {self.problem}"


@dataclass(frozen=True)
class Columns:
    """Which columns hold what."""

    prompt: str = ""
    """Text, messages or token ids; empty = the one of prompt (or text), messages and token_ids that is there."""
    prompt_id: str = "prompt_id"


_Row = Mapping[str, Any] | BadRow


@dataclass(frozen=True)
class PromptSource:
    """Prompts that can be read any number of times, from the first on; never all in memory."""

    name: str
    rows: Callable[[], Iterator[tuple[str, _Row]]]
    """Rows, each with the place where it stands."""
    count: Callable[[], int | None]
    """Rows in all; None where only reading them tells."""
    columns: Columns = Columns()
    is_near: bool = True
    """Reading it through needs no network."""

    def __iter__(self) -> Iterator[Prompt | BadRow]:
        for where, row in self.rows():
            yield row if isinstance(row, BadRow) else _prompt(row, where, self.columns)

    def strict(self) -> Iterator[Prompt]:
        """The prompts; a row that is none is an error."""
        for item in self:
            if isinstance(item, BadRow):
                raise ConfigError(str(item))
            yield item


def read_prompts(path: Path) -> Iterator[Prompt]:
    """Prompts of a file: `.jsonl` with prompt (or text), messages or token_ids, and prompt_id; else a text per line.

    Empty lines are left out; other fields of a JSON line are ignored.
    """
    return open_prompts(str(path)).strict()


def open_prompts(
    source: str, columns: Columns | None = None, *, split: str = "train", revision: str | None = None, limit: int = 0
) -> PromptSource:
    """Prompts of a file (`.jsonl`, `.parquet`, else a text per line), a folder of `datasets`, a URL, or a hub id.

    A `.json` has lines, too, or is one array, which is read as a whole. Endings count in small and in capital letters,
    and behind them `.gz`, `.bz2`, `.xz` and what else fsspec unpacks.
    Empty lines of text files are left out; columns that are not asked for are ignored.
    """
    columns = columns or Columns()
    path = Path(source)
    suffix, compression = _form_of(source)
    if not source:
        raise ConfigError("no source of prompts is given; give a file, a folder, a URL or a hub id")
    if suffix in _PARQUET and not path.is_dir():
        found = _parquet(source, columns, compression)
    elif "://" in source or path.is_file():
        if suffix in _TABLES:
            raise ConfigError(
                f"{source} is a table, and its lines are no prompts; write it as JSON lines (.jsonl) with a prompt in "
                "each, or as Parquet (.parquet)"
            )
        if suffix in _PACKED:
            raise ConfigError(
                f"{source} is packed as {suffix}, which is not read here; unpack it, or pack the one file as .gz, .bz2 "
                "or .xz"
            )
        found = _lines(source, columns, compression, is_json=suffix in _JSON)
        if suffix == ".json":
            found = _lines_or_array(found, compression)
    elif path.is_dir() or (not suffix and _HUB_ID.fullmatch(source)):
        found = _dataset(source, columns, split, revision)
    else:
        if path.exists():
            raise ConfigError(
                f"cannot read prompts from {source}: it is no file, and prompts are read twice; write one"
            )
        raise ConfigError(f"cannot read prompts from {source}: there is no such file or folder, and it is no hub id")
    return _limited(found, limit) if limit else found


def prompts_of(settings: PromptsConfig) -> PromptSource:
    """The prompts that a configuration names."""
    return open_prompts(
        settings.source,
        Columns(settings.prompt_column, settings.id_column),
        split=settings.split,
        revision=settings.revision,
        limit=settings.max_prompts,
    )


def _form_of(source: str) -> tuple[str, str | None]:
    """The ending that says what a file holds, in small letters, and how the file is compressed.

    Of a URL, what a web server is asked beside the path tells neither; of chained ones the first with a path does.
    """
    if "://" in source:
        source = next(part for part in source.split("::") if "://" in part)
    if source.startswith(("http://", "https://")):
        source = urlsplit(source).path
    path = PurePosixPath(source)
    compression = fsspec.utils.infer_compression(path.name)
    if compression and compression != "zip":
        path = path.with_suffix("")
    return path.suffix.lower(), compression


@contextmanager
def _reading(source: str, remark: str = "") -> Iterator[None]:
    """Around all that opens and reads: every store, codec and format has errors of its own."""
    try:
        yield
    except CongError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.strerror:
            said = with_remedy(error)
        raise ConfigError(f"cannot read prompts from {source}{remark}: {said}") from error


def _limited(source: PromptSource, limit: int) -> PromptSource:
    def count() -> int | None:
        num_rows = source.count()
        return None if num_rows is None else min(num_rows, limit)

    return replace(source, rows=lambda: itertools.islice(source.rows(), limit), count=count)


# Files of lines.


def _lines(source: str, columns: Columns, compression: str | None, *, is_json: bool) -> PromptSource:
    def raw_lines() -> Iterator[bytes]:
        with _reading(source), fsspec.open(source, "rb", compression=compression) as file:
            yield from file

    def rows() -> Iterator[tuple[str, _Row]]:
        # Only a line feed ends a line: JSON and text may hold every other separator of Unicode.
        for number, line in enumerate(raw_lines(), start=1):
            where = f"{source}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield where, BadRow(where, f"is not UTF-8 text: {error}")
                continue
            if text.strip():
                yield where, _json_row(text, where) if is_json else _text_row(text, where)

    def count() -> int:
        return sum(bool(line.strip()) for line in raw_lines())

    return PromptSource(source, rows, count, columns if is_json else Columns(), "://" not in source)


def _lines_or_array(lines: PromptSource, compression: str | None) -> PromptSource:
    source = lines.name

    def array() -> list[Any] | None:
        with _reading(source), fsspec.open(source, "rb", compression=compression) as file:
            content = file.read(_BEGINNING)
            if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                return None
            try:
                found: list[Any] = json.loads(content + file.read())
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{source} begins as a JSON array and is none: {error}; give a whole array, or an object a line"
                ) from error
            return found

    def rows() -> Iterator[tuple[str, _Row]]:
        found = array()
        if found is None:
            yield from lines.rows()
        for number, row in enumerate(found or ()):
            where = f"{source}[{number}]"
            yield where, _object(row, where)

    def count() -> int | None:
        found = array()
        return lines.count() if found is None else len(found)

    return replace(lines, rows=rows, count=count)


def _text_row(text: str, where: str) -> _Row:
    # What is no text may be UTF-8 all the same, as a tar or a table of Arrow's is.
    return BadRow(where, "holds a zero byte; is the file text?") if "\0" in text else {"text": text}


def _json_row(text: str, where: str) -> _Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRow(where, f"is not JSON: {error}; one JSON object per line is needed")
    return _object(row, where)


def _object(row: object, where: str) -> _Row:
    return row if isinstance(row, dict) else BadRow(where, f"is a {type(row).__name__}; a JSON object is needed")


# Columns.


def _parquet(source: str, columns: Columns, compression: str | None) -> PromptSource:
    @contextmanager
    def opened() -> Iterator[pq.ParquetFile]:
        with _reading(source), fsspec.open(source, "rb", compression=compression) as file:
            yield pq.ParquetFile(file)

    def rows() -> Iterator[tuple[str, _Row]]:
        with opened() as table:
            wanted = _wanted(table.schema_arrow.names, columns, source)
            number = 0
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{source}:{number}", row

    def count() -> int:
        with opened() as table:
            return int(table.metadata.num_rows)

    return PromptSource(source, rows, count, columns, "://" not in source)


def _dataset(source: str, columns: Columns, split: str, revision: str | None) -> PromptSource:
    with brought_by("train"):
        import datasets

    is_saved = any((Path(source) / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
    origin = "the dataset in" if Path(source).is_dir() else "no file or folder is named so here, so from the hub's"
    with _reading(source, f" ({origin} {source})"):
        if is_saved:
            loaded = datasets.load_from_disk(source)
            if isinstance(loaded, datasets.DatasetDict):
                if split not in loaded:
                    raise ConfigError(f"{source} has no split {split!r}; its splits are: {', '.join(loaded)}")
                loaded = loaded[split]
        else:
            loaded = datasets.load_dataset(source, split=split, revision=revision, streaming=True)

    def rows() -> Iterator[tuple[str, _Row]]:
        with _reading(source):
            known = loaded.column_names
            chosen = loaded.select_columns(_wanted(known, columns, source)) if known else loaded
            for number, row in enumerate(chosen):
                yield f"{source}[{number}]", row

    def count() -> int | None:
        if is_saved:
            return len(loaded)
        described = (loaded.info.splits or {}).get(split)
        return described.num_examples if described is not None else None

    return PromptSource(source, rows, count, columns, Path(source).is_dir())


def _wanted(names: Iterable[str], columns: Columns, source: str) -> list[str]:
    there = set(names)
    fields = (columns.prompt,) if columns.prompt else _FIELDS
    if not there.intersection(fields):
        raise ConfigError(
            f"{source} has none of the columns {', '.join(fields)}; it has {', '.join(sorted(there))}: name one of "
            "them as prompt_column"
        )
    forms = there.intersection(fields) - ({"text"} if "prompt" in there else set())
    if len(forms) > 1:
        raise ConfigError(
            f"{source} has the columns {', '.join(sorted(forms))}; name the one that holds the prompts as prompt_column"
        )
    return [*forms, *({columns.prompt_id} & there)]


# Rows.


def _prompt(row: Mapping[str, Any], where: str, columns: Columns) -> Prompt | BadRow:
    names = (columns.prompt,) if columns.prompt else _FIELDS
    given = {name: row[name] for name in names if row.get(name) is not None}
    if not given:
        return BadRow(where, f"has none of the fields {', '.join(names)}; rename one, or name it as prompt_column")
    fields: dict[str, Any] = {}
    for name, value in given.items():
        fields.setdefault(_form(name, value), _without_nulls(value))
    if len(fields) > 1:
        return BadRow(where, f"has the fields {', '.join(given)}; name the one that holds the prompt as prompt_column")
    prompt_id = row.get(columns.prompt_id)
    if isinstance(prompt_id, int) and not isinstance(prompt_id, bool):
        prompt_id = str(prompt_id)
    if prompt_id is not None:
        fields["prompt_id"] = prompt_id
    try:
        return Prompt.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{name or 'prompt'}: {words}" for name, words in causes(error.errors()))
        return BadRow(where, f"is no prompt: {problems}")


def _form(name: str, value: Any) -> str:
    """Which form of a prompt a value is in, whatever its column is called."""
    if isinstance(value, list | tuple) and value:
        return "messages" if isinstance(value[0], Mapping) else "token_ids"
    return name if name in ("messages", "token_ids") else "text"


def _without_nulls(value: Any) -> Any:
    """Arrow gives every message the fields of all messages, empty where a message has none."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in item.items() if v is not None} if isinstance(item, Mapping) else item for item in value]
