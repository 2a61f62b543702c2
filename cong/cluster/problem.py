"""One thing that is wrong in a file, and how near a wrong name is to a known one."""

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Where something is wrong, and what would be right."""

    path: str
    """Dotted, with numbers for places in lists; empty = the file as a whole."""
    message: str
    """A whole sentence that names the place itself."""

    def __str__(self) -> str:
        return self.message


def joined(path: str, key: str | int) -> str:
    """The path of an entry."""
    return f"{path}.{key}" if path else str(key)


def num_edits(one: str, other: str) -> int:
    """Letters to insert, drop, replace, or swap with their neighbour to make one word the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def nearest(name: str, known: Collection[str]) -> tuple[str, ...]:
    """The known names that take the fewest edits, likest first; empty where none is known."""
    costs: dict[str, int] = {}
    least = len(name) + max(map(len, known), default=0)
    # Names of other lengths need at least as many edits as their lengths differ, so most are never compared.
    for other in sorted(known, key=lambda other: abs(len(other) - len(name))):
        if abs(len(other) - len(name)) > least:
            break
        costs[other] = num_edits(name.lower(), other.lower())
        least = min(least, costs[other])
    found = (other for other, cost in costs.items() if cost == least)
    return tuple(sorted(found, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio()))


def near_misses(name: str, known: Collection[str]) -> tuple[str, ...]:
    """The known names that were most likely meant by one that is not known; empty where it is a name of its own."""
    if name in known:
        return ()
    found = nearest(name, known)
    return found if found and num_edits(name.lower(), found[0].lower()) <= (1 if len(name) < 8 else 2) else ()


def offered(names: Iterable[str], path: str = "") -> str:
    """The end of a message about an unknown name."""
    places = [repr(joined(path, name)) for name in names]
    return f"the nearest known one is {' or '.join(places)}"
