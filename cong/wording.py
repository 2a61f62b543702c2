"""What others have found, in our words: causes that pydantic names, and errors of the system that are nobody's bug.

Imports nothing of theirs: it takes what they say.
"""

import errno
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cong.errors import MachineRefusal, MissingExtra

_ROOM = "make room, and run the same command again"
_PLACE = "check the path"
_RIGHTS = "give a place that may be used, or the rights to it"
_OURS = ("", "cong", "serve", "jobs")
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP), _PLACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS),
    errno.EIO: "look at the disk",
}


def of_the_machine(error: OSError) -> str | None:
    """A full disk, a wrong place or missing rights, with the remedy; None for what may be a fault of ours."""
    is_told = error.errno in _REMEDIES and (error.filename is not None or _REMEDIES[error.errno] == _ROOM)
    return f"{error.filename or 'a file'} cannot be used: {with_remedy(error)}" if is_told else None


@contextmanager
def told_by_the_machine() -> Iterator[None]:
    """Around a whole command: what the machine refuses becomes an error of ours, which commands tell on one line."""
    try:
        yield
    except OSError as error:
        problem = of_the_machine(error)
        if problem is None:
            raise
        raise MachineRefusal(problem) from error


@contextmanager
def brought_by(extra: str) -> Iterator[None]:
    """Around imports: a package that is not installed is told with the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OURS:
            raise
        raise MissingExtra(extra, package) from error


def require_installed(extra: str, *packages: str) -> None:
    """Refuse at once what would otherwise fail hours later, when the first of these packages is imported."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(extra, package)


def with_remedy(error: OSError) -> str:
    """What the system says, and what helps where that is known."""
    said = str(error.strerror or error)
    # What is not there may be a fault of ours, but whoever tells of it here knows whose path it was.
    remedy = _PLACE if error.errno == errno.ENOENT else _REMEDIES.get(error.errno or 0)
    return f"{said}; {remedy}" if remedy else said


_CONSEQUENCE = "default_factory_not_called"
_TAGS = ("constrained-", "function-", "tuple[", "list[", "dict[", "nullable[", "lax-or-strict[", "json-or-python[")
"""How pydantic's names of the branches of a union begin; they are no names of fields."""
_WORDS = (
    ("Value error, ", ""),
    ("Extra inputs are not permitted", "is not known here"),
    (" after validation", ""),
    (" or object to extract fields from", ""),
    ("a valid boolean, unable to interpret input", "true or false"),
    ("a valid boolean", "true or false"),
    ("Tuple should", "It should"),
    ("a valid tuple", "a valid list"),
    (", unable to parse raw data as a unicode string", " of whole characters; it holds half of a surrogate pair"),
)


def causes(problems: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What pydantic found (`errors()`) as dotted names and words: the causes alone, not what follows from them."""
    listed = [one for one in problems if one["type"] != _CONSEQUENCE]
    places = [tuple(one["loc"]) for one in listed]
    told: dict[str, list[str]] = {}
    for one, place in zip(listed, places, strict=True):
        # Where entries of a list are wrong themselves, the list seems to lack them.
        if one["type"] == "too_short" and any(len(at) > len(place) and at[: len(place)] == place for at in places):
            continue
        name = ".".join(str(part) for part in place if not str(part).startswith(_TAGS))
        words = str(one["msg"]).partition(" or instance of ")[0]
        for theirs, ours in _WORDS:
            words = words.replace(theirs, ours)
        told.setdefault(name, []).append(words)
    return [(name, ", or: ".join(dict.fromkeys(words))) for name, words in told.items()]


def first_cause(problems: Iterable[Mapping[str, Any]], fallback: str) -> tuple[str, str]:
    """The first cause; `fallback` names what has no name."""
    name, words = causes(problems)[0]
    return name or fallback, words
