"""Where examples come from, behind one small protocol, and the source whose examples are all known at the start.

A source decides which examples come next and says where it stands in one line of text. What comes next depends on that
line alone, never on ranks or clocks. Knows no batches of tensors.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cong.errors import CheckpointError
from cong.stream.cursor import window_order
from cong.train.data.batch import Example


@dataclass(frozen=True)
class Drawn:
    """Which examples come next: the same for every rank, and small enough to send."""

    text: str
    """What `fetch` reads."""
    position: str
    """Where the source stands behind them."""

    def to_json(self) -> str:
        """As one text."""
        return json.dumps([self.text, self.position])

    @classmethod
    def from_json(cls, text: str) -> "Drawn":
        """What `to_json` wrote."""
        return cls(*json.loads(text))


class Source(Protocol):
    """Examples in a definite order, from a position on."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What it takes from where: two runs over the same data in the same order have the same."""
        ...

    @property
    def num_examples(self) -> int | None:
        """Examples of one epoch; None = it grows, and nobody has said how far."""
        ...

    @property
    def is_growing(self) -> bool:
        """Whether more may come while it is read."""
        ...

    @property
    def num_epochs(self) -> int:
        """How often it is read."""
        ...

    @property
    def position(self) -> str:
        """Where it stands, for a checkpoint."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """What was found and left out on the way to examples, by name."""
        ...

    def seek(self, position: str) -> None:
        """Go on from a position that this source, or one like it, gave."""
        ...

    def draw(self, num_examples: int) -> Drawn | None:
        """The next examples, fewer only at the end of an epoch; None at the end of all."""
        ...

    def fetch(self, drawn: Drawn) -> list[Example]:
        """The examples of a draw, on any rank."""
        ...

    def scan(self, num_examples: int) -> Iterator[list[Example]]:
        """Every example of one epoch, so many at once, without moving; not for a source that grows."""
        ...


class ExampleList:
    """Examples that are all in memory, read in an order drawn from a seed, another one in each epoch."""

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        num_epochs: int = 1,
        seed: int | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self._examples = list(examples)
        self._seed = seed
        self.num_epochs = num_epochs
        self.counts = dict(counts or {})
        self._epoch = 0
        self._offset = 0
        self._content = _digest(self._examples)

    @property
    def identity(self) -> Mapping[str, Any]:
        """A digest of every token, and the seed of the order."""
        return {"content": self._content, "order_seed": self._seed}

    @property
    def num_examples(self) -> int | None:
        """All of them."""
        return len(self._examples)

    @property
    def is_growing(self) -> bool:
        """No: all of them are here."""
        return False

    @property
    def position(self) -> str:
        """Epoch and place in its order."""
        return json.dumps({"epoch": self._epoch, "offset": self._offset})

    def seek(self, position: str) -> None:
        """Go on from there."""
        try:
            content = json.loads(position)
            self._epoch, self._offset = int(content["epoch"]), int(content["offset"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{position!r} is no position in a list of examples: {error}") from error

    def draw(self, num_examples: int) -> Drawn | None:
        """The next places of the epoch's order."""
        if self._offset >= len(self._examples):
            self._epoch, self._offset = self._epoch + 1, 0
        if self._epoch >= self.num_epochs or not self._examples:
            return None
        order = window_order(len(self._examples), self._seed or 0, self._epoch, self._seed is not None)
        places = order[self._offset : self._offset + num_examples].tolist()
        self._offset += len(places)
        return Drawn(json.dumps(places), self.position)

    def fetch(self, drawn: Drawn) -> list[Example]:
        """The examples at those places."""
        return [self._examples[place] for place in json.loads(drawn.text)]

    def scan(self, num_examples: int) -> Iterator[list[Example]]:
        """All of them as they were given."""
        for start in range(0, len(self._examples), num_examples):
            yield self._examples[start : start + num_examples]


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.key}\0{example.weight!r}\0".encode() + example.prompt_ids.tobytes())
        for response in example.responses:
            digest.update(b"\0" + len(response).to_bytes(4, "little") + response.tobytes())
    return digest.hexdigest()[:40]
