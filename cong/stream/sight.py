"""What a writer sees of its stream: which keys are stored, as of its last look, and that what it sees cannot vanish.

Knows no lane and no lock: whoever shares it between threads has one.
"""

import time

from cong.stream.index import KeyIndex, Place, index_cache
from cong.stream.keys import KeyDigests
from cong.stream.listing import Listing, list_stream
from cong.stream.names import SegmentName
from cong.stream.store import Store


class Sight:
    """A stream as it was when it was last looked at, and what its writer has added since."""

    def __init__(self, store: Store, stream: str, cache_dir: str, relist_s: float) -> None:
        """`relist_s`: how old a look may be where others' keys are looked for."""
        self._store = store
        self._relist_s = relist_s
        self._index = KeyIndex(store, stream, index_cache(store, cache_dir))
        self._settled: set[SegmentName] = set()
        """Segments in sight whose names are durable."""
        self.listing = Listing({}, [], [])
        self._looked_at_s = 0.0
        store.settle()  # of folders that another process made a moment ago
        self.look()

    def look(self) -> None:
        """See the stream as it is now, with its keys known and its names durable.

        Whoever hands in a key that is there already is told that it is stored, so what is in sight must not vanish.
        """
        looked_at_s = time.monotonic()
        listing = list_stream(self._store, self.listing.gaps)
        in_sight = {*listing.segments}
        if not in_sight <= self._settled:
            self._store.settle()
        self._settled = in_sight
        self._index.refresh(listing)
        self.listing, self._looked_at_s = listing, looked_at_s

    def look_if_old(self) -> bool:
        """Look again where others may have stored something since; whether that was so."""
        is_old = time.monotonic() - self._looked_at_s >= self._relist_s
        if is_old:
            self.look()
        return is_old

    def find(self, key: str, digest: bytes | None = None) -> Place | None:
        """Where a key lies, as far as it is known; its digest saves making it again."""
        return self._index.find(key, digest)

    def add(self, name: SegmentName, digests: KeyDigests) -> None:
        """Take in a segment that its writer has just published, and so made durable."""
        self._settled.add(name)
        self._index.add(name.lane, name.first_row, digests)
