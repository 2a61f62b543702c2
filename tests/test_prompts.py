"""Prompts from every source: in order, with ids that stay, row by row, and wrong rows by name."""

import bz2
import gzip
import json
import lzma
import os
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cong.errors import ConfigError
from cong.prompts import BadRow, Columns, open_prompts, read_prompts
from cong.schemas import Prompt

CHAT = [{"role": "user", "content": "hello"}]
ROWS: list[dict[str, Any]] = [
    {"question": "one", "number": 7, "other": 1.5},
    {"question": "two", "number": 8, "other": None},
    {"question": "three", "number": 9, "other": 2.5},
]
BY_QUESTION = Columns(prompt="question", prompt_id="number")


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return str(path)


def write_dataset(path: Path, rows: list[dict[str, Any]]) -> str:
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return str(path)


def write_dataset_of_splits(path: Path, rows: list[dict[str, Any]]) -> str:
    splits = {"test": datasets.Dataset.from_list(rows[:1]), "train": datasets.Dataset.from_list(rows)}
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return str(path)


def write_folder_of_files(path: Path, rows: list[dict[str, Any]]) -> str:
    path.mkdir()
    write_lines(path / "train.jsonl", rows)
    return str(path)


@pytest.fixture(autouse=True)
def quiet_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_lines),
        ("rows.parquet", write_parquet),
        ("saved", write_dataset),
        ("splits", write_dataset_of_splits),
        ("files", write_folder_of_files),
    ],
)
def test_every_kind_of_source_gives_the_same_prompts_any_number_of_times(tmp_path: Path, name: str, write: Any) -> None:
    source = open_prompts(write(tmp_path / name, ROWS), BY_QUESTION)
    wanted = [Prompt(text=row["question"], prompt_id=str(row["number"])) for row in ROWS]
    assert list(source.strict()) == wanted
    assert list(source.strict()) == wanted
    assert source.count() in (3, None if name == "files" else 3)
    assert source.is_near
    limited = open_prompts(str(tmp_path / name), BY_QUESTION, limit=2)
    assert list(limited.strict()) == wanted[:2]


def test_a_prompt_without_an_id_is_named_by_its_content_wherever_it_stands(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    table = write_parquet(tmp_path / "a.parquet", [{"prompt": "two"}, {"prompt": "one"}])
    one, two = open_prompts(lines).strict()
    again_two, again_one = open_prompts(table).strict()
    assert (one.prompt_id, two.prompt_id) == (again_one.prompt_id, again_two.prompt_id)
    assert one.prompt_id != two.prompt_id


@pytest.mark.parametrize("write", [write_parquet, write_dataset])
def test_messages_and_ids_come_out_of_columns(tmp_path: Path, write: Any) -> None:
    turns = [{"role": "system", "content": "be kind", "name": "x"}, {"role": "user", "content": "hello", "name": None}]
    rows = [{"chat": CHAT, "ids": [4, 5]}, {"chat": CHAT, "ids": [6]}]
    source = write(tmp_path / "rows.parquet", rows)
    assert [prompt.messages[0].content for prompt in open_prompts(source, Columns("chat")).strict()] == ["hello"] * 2
    assert [prompt.token_ids for prompt in open_prompts(source, Columns("ids")).strict()] == [(4, 5), (6,)]
    # Arrow gives every message the fields of all: those that a message does not have are no fields of it.
    named = write(tmp_path / "named.parquet", [{"chat": [turns[1], turns[1]]}, {"chat": turns}])
    first, second = open_prompts(named, Columns("chat"))
    assert isinstance(first, Prompt)
    assert isinstance(second, BadRow)
    assert "messages.0.name" in str(second)


def test_compressed_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "one"}\n{"prompt": "two"}\n'))
    assert [prompt.text for prompt in read_prompts(path)] == ["one", "two"]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ConfigError, match="cannot read prompts"):
        list(read_prompts(path))


