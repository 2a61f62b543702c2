"""A stream's own name, made once by whoever comes first, so that a cursor is never used on another stream."""

import hashlib
import json
import secrets

from cong.errors import StreamCorrupt, StreamError
from cong.stream.names import IDENTITY
from cong.stream.store import Store

_MAX_BYTES = 4096


def _encode(stream: str) -> bytes:
    check = hashlib.sha256(f"cong stream 1 {stream}".encode()).hexdigest()[:16]
    return json.dumps({"format": 1, "stream": stream, "check": check}, indent=1).encode() + b"\n"


def read_identity(store: Store) -> str | None:
    """The stream's name; None where there is no stream yet."""
    try:
        content = store.read(IDENTITY, 0, _MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        stream = str(json.loads(content)["stream"])
    except (ValueError, KeyError, TypeError):
        stream = ""
    if not stream or _encode(stream) != content:
        raise StreamCorrupt(f"{store.location}/{IDENTITY} is not what was written; restore it from a copy")
    return stream


def require_identity(store: Store) -> str:
    """The stream's name; an error where there is none."""
    stream = read_identity(store)
    if stream is None:
        raise StreamError(f"{store.location} holds no stream; check the place. A writer makes a stream when it opens")
    return stream


def ensure_identity(store: Store) -> str:
    """The stream's name, given now if it has none."""
    found = read_identity(store)
    if found is not None:
        return found
    store.prepare()
    store.create(IDENTITY, _encode(secrets.token_hex(8)))
    return require_identity(store)
