"""How near a wrong name is to the known ones."""

import difflib
from collections.abc import Collection


def num_edits(one: str, other: str) -> int:
    """Letters to insert, drop, replace, or swap with their neighbour to make one word the other, small or capital."""
    one, other = one.lower(), other.lower()
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
        costs[other] = num_edits(name, other)
        least = min(least, costs[other])
    found = (other for other, cost in costs.items() if cost == least)
    return tuple(sorted(found, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio()))
