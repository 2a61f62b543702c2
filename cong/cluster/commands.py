"""Shell commands of a cluster file: which flags and variables they give to what."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

_ASSIGNMENT = re.compile(r"^(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>.*)$", re.DOTALL)
_SEPARATORS = (";", "&&", "||", "|", "&")


def words(command: str) -> list[str]:
    """A command line as its words; separators are words of their own. Unbalanced quotes give the text as one word."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return list(lexer)
    except ValueError:
        return [command]


def parts(command: str) -> Iterator[list[str]]:
    """The commands that a line chains."""
    part: list[str] = []
    for word in words(command):
        if word in _SEPARATORS:
            if part:
                yield part
            part = []
        else:
            part.append(word)
    if part:
        yield part


def flags_of(command: str, *program: str) -> dict[str, str] | None:
    """`--flag=value` and `--flag value` of a program that a line starts, after any assignments; None if it does not."""
    for part in parts(command):
        rest = list(part)
        while rest and _ASSIGNMENT.match(rest[0]):
            rest.pop(0)
        if tuple(rest[: len(program)]) != program:
            continue
        flags: dict[str, str] = {}
        rest = rest[len(program) :]
        for place, word in enumerate(rest):
            if word.startswith("--"):
                name, equals, value = word.partition("=")
                after = rest[place + 1] if place + 1 < len(rest) else ""
                flags[name] = value if equals else ("" if after.startswith("-") else after)
        return flags
    return None


def variables_of(command: str) -> dict[str, str]:
    """Environment variables that a line sets or exports."""
    found: dict[str, str] = {}
    for part in parts(command):
        for word in part[1:] if part[0] == "export" else part:
            match = _ASSIGNMENT.match(word)
            if match is None:
                break
            found[match["name"]] = match["value"]
    return found


def docker_variables(options: Iterable[str]) -> dict[str, str]:
    """Environment variables among options of `docker run`."""
    given = [word for option in options for word in words(option)]
    found: dict[str, str] = {}
    for place, word in enumerate(given):
        after = given[place + 1] if place + 1 < len(given) else ""
        text = after if word in ("-e", "--env") else word.removeprefix("--env=") if word.startswith("--env=") else ""
        name, equals, value = text.partition("=")
        if equals:
            found[name] = value
    return found


def published_ports(options: Iterable[str]) -> Sequence[str]:
    """What `docker run` publishes to the network."""
    given = [word for option in options for word in words(option)]
    found = [word.removeprefix("--publish=") for word in given if word.startswith("--publish=")]
    found += [given[place + 1] for place, word in enumerate(given[:-1]) if word in ("-p", "--publish")]
    return found + [word for word in given if word in ("-P", "--publish-all")]
