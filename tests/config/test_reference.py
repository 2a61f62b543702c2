"""The reference of all settings: whole, true to the types, and the page that is committed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from cong.cli import main
from cong.config import RunConfig, dump_config
from cong.config.loading import _all_keys
from cong.config.reference import reference, settings_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "configuration-reference.md"


def leaves(content: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name and value of every setting of a file that has no sections below it."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}.{key}" if prefix else key
        found |= leaves(value, name) if isinstance(value, dict) and value else {name: value}
    return found


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "reference"]) == 0
    out = capsys.readouterr().out
    assert out == PAGE.read_text(encoding="utf-8"), "run: cong config reference > docs/configuration-reference.md"


def test_every_key_of_every_section_is_there() -> None:
    rows = set(re.findall(r"^\| `([\w.]+)(?:[^`]*)` \|", reference(), re.MULTILINE))
    last = {row.rpartition(".")[2] for row in re.findall(r"^\| `([^`]+)` \|", reference(), re.MULTILINE)}
    sections = {key for key, places in _all_keys(RunConfig).items() if any("." not in place for place in places)}
    assert not set(_all_keys(RunConfig)) - last - sections
    # What a whole configuration holds is named one by one.
    whole = yaml.safe_load(dump_config(RunConfig()))
    named = {name for name in leaves(whole) if not re.search(r"parameters\.\w+$", name)}
    assert not named - rows


def test_defaults_are_those_of_an_empty_file() -> None:
    shown = dict(re.findall(r"^\| `([\w.]+)` \| [^|]+ \| `([^`]+)` \|", reference(), re.MULTILINE))
    whole = leaves(yaml.safe_load(dump_config(RunConfig())))
    plain = {name: value for name, value in whole.items() if isinstance(value, int | float | bool) or value is None}
    assert len(plain) > 150
    for name, value in plain.items():
        if name in shown:
            assert json.loads(shown[name]) == value, name


class _Inner(BaseModel):
    """Of the inner section."""

    size: int = 3
    """How many; None = none."""


class _Outer(BaseModel):
    inner: _Inner = _Inner(size=4)
    maybe: _Inner | None = None
    """Off unless given."""
    needed: str


def test_meanings_types_and_defaults_by_hand() -> None:
    found = {each.name: (each.kind, each.default, each.meaning) for each in settings_of(_Outer, "outer")}
    assert found == {
        "outer.inner": ("section", "", "Of the inner section."),
        "outer.inner.size": ("whole number", "4", "How many; None = none."),
        "outer.maybe": ("section, or null", "null", "Off unless given."),
        "outer.maybe.size": ("whole number", "3", "How many; None = none."),
        "outer.needed": ("text", "", "Needed."),
    }
