"""Keys are hashed, compared over all of them, and read again when their file changes."""

import os
from pathlib import Path

import pytest

from cong.errors import ConfigError, Unauthenticated
from cong.service.keys import KEY_PREFIX, KeyRing, hash_key, key_line, new_key


def test_a_new_key_is_long_and_is_kept_as_a_hash_only(tmp_path: Path) -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith(KEY_PREFIX) and len(key) >= len(KEY_PREFIX) + 43 for key in keys)
    key = keys.pop()
    file = tmp_path / "keys"
    file.write_text(f"# who may ask, and since when\n\n{key_line('me', key)}\n{key_line('you', keys.pop())}\n")
    assert key not in file.read_text()
    ring = KeyRing(str(file))
    assert not ring.is_open
    assert ring.verify(key) == "me"


@pytest.mark.parametrize("wrong", [None, "", "cong-x", "x" * 100_000, "sha256:" + "0" * 64, "caf\u00e9 \ud800"])
def test_a_wrong_key_is_refused(tmp_path: Path, wrong: str | None) -> None:
    file = tmp_path / "keys"
    file.write_text(key_line("me", new_key()))
    with pytest.raises(Unauthenticated):
        KeyRing(str(file)).verify(wrong)


def test_the_hash_of_a_key_is_no_key(tmp_path: Path) -> None:
    key = new_key()
    file = tmp_path / "keys"
    file.write_text(key_line("me", key))
    with pytest.raises(Unauthenticated):
        KeyRing(str(file)).verify(hash_key(key))


def test_without_keys_everybody_is_let_in_without_a_name() -> None:
    ring = KeyRing()
    assert ring.is_open
    assert ring.verify(None) == ""


def test_keys_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    monkeypatch.setenv("SOME_KEYS", f"{key_line('a', new_key())},{key_line('b', key)}")
    assert KeyRing(env="SOME_KEYS").verify(key) == "b"
    monkeypatch.delenv("SOME_KEYS")
    with pytest.raises(ConfigError, match="SOME_KEYS, which is not set"):
        KeyRing(env="SOME_KEYS")


def test_a_caller_whose_key_is_changed_has_two_for_a_while(tmp_path: Path) -> None:
    now = 0.0
    old, new = new_key(), new_key()
    file = tmp_path / "keys"
    file.write_text(key_line("team-a", old))
    ring = KeyRing(str(file), clock=lambda: now)
    file.write_text(f"{key_line('team-a', old)}\n{key_line('team-a', new)}\n")
    now = 10.0
    assert [ring.verify(key) for key in (old, new)] == ["team-a", "team-a"]
    file.write_text(key_line("team-a", new))
    now = 20.0
    assert ring.verify(new) == "team-a"
    with pytest.raises(Unauthenticated):
        ring.verify(old)


def test_a_changed_file_is_read_again_and_a_torn_one_changes_nothing(tmp_path: Path) -> None:
    now = 0.0
    old, new = new_key(), new_key()
    file = tmp_path / "keys"
    file.write_text(key_line("old", old))
    ring = KeyRing(str(file), reload_s=5.0, clock=lambda: now)

    file.write_text(key_line("new", new) + "\n")
    assert ring.verify(old) == "old", "it is not looked at for every request"
    now = 5.0
    assert ring.verify(new) == "new"
    with pytest.raises(Unauthenticated):
        ring.verify(old)

    file.write_text("new sha256:12")
    os.utime(file, ns=(1, 1))
    now = 10.0
    assert ring.verify(new) == "new"
    file.unlink()
    now = 15.0
    assert ring.verify(new) == "new"
    with pytest.raises(ConfigError, match="cannot read the API keys"):
        ring.reload()


@pytest.mark.parametrize(
    "line",
    [
        "me",
        "me cong-secret",
        "me sha256:12",
        "a b c",
        f"m\u00e9 sha256:{'0' * 64}",
    ],
)
def test_a_wrong_line_is_refused_without_being_shown(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        KeyRing(str(file))
    assert "secret" not in str(caught.value)


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    with pytest.raises(ConfigError, match="nobody could ask"):
        KeyRing(str(file))
    with pytest.raises(ConfigError, match="key name"):
        key_line("two words", new_key())
