"""The shape of a file: which keys it may have at every level, and what may stand behind each.

A shape is read from a YAML file that looks like what it describes. Behind a key stands a mapping, a list with the
shape of its members, or a word: text, whole (0 or more), integer, number (0 or more), truth, quantity (text or number),
any, null, or the words that are allowed; several are separated by |. $name is another shape.
`key!` must be given, `*` stands for names that the user chooses, and {"[]": x} is x or a list of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cong.cluster.problem import Problem, joined, near_misses, offered
from cong.config.spelling import nearest, num_edits

_KINDS = {
    "text": "text",
    "whole": "a whole number, 0 or more",
    "integer": "a whole number",
    "number": "a number, 0 or more",
    "truth": "true or false",
    "quantity": "a number or text",
    "any": "anything",
}
_MAX_SHOWN_CHARS = 60
_MAX_LISTED_KEYS = 12


@dataclass(frozen=True)
class Word:
    """A single value."""

    kinds: frozenset[str]
    choices: tuple[str, ...]
    is_nullable: bool

    def allows(self, value: Any) -> bool:
        """Whether a value fits."""
        if value is None:
            return self.is_nullable or "any" in self.kinds
        if isinstance(value, str):
            return value in self.choices or bool(self.kinds & {"text", "quantity", "any"})
        if isinstance(value, bool):
            return bool(self.kinds & {"truth", "any"})
        if isinstance(value, int):
            signed = {"integer", "quantity", "any"}
            return bool(self.kinds & (signed | {"whole", "number"} if value >= 0 else signed))
        if isinstance(value, float):
            return bool(self.kinds & {"quantity", "any"}) or ("number" in self.kinds and value >= 0)
        return "any" in self.kinds

    def wanted(self) -> str:
        """What is allowed, in words."""
        parts = [*map(repr, self.choices), *(_KINDS[kind] for kind in sorted(self.kinds))]
        return " or ".join([*parts, *(["null"] if self.is_nullable else [])])


@dataclass(frozen=True)
class Members:
    """A list."""

    of: "Shape"
    may_be_one: bool = False
    """A member may stand alone, without its list."""


@dataclass(frozen=True)
class Keys:
    """A mapping."""

    known: Mapping[str, "Shape"]
    required: frozenset[str]
    others: "Shape | None"
    """Behind names that the user chooses; None = there are none."""


@dataclass(frozen=True)
class Reference:
    """A shape that stands elsewhere under a name."""

    name: str


Shape = Word | Members | Keys | Reference


def _parse(source: Any) -> Shape:
    if isinstance(source, list):
        (member,) = source
        return Members(_parse(member))
    if isinstance(source, dict):
        if set(source) == {"[]"}:
            return Members(_parse(source["[]"]), may_be_one=True)
        known = {key.removesuffix("!"): _parse(value) for key, value in source.items() if key != "*"}
        required = frozenset(key.removesuffix("!") for key in source if key.endswith("!"))
        return Keys(known, required, _parse(source["*"]) if "*" in source else None)
    assert isinstance(source, str), f"a shape is made of words, not {source!r}"
    if source.startswith("$"):
        return Reference(source.removeprefix("$"))
    words = source.split("|")
    choices = tuple(word for word in words if word not in _KINDS and word != "null")
    return Word(frozenset(words) & frozenset(_KINDS), choices, is_nullable="null" in words)


@cache
def _library() -> dict[str, Shape]:
    """Every shape of the files beside this one, by name."""
    shapes: dict[str, Shape] = {}
    for file in (files("cong.cluster") / "shapes").iterdir():
        if file.name.endswith(".yaml"):
            for name, source in yaml.safe_load(file.read_text(encoding="utf-8")).items():
                assert name not in shapes, f"{file.name}: {name} is there already"
                shapes[name] = _parse(source)
    return shapes


def shape_names() -> set[str]:
    """The names of all shapes."""
    return set(_library())


def shape_of(name: str) -> Shape:
    """A shape by its name."""
    return _library()[name]


def resolved(shape: Shape, bindings: Mapping[str, str]) -> Shape:
    """The shape that a reference leads to; `bindings` say which one stands for an open name such as `provider`."""
    while isinstance(shape, Reference):
        shape = shape_of(bindings.get(shape.name, shape.name))
    return shape


def known_keys(name: str) -> set[str]:
    """The keys of a mapping by its name."""
    shape = shape_of(name)
    assert isinstance(shape, Keys), f"{name} is no mapping"
    return set(shape.known)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 1] + "…"


class Fit:
    """The comparison of some content with a shape."""

    def __init__(self, shape: Shape, bindings: Mapping[str, str] | None = None) -> None:
        self._shape = shape
        self._bindings = bindings or {}

    def problems(self, content: Any, path: str = "") -> Iterator[Problem]:
        """What does not fit, in the order of the file."""
        yield from self._check(self._shape, content, path)

    def _check(self, shape: Shape, content: Any, path: str) -> Iterator[Problem]:
        shape = resolved(shape, self._bindings)
        if isinstance(shape, Word):
            if not shape.allows(content):
                hint = "; put it in quotes" if "text" in shape.kinds and isinstance(content, int | float) else ""
                yield Problem(path, f"{path} is {_shown(content)}: it must be {shape.wanted()}{hint}")
        elif isinstance(shape, Members):
            members = [content] if shape.may_be_one and isinstance(content, dict) else content
            if not isinstance(members, list):
                yield Problem(path, f"{path} is {_shown(content)}: it must be a list")
                return
            for number, member in enumerate(members):
                yield from self._check(shape.of, member, joined(path, number) if members is content else path)
        elif isinstance(shape, Keys):
            if not isinstance(content, dict):
                yield Problem(path, f"{path or 'the file'} is {_shown(content)}: it must be a mapping of keys")
                return
            yield from self._check_keys(shape, content, path)

    def _check_keys(self, shape: Keys, content: dict[Any, Any], path: str) -> Iterator[Problem]:
        for key, value in content.items():
            name, place = str(key), joined(path, key)
            meant = near_misses(name, set(shape.known)) if shape.others is not None else ()
            if name in shape.known:
                yield from self._check(shape.known[name], value, place)
            elif shape.others is None or meant:
                yield Problem(place, f"unknown key {place!r}; {self._advice(shape, name, path)}")
            else:
                yield from self._check(shape.others, value, place)
        for name in sorted(shape.required - set(content)):
            yield Problem(joined(path, name), f"{joined(path, name)} is missing")

    def _advice(self, shape: Keys, name: str, path: str) -> str:
        near = nearest(name, shape.known)
        if near and num_edits(name, near[0]) <= max(2, len(name) // 2):
            return offered(near, path)
        places = list(self._places(self._shape, name, "", frozenset()))
        if places:
            return f"it belongs at {places[0]!r}"
        listed = sorted(shape.known)
        more = ", ..." if len(listed) > _MAX_LISTED_KEYS else ""
        return f"known there: {', '.join(listed[:_MAX_LISTED_KEYS])}{more}"

    def _places(self, shape: Shape, name: str, path: str, above: frozenset[str]) -> Iterator[str]:
        """Paths at which a key is known; `above` keeps shapes that contain themselves from being followed for ever."""
        if isinstance(shape, Reference):
            if shape.name in above:
                return
            above = above | {shape.name}
        shape = resolved(shape, self._bindings)
        if isinstance(shape, Members):
            yield from self._places(shape.of, name, joined(path, 0), above)
        elif isinstance(shape, Keys):
            if name in shape.known:
                yield joined(path, name)
            for key, inner in shape.known.items():
                yield from self._places(inner, name, joined(path, key), above)
            if shape.others is not None:
                yield from self._places(shape.others, name, joined(path, "*"), above)
