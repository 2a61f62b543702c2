"""`verify` and one flipped bit in every region of every file: noticed, named, and the rest stays readable."""

import shutil
from pathlib import Path

import pytest

from cong.cli import main
from cong.config.stream import ReadSettings
from cong.errors import StreamCorrupt
from cong.stream import StreamReader, StreamWriter, verify
from cong.stream.filesystem import LocalFileSystem
from cong.stream.names import JOURNAL
from cong.stream.store import LocalStore
from tests.stream.streams import SMALL, folder_store, keys, read_keys, records, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A stream with a closed writer, one that left records in its journal, and the traces of both."""
    store = folder_store(tmp_path)
    write(store, range(13))
    writer = StreamWriter(store, SMALL.model_copy(update={"has_journal": True}), "j")
    writer.append_many(records(range(20, 29)), "local")
    writer.abandon()
    return Path(store.root)


def report_of(root: Path) -> list[str]:
    store = LocalStore(str(root), LocalFileSystem())
    return [f"{problem.path}: {problem.what}" for problem in verify(store, (store.files, f"{root}/{JOURNAL}")).problems]


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and ".cache" not in path.parts)


def test_a_sound_stream_is_sound(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_of(root) == []
    assert main(["stream", "verify", str(root)]) == 0
    told = capsys.readouterr().out
    assert "18 rows in 4 segments" in told
    assert "0 problems, 4 records in journals only" in told


def test_a_journal_that_the_disk_does_not_give_is_one_problem_among_others(root: Path) -> None:
    journal = min((root / JOURNAL).iterdir())
    journal.unlink()
    journal.mkdir()
    assert report_of(root) == [f"{journal}: cannot be read: Is a directory; check the path"]


def test_one_flipped_bit_in_any_region_of_any_file_is_noticed(root: Path) -> None:
    kinds = set()
    for path in files_of(root):
        content = path.read_bytes()
        kinds.add(path.suffix)
        for share in (0.0, 0.02, 0.2, 0.4, 0.6, 0.8, 0.97, 0.999) if content else ():
            damaged = bytearray(content)
            damaged[int(share * len(content))] ^= 0x10
            path.write_bytes(damaged)
            problems = report_of(root)
            assert problems, (path.name, share)
            assert any(path.name in problem for problem in problems), (path.name, share, problems)
        path.write_bytes(content)
    assert kinds == {".parquet", ".claim", ".closed", ".wal", ".json"}
    assert report_of(root) == []


def test_one_changed_character_of_any_name_is_noticed(root: Path) -> None:
    for path in files_of(root):
        if path.name == "stream.json":
            continue
        for at in range(0, len(path.name), 3):
            old = path.name[at]
            changed = path.with_name(path.name[:at] + ("0" if old != "0" else "5") + path.name[at + 1 :])
            path.rename(changed)
            assert report_of(root), changed.name
            changed.rename(path)
    assert report_of(root) == []


def test_a_missing_segment_of_a_closed_writer_is_noticed_first_middle_or_last(root: Path) -> None:
    gone = [path for path in files_of(root) if path.suffix == ".parquet" and path.name.startswith("w-")]
    assert len(gone) == 3
    for path in gone:
        kept = path.read_bytes()
        path.unlink()
        (problem,) = report_of(root)
        assert "should be there and cannot be found" in problem
        path.write_bytes(kept)


def test_damage_ends_the_command_with_one_and_the_rows_are_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(path for path in files_of(root) if path.name.startswith("w-000001-00000001-00000001"))
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    assert main(["stream", "verify", str(root)]) == 1
    told = capsys.readouterr().out
    assert path.name in told
    assert "rows 5 to 6 of w-000001" in told
    store = LocalStore(str(root), LocalFileSystem())
    with pytest.raises(StreamCorrupt, match="rows 5 to 6 of w-000001"):
        read_keys(store)
    rest = keys([*range(20, 25), *range(5), *range(7, 13)])
    assert read_keys(store, ReadSettings(on_damage="skip")) == rest


def test_what_has_no_writers_name_stops_readers_too(root: Path) -> None:
    shutil.copy(next(path for path in files_of(root) if path.suffix == ".parquet"), root / "segments" / "copy.parquet")
    assert report_of(root) == ["segments/copy.parquet: no writer makes such a name"]
    with pytest.raises(StreamCorrupt, match=r"copy\.parquet: not a name that a writer makes"):
        StreamReader(LocalStore(str(root), LocalFileSystem()))


def test_a_forged_name_cannot_hide_segments(root: Path) -> None:
    # The middle segment under a name that claims all three places: its bytes give it away.
    middle = next(path for path in files_of(root) if path.name.startswith("w-000001-00000001-00000001"))
    middle.rename(middle.with_name(middle.name.replace("-00000001-00000001-", "-00000000-00000002-")))
    problems = report_of(root)
    assert any("name and footer do not belong together" in problem for problem in problems)
    assert read_keys(LocalStore(str(root), LocalFileSystem()), ReadSettings(on_damage="skip"))[5:] == keys(
        [*range(5), *range(10, 13)]
    )