LINES = b'{"prompt": "one"}\n{"prompt": "two"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ROWS.JSONL", LINES),
        ("rows.jsonlines", LINES),
        ("rows.Json.GZ", gzip.compress(LINES)),
        ("rows.jsonl.lzma", lzma.compress(LINES, lzma.FORMAT_ALONE)),
        ("rows.jsonl.bz2", bz2.compress(LINES)),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_a_file_holds_is_known_by_its_ending_however_it_is_written(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert [prompt.text for prompt in open_prompts(str(tmp_path / name)).strict()] == ["one", "two"]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_may_be_one_array(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "rows.json"
    rows = [{"prompt": "one", "prompt_id": "1"}, {"prompt": "two", "prompt_id": "2"}, 3]
    path.write_text("\ufeff\n" + json.dumps(rows, indent=indent))
    source = open_prompts(str(path))
    assert source.count() == 3
    first, second, wrong = source
    assert [first, second] == [Prompt(text="one", prompt_id="1"), Prompt(text="two", prompt_id="2")]
    assert str(wrong) == f"{path}[2] is a int; a JSON object is needed"
    path.write_text(json.dumps(rows, indent=indent)[:-1])
    with pytest.raises(ConfigError, match=f"{path} begins as a JSON array and is none: "):
        list(source)


def test_a_web_server_is_asked_for_a_file_with_more_than_its_path(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINES))
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("rows.jsonl?download=true", "rows.jsonl.gz?download=true#L2"):
            source = open_prompts(f"http://127.0.0.1:{server.server_port}/{name}")
            assert [prompt.text for prompt in source.strict()] == ["one", "two"]
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *what: Any) -> None: ...


def test_of_chained_urls_the_first_path_says_what_there_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        packed.writestr("rows.jsonl", LINES)
    source = open_prompts(f"zip://rows.jsonl::file://{tmp_path}/all.zip")
    assert [prompt.text for prompt in source.strict()] == ["one", "two"]


@pytest.mark.parametrize("name", ["rows.jsonl.zip", "rows.tar.gz", "rows.tgz", "rows.jsonl.7z"])
def test_what_may_hold_many_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(LINES))
    with pytest.raises(ConfigError, match=r"is not read here; unpack it, or pack the one file as \.gz"):
        open_prompts(str(tmp_path / name))


def test_a_table_of_arrow_s_is_not_taken_for_text(tmp_path: Path) -> None:
    (tmp_path / "rows.arrow").write_bytes(b"ARROW1\0\0one\ntwo\n")
    bad, good = open_prompts(str(tmp_path / "rows.arrow"))
    assert str(bad).endswith("rows.arrow:1 holds a zero byte; is the file text?")
    assert good == Prompt(text="two")


def test_sources_at_urls_are_read() -> None:
    import fsspec

    with fsspec.open("memory://folder/rows.jsonl", "wb") as file:
        file.write(b'{"prompt": "one"}\n')
    source = open_prompts("memory://folder/rows.jsonl")
    assert [prompt.text for prompt in source.strict()] == ["one"]
    assert not source.is_near


def test_a_table_of_another_program_is_not_taken_for_a_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,answer\nSab=,ab\n")
    with pytest.raises(ConfigError, match=r"prompts\.csv is a table, and its lines are no prompts; write it as JSON"):
        open_prompts(str(path))


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    odd = "one\u2028still one\u0085and\x0bmore"
    assert [prompt.text for prompt in open_prompts(write_lines(tmp_path / "a.jsonl", [{"prompt": odd}])).strict()] == [
        odd
    ]
    (tmp_path / "a.txt").write_bytes(f"\ufeff{odd}\r\n\n  \ntwo".encode())
    assert [prompt.text for prompt in read_prompts(tmp_path / "a.txt")] == [odd, "two"]
    assert open_prompts(str(tmp_path / "a.txt")).count() == 2


