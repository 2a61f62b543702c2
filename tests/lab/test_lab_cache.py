"""The cache: an entry is used only while its recipe and its bytes are what they were."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cong.lab.cache import RECIPE_FILE, Cache, Recipe, problem_with, source_digest

SOURCE = '''
"""A module."""
def double(x: int) -> int:
    """Twice."""
    return 2 * x  # exact
'''


class Maker:
    """Fills an entry, and counts how often it had to."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, folder: Path) -> None:
        self.num_calls += 1
        (folder / "value.txt").write_text("made")


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"kind": "thing", "settings": {"seed": 0, "size": 3}, "source": "abc", **changes})


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path), Maker()
    assert not cache.has(recipe())
    folder = cache.get(recipe(), make)
    assert (folder / "value.txt").read_text() == "made"
    assert cache.get(recipe(), make) == folder
    assert cache.has(recipe())
    assert make.num_calls == 1


@pytest.mark.parametrize(
    "changes", [{"settings": {"seed": 1, "size": 3}}, {"source": "abd"}, {"kind": "other"}, {"settings": {"seed": 0}}]
)
def test_another_recipe_is_another_entry(changes: dict[str, Any], tmp_path: Path) -> None:
    cache, make = Cache(tmp_path), Maker()
    folders = {cache.get(recipe(), make), cache.get(recipe(**changes), make)}
    assert len(folders) == 2
    assert make.num_calls == 2
    assert recipe().key != recipe(**changes).key


def test_the_order_of_settings_does_not_count() -> None:
    assert recipe(settings={"size": 3, "seed": 0}).key == recipe().key


def damage_content(folder: Path) -> None:
    (folder / "value.txt").write_text("mad")


def damage_by_removal(folder: Path) -> None:
    (folder / "value.txt").unlink()


def damage_by_addition(folder: Path) -> None:
    (folder / "stranger.txt").write_text("")


def damage_recipe_file(folder: Path) -> None:
    (folder / RECIPE_FILE).write_text('{"key": ')


def lose_recipe_file(folder: Path) -> None:
    (folder / RECIPE_FILE).unlink()


def swap_key(folder: Path) -> None:
    content = json.loads((folder / RECIPE_FILE).read_text())
    (folder / RECIPE_FILE).write_text(json.dumps({**content, "key": "0" * 40}))


@pytest.mark.parametrize(
    "damage",
    [damage_content, damage_by_removal, damage_by_addition, damage_recipe_file, lose_recipe_file, swap_key],
)
def test_a_damaged_entry_is_made_again_and_that_is_said(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, make = Cache(tmp_path), Maker()
    folder = cache.get(recipe(), make)
    damage(folder)
    assert not cache.has(recipe())
    with caplog.at_level(logging.WARNING):
        assert cache.get(recipe(), make) == folder
    assert "damaged" in caplog.text
    assert "made again" in caplog.text
    assert make.num_calls == 2
    assert problem_with(folder, recipe()) is None
    assert {path.name for path in folder.iterdir()} == {"value.txt", RECIPE_FILE}


def test_a_failed_make_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("stopped")

    cache = Cache(tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        cache.get(recipe(), fail)
    assert list(tmp_path.iterdir()) == []
    assert not cache.has(recipe())


def test_the_first_of_two_makers_wins(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path), Maker()

    def slow(folder: Path) -> None:
        cache.get(recipe(), other)
        (folder / "value.txt").write_text("late")

    folder = cache.get(recipe(), slow)
    assert (folder / "value.txt").read_text() == "made"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_comments_docstrings_and_layout_do_not_change_a_digest() -> None:
    same = "def double(x: int) -> int:\n    return (2 *\n        x)\n"
    assert source_digest([SOURCE]) == source_digest([same])


@pytest.mark.parametrize(
    ("old", "new"), [("2 * x", "3 * x"), ("x: int", "y: int"), ("double", "twice"), ("2 * x", "x * 2")]
)
def test_any_change_of_code_changes_a_digest(old: str, new: str) -> None:
    assert source_digest([SOURCE.replace(old, new)]) != source_digest([SOURCE])
