"""One thing that is wrong in a file, and what was meant by a name that is nearly a known one."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cong.config.spelling import nearest, num_edits


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


def near_misses(name: str, known: Collection[str]) -> tuple[str, ...]:
    """The known names that were most likely meant by one that is not known; empty where it is a name of its own."""
    if name in known:
        return ()
    found = nearest(name, known)
    return found if found and num_edits(name, found[0]) <= (1 if len(name) < 8 else 2) else ()


def offered(names: Iterable[str], path: str = "") -> str:
    """The end of a message about an unknown name."""
    places = [repr(joined(path, name)) for name in names]
    return f"the nearest known one is {' or '.join(places)}"