def test_wrong_rows_are_named_and_do_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"prompt": "one"}\n{not json\n[1]\n{"promt": "x"}\n{"prompt": 3}\n\xff\xfe\n'
        b'{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}\n{"prompt": "", "prompt_id": ""}\n'
        b'{"prompt": "last"}\n'
    )
    items = list(open_prompts(str(path)))
    assert [item.text for item in items if isinstance(item, Prompt)] == ["one", "last"]
    bad = [item for item in items if isinstance(item, BadRow)]
    assert [item.where for item in bad] == [f"{path}:{number}" for number in range(2, 9)]
    for item, word in zip(
        bad,
        ("not JSON", "is a list", "none of the fields", "text", "UTF-8", "as prompt_column", "prompt_id"),
        strict=True,
    ):
        assert word in item.problem
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2 is not JSON"):
        list(open_prompts(str(path)).strict())


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}"], ids=["open", "closed"]
)
def test_a_line_that_is_nested_without_end_is_named_like_any_other(tmp_path: Path, line: str) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text(f'{{"prompt": "one"}}\n{line}\n{{"prompt": "last"}}\n')
    first, bad, last = open_prompts(str(path))
    assert isinstance(first, Prompt)
    assert isinstance(last, Prompt)
    assert str(bad).startswith(f"{path}:2 is not JSON: ")
    with pytest.raises(ConfigError, match=r"deep\.jsonl:2 is not JSON: maximum recursion depth"):
        list(open_prompts(str(path)).strict())


@pytest.mark.parametrize(
    ("rows", "columns", "complaint"),
    [
        ([{"question": "x"}], None, "has none of the columns prompt, text, messages, token_ids; it has question"),
        ([{"question": "x"}], Columns("answer"), "has none of the columns answer; it has question"),
        ([{"prompt": "x", "messages": CHAT}], None, "has the columns messages, prompt; name the one"),
    ],
)
def test_a_table_without_the_column_is_refused_as_a_whole(
    tmp_path: Path, rows: list[dict[str, Any]], columns: Columns | None, complaint: str
) -> None:
    for write, name in ((write_parquet, "a.parquet"), (write_dataset, "saved")):
        with pytest.raises(ConfigError, match=complaint):
            list(open_prompts(write(tmp_path / name, rows), columns))


@pytest.mark.parametrize("source", ["nowhere.jsonl", "nowhere.parquet", "./no/such/folder", "", "nosuch://a/b.jsonl"])
def test_a_source_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot read prompts|no source"):
        list(open_prompts(source))


def damaged(content: bytes) -> bytes:
    """With a hole where the compressed data is, behind all headers."""
    return content[:3000] + b"\xff" * 50 + content[3050:]


MANY = b"".join(b'{"prompt": "%d"}\n' % (number * 2654435761 % 2**32) for number in range(5000))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl.gz", damaged(gzip.compress(MANY)), "while decompressing data"),
        ("rows.jsonl.xz", damaged(lzma.compress(MANY)), "LZMAError: Corrupt input data"),
        ("rows.jsonl.bz2", bz2.compress(MANY)[:3000], "EOFError: Compressed file ended"),
    ],
    ids=["gz", "xz", "bz2"],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    source = open_prompts(str(tmp_path / name))
    for read in (source.count, lambda: list(source)):
        with pytest.raises(ConfigError, match=rf"cannot read prompts from .*{name}: .*{said}"):
            read()


class CuttingHandler(QuietHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(2 * len(MANY)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(MANY)
        self.close_connection = True


def test_a_download_that_breaks_off_is_told_with_its_address() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), CuttingHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ConfigError, match=r"cannot read prompts from http://.*/cut\.jsonl: .* not completed"):
            list(open_prompts(f"http://127.0.0.1:{server.server_port}/cut.jsonl"))
        server.shutdown()


@pytest.mark.parametrize(
    "files",
    [
        {"a.jsonl": '{"prompt": "one"}\n{"prompt": \n'},
        {"a.jsonl": '{"prompt": "one"}\n', "b.jsonl": '{"text": "two"}\n'},
    ],
    ids=["no JSON", "other columns"],
)
def test_a_folder_whose_files_cannot_be_read_as_one_dataset_is_named(tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"cannot read prompts from {tmp_path}"):
        list(open_prompts(str(tmp_path)))


def test_a_pipe_is_told_to_be_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="it is no file, and prompts are read twice; write one"):
        open_prompts(str(tmp_path / "pipe"))


def test_a_missing_split_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    source = write_dataset_of_splits(tmp_path / "splits", ROWS)
    assert open_prompts(source, BY_QUESTION, split="test").count() == 1
    with pytest.raises(ConfigError, match="no split 'validation'; its splits are: test, train"):
        open_prompts(source, BY_QUESTION, split="validation")


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"something else")
    with pytest.raises(ConfigError, match=r"cannot read prompts from .*a\.parquet"):
        list(open_prompts(str(tmp_path / "a.parquet")))
