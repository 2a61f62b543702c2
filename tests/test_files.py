"""Files that must survive a crash: whole or not there, and errors that name what was asked for."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cong.cli.samples_file import SamplesFile
from cong.client.ledger import Ledger
from cong.errors import ConfigError
from cong.files import make_folder, remove_folder, write_file
from cong.wording import of_the_machine


def test_a_write_that_fails_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    write_file(tmp_path / "made" / "file", b"former")
    write_file(tmp_path / "made" / "file", b"new")
    assert (tmp_path / "made" / "file").read_bytes() == b"new"
    with pytest.raises(IsADirectoryError) as caught:
        write_file(tmp_path / "made", b"content")
    assert caught.value.filename == str(tmp_path / "made")
    too_long = tmp_path / ("n" * 240)
    with pytest.raises(OSError, match="too long") as long:
        write_file(too_long, b"content")
    assert long.value.filename == str(too_long)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_goes_has_lost_its_name_for_good_before_its_files_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "folder" / "file", b"content")
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: forced.append(os.fstat(handle).st_ino))
    monkeypatch.setattr(shutil, "rmtree", lambda folder, ignore_errors: gone.append((folder, list(forced))))
    gone: list[tuple[Path, list[int]]] = []
    remove_folder(tmp_path / "folder")
    ((doomed, forced_before),) = gone
    assert [path.name for path in tmp_path.iterdir()] == [doomed.name]
    assert forced_before == [tmp_path.stat().st_ino]


@pytest.mark.parametrize("place", ["/proc/none", "/proc/none/below", "broken", "broken/below"])
@pytest.mark.parametrize("make", [make_folder, SamplesFile, Ledger])
def test_a_place_where_nothing_can_be_made_is_told_as_one(
    tmp_path: Path, make: Callable[[Path], object], place: str
) -> None:
    (tmp_path / "broken").symlink_to("/proc/none/file")
    with pytest.raises(OSError, match=r"No such file|File exists") as caught:
        make(tmp_path / place)
    assert "check the path" in (of_the_machine(caught.value) or "")


def test_a_file_that_cannot_be_written_where_it_is_asked_for_is_told_by_its_name() -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        write_file(Path("/proc/none"), b"content")
    assert of_the_machine(caught.value) == "/proc/none cannot be used: No such file or directory; check the path"


@pytest.mark.parametrize("place", ["/dev/null", "/dev/full", "folder", "pipe"])
def test_samples_go_only_where_they_can_be_found_again(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no regular file"):
        SamplesFile(tmp_path / place)


@pytest.mark.parametrize("place", ["folder", ".", "/"])
def test_a_file_in_the_place_of_a_folder_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as told:
        write_file(Path(place), b"text")
    assert told.value.filename == place
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_a_folder_in_the_place_of_a_file_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError) as told:
            make_folder(place)
        assert told.value.filename == str(place)
