"""Records that come in any order, handed on in the order in which they are wanted.

A stream that is written so is the same whatever finishes first and however often its writer was killed: that is what
lets a trainer follow it and find what it would find later. Knows no engine and no stream.
"""

from collections.abc import Callable, Sequence

from cong.schemas import SampleRecord

Place = tuple[str, int]
"""Prompt id and sample index."""


def place_of(record: SampleRecord) -> Place:
    """What a record answers."""
    return record.prompt.prompt_id, record.sample_index


class InOrder:
    """Holds records back until all before them have been handed on."""

    def __init__(self, wanted: Sequence[Place], hand_on: Callable[[SampleRecord], None]) -> None:
        self._wanted = wanted
        self._hand_on = hand_on
        self._next = 0
        self._held: dict[Place, SampleRecord] = {}
        self._given_up: set[Place] = set()

    @property
    def num_held(self) -> int:
        """Records that wait for others; a kill loses them."""
        return len(self._held)

    @property
    def awaited(self) -> Place | None:
        """Which place is next; None behind the last."""
        return self._wanted[self._next] if self._next < len(self._wanted) else None

    def put(self, record: SampleRecord) -> None:
        """Take a record, and hand on what is due; one that comes where nothing was to come is left."""
        if place_of(record) not in self._given_up:
            self._held[place_of(record)] = record
            self._advance()

    def give_up(self, place: Place) -> None:
        """Nothing will come there."""
        self._given_up.add(place)
        self._advance()

    def _advance(self) -> None:
        while (place := self.awaited) is not None:
            record = self._held.pop(place, None)
            if record is not None:
                self._hand_on(record)
            elif place not in self._given_up:
                return
            self._next += 1
