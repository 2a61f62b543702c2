"""Streams written by every released schema version stay readable for ever.

`python -m tests.stream.test_fixtures` adds the fixture of the present version; one that exists is never changed.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from cong.config.stream import ReadSettings, WriteSettings
from cong.lab.records import synthetic_record
from cong.schemas import SCHEMA_VERSION, Message, Prompt, SampleRecord
from cong.stream import Cursor, StreamReader, StreamWriter, open_store, verify

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
SHUFFLED = ReadSettings(shuffle_rows=4, shuffle_seed=1)


def fixture_records() -> list[SampleRecord]:
    """Every form of a prompt, with and without a pair."""
    messages = (Message(role="system", content="Be brief."), Message(role="user", content="Grüße? 你好"))
    changed = [
        synthetic_record(100).model_copy(update={"prompt": Prompt(messages=messages), "key": "messages"}),
        synthetic_record(101).model_copy(update={"prompt": Prompt(token_ids=(5, 6, 7)), "key": "token-ids"}),
        synthetic_record(102, num_tokens=0).model_copy(update={"key": "empty", "finish_reason": "cancelled"}),
    ]
    return [*map(synthetic_record, range(4)), synthetic_record(4, is_plain=True), *changed]


def make(folder: Path) -> None:
    """Write a stream, the records that it holds, and a cursor into its middle."""
    store = open_store(str(folder / "stream"))
    with StreamWriter(store, WriteSettings(rows_per_segment=3, rows_per_group=2), "fixture") as writer:
        writer.append_many(fixture_records())
    drawn = StreamReader(store, SHUFFLED).draw(3)
    assert drawn is not None
    (folder / "cursor.json").write_text(drawn.cursor.to_json())
    lines = [record.model_dump_json() for record in fixture_records()]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")


def test_the_present_version_has_a_fixture() -> None:
    assert f"version-{SCHEMA_VERSION}" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_stream_is_read_whole_and_its_cursors_still_lead_on(version: str, tmp_path: Path) -> None:
    folder = FIXTURES / version
    shutil.copytree(folder / "stream", tmp_path / "stream")
    store = open_store(str(tmp_path / "stream"))
    stored = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [json.loads(record.model_dump_json()) for record in StreamReader(store).records()] == stored
    assert verify(store).problems == []
    whole = [record.key for record in StreamReader(store, SHUFFLED).records()]
    cursor = Cursor.from_json((folder / "cursor.json").read_text())
    assert [record.key for record in StreamReader(store, SHUFFLED, cursor).records()] == whole[3:]
    # An old stream can be written on.
    with StreamWriter(store, writer_id="fixture") as writer:
        assert writer.append(synthetic_record(0)).is_duplicate


if __name__ == "__main__":
    target = FIXTURES / f"version-{SCHEMA_VERSION}"
    if target.exists():
        sys.exit(f"{target} exists; a released fixture is never changed")
    make(target)
