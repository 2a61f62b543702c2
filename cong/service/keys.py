"""API keys: made with 256 random bits, kept as SHA-256 only, compared in constant time over all of them.

A line of a keys file is `name sha256:<hex>`; empty lines and those that begin with # mean nothing. Knows no HTTP.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cong.errors import ConfigError, Unauthenticated

log = logging.getLogger(__name__)

KEY_PREFIX = "cong-"
_MAX_KEY_CHARS = 256
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def new_key() -> str:
    """A fresh key; whoever holds it may ask. It is nowhere kept and cannot be had again."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What is kept of a key. Its 256 random bits cannot be guessed, so a plain hash is enough."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def key_line(name: str, key: str) -> str:
    """The line of a keys file that lets a key in under a name."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"key name {name!r} must have 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return f"{name} {hash_key(key)}"


@dataclass(frozen=True)
class _Key:
    name: str
    hashed: bytes


def parse_keys(text: str, origin: str) -> tuple[_Key, ...]:
    """The keys of a file's text; `origin` names it in errors."""
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        entries = () if line.lstrip().startswith("#") else line.split(",")
        for words in filter(None, map(str.split, entries)):
            if len(words) != 2 or _NAME.fullmatch(words[0]) is None or _HASH.fullmatch(words[1]) is None:
                # The line is not shown: it may hold a key in clear.
                raise ConfigError(f"{origin}, line {number}: write `name sha256:<64 hex digits>`, as key_line gives it")
            keys.append(_Key(words[0], words[1].encode()))
    return tuple(keys)


class KeyRing:
    """The keys that are let in, read again when their file changes."""

    def __init__(
        self, file: str = "", env: str = "", reload_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = Path(file) if file else None
        self._reload_s = reload_s
        self._clock = clock
        self._from_env: tuple[_Key, ...] = ()
        if env:
            if not os.environ.get(env, "").strip():
                raise ConfigError(f"api_keys_env names {env}, which is not set; set it to lines of `name sha256:<hex>`")
            self._from_env = parse_keys(os.environ[env], f"the environment variable {env}")
        self._from_file: tuple[_Key, ...] = ()
        self._stamp: tuple[int, int, int] | None = None
        self._looked_s = clock()
        if self._file is not None:
            self._stamp = self._look(self._file)
            self._from_file = self._read(self._file)
        if (file or env) and not self._keys:
            raise ConfigError("the places of API keys hold none, so nobody could ask; add one with key_line")

    @property
    def is_open(self) -> bool:
        """Whether callers need no key."""
        return self._file is None and not self._from_env

    @property
    def _keys(self) -> tuple[_Key, ...]:
        return (*self._from_env, *self._from_file)

    def verify(self, key: str | None) -> str:
        """The name of a key; the time it takes does not depend on which key is right, or how much of it."""
        if self.is_open:
            return ""
        self._refresh()
        if not key or len(key) > _MAX_KEY_CHARS:
            raise Unauthenticated("no key was given; send it as `Authorization: Bearer <key>` or `x-api-key: <key>`")
        hashed = hash_key(key).encode()
        found = ""
        for known in self._keys:
            if hmac.compare_digest(known.hashed, hashed):
                found = known.name
        if not found:
            raise Unauthenticated("the key is not known here; check it, or ask for one")
        return found

    def reload(self) -> None:
        """Read the file now."""
        if self._file is not None:
            self._stamp = self._look(self._file)
            self._from_file = self._read(self._file)

    def _refresh(self) -> None:
        now = self._clock()
        if self._file is None or now - self._looked_s < self._reload_s:
            return
        self._looked_s = now
        try:
            if self._look(self._file) != self._stamp:
                self.reload()
                log.info("API keys read again", extra={"num_keys": len(self._keys)})
        except ConfigError as error:
            # Half a file, or none for a moment: those who were let in stay in.
            log.error("API keys could not be read again; the former ones stay valid: %s", error)

    def _look(self, file: Path) -> tuple[int, int, int]:
        try:
            found = file.stat()
        except OSError as error:
            raise ConfigError(f"cannot read the API keys in {file}: {error.strerror or error}") from error
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self, file: Path) -> tuple[_Key, ...]:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the API keys in {file}: {error}") from error
        return parse_keys(text, str(file))
