"""Files that must survive a crash: whole or not there, and errors that name what was asked for."""

from pathlib import Path

import pytest

from cong.files import write_file


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
