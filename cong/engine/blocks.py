"""Accounting of key-value blocks: who holds which, which are free, and which hold a known prefix.

A block is a number. The same number means the same place in every network's pool, so K networks stay in lockstep by
construction. Knows nothing of tensors, networks or requests.
"""

import hashlib
import heapq
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field

PrefixKey = bytes
"""Names the tokens of a block and of all blocks before it."""


def prefix_keys(token_ids: Ordered[int], block_size: int) -> list[PrefixKey]:
    """One key per full block of a token sequence; equal keys mean equal tokens from the start.

    Whoever chooses tokens must not be able to find others with the same key, and so read another's blocks: the keys
    are a chain of cryptographic digests.
    """
    keys: list[PrefixKey] = []
    parent = b""
    tokens = array("q", token_ids)
    for start in range(0, len(tokens) - block_size + 1, block_size):
        parent = hashlib.sha256(parent + tokens[start : start + block_size].tobytes()).digest()
        keys.append(parent)
    return keys


@dataclass
class BlockPool:
    """Reference-counted blocks. A block nobody holds keeps its prefix until it is needed for something else."""

    num_blocks: int
    block_size: int
    cached_share: float = 1.0
    """Share of all blocks that may keep a prefix which nobody holds; beyond it, a quarter as many as are held."""
    num_hits: int = 0
    """Blocks that were shared instead of computed."""
    _counts: list[int] = field(init=False)
    _blank: list[int] = field(init=False)
    _cached: OrderedDict[int, None] = field(init=False, default_factory=OrderedDict)
    _block_of: dict[PrefixKey, int] = field(init=False, default_factory=dict)
    _key_of: dict[int, PrefixKey] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._counts = [0] * self.num_blocks
        self._blank = list(range(self.num_blocks))  # a heap: low numbers first keep the used region compact

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._blank) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.num_free

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def match(self, keys: Ordered[PrefixKey]) -> list[int]:
        """The longest run of blocks that already hold these prefixes, none of them acquired yet."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_free_of(self, blocks: Ordered[int]) -> int:
        """How many of these blocks count as free now, and would no longer once acquired."""
        return sum(self._counts[block] == 0 for block in blocks)

    def acquire(self, blocks: Ordered[int]) -> None:
        """Hold blocks that `match` found, together with whoever else holds them."""
        for block in blocks:
            if self._counts[block] == 0:
                del self._cached[block]
            self._counts[block] += 1
        self.num_hits += len(blocks)

    def allocate(self, count: int) -> list[int]:
        """Hold so many blocks of unknown content; the caller has checked `num_free`."""
        assert count <= self.num_free, f"{count} blocks asked, {self.num_free} free"
        blocks = []
        for _ in range(count):
            if not self._blank:
                self._evict()
            block = heapq.heappop(self._blank)
            self._counts[block] = 1
            blocks.append(block)
        return blocks

    def publish(self, block: int, key: PrefixKey) -> None:
        """Say what a held block will hold once this step has run, so that others can share it."""
        assert self._counts[block] > 0, "only a held block can be published"
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Ordered[int]) -> None:
        """Let go of blocks; the last holder of a published block leaves it cached."""
        for block in reversed(blocks):
            assert self._counts[block] > 0, f"block {block} is released more often than it was acquired"
            self._counts[block] -= 1
            if self._counts[block] == 0:
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    heapq.heappush(self._blank, block)
        while len(self._cached) > max(self.cached_share * self.num_blocks, self.num_used / 4):
            self._evict()

    def forget(self, blocks: Ordered[int]) -> None:
        """Let nobody else share these held blocks from now on."""
        for block in blocks:
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._block_of[key]

    def _evict(self) -> None:
        """Forget the longest unused prefix."""
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        heapq.heappush(self._blank, block)

    def check(self, held: Ordered[Ordered[int]]) -> None:
        """Assert that the accounts are right, given the blocks every holder says it holds; for tests."""
        counts = [0] * self.num_blocks
        for blocks in held:
            assert len(set(blocks)) == len(blocks), "a holder holds a block twice"
            for block in blocks:
                counts[block] += 1
        assert counts == self._counts, "reference counts differ from what holders hold"
        free = sorted([*self._blank, *self._cached])
        assert free == [block for block, count in enumerate(counts) if count == 0], "free list differs from counts"
        assert {block: key for key, block in self._block_of.items()} == self._key_of, "prefix maps differ"
