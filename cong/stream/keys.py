"""What the index and the segments know of a key: a digest of fixed width."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

KEY_BYTES = 12
"""Of a key's digest: two of 10 million keys collide with probability 1e-15."""

KeyDigests = npt.NDArray[np.uint8]
"""Shape [rows, KEY_BYTES]."""


def key_digest(key: str) -> bytes:
    """The digest of a key."""
    return hashlib.blake2b(key.encode(), digest_size=KEY_BYTES).digest()


def joined_digests(digests: Sequence[bytes]) -> KeyDigests:
    """Many digests, one row each."""
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, KEY_BYTES)


def key_digests(keys: Sequence[str]) -> KeyDigests:
    """Digests of many keys, one row each."""
    return joined_digests([key_digest(key) for key in keys])
