"""Files and overrides to one checked configuration, and back to text.

A wrong setting is reported with its dotted name, its value, and for an unknown key the nearest known one; all wrong
settings of a file are reported at once.
"""

import difflib
import itertools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cong.config.spelling import nearest, num_edits
from cong.errors import ConfigError
from cong.wording import causes

Model = TypeVar("Model", bound=BaseModel)


_MAX_VALUE_CHARS = 200


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, and reads 1e-4 as the number it looks like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(f"key {key!r} is given twice (line {key_node.start_mark.line + 1}); keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-4 for text because it has no point.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_text(path: Path) -> str:
    """The text of a file that a user has named."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    found = parse_documents(read_text(path), str(path))
    if len(found) > 1:
        raise ConfigError(f"{path} holds {len(found)} documents; a configuration is one")
    content = found[0] if found else None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; a configuration is a mapping of sections")
    return content


def parse_documents(text: str, origin: str) -> list[Any]:
    """The documents of a YAML text; `origin` names it in errors."""
    try:
        return list(yaml.load_all(text, Loader=_StrictLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{origin} is not YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error


def parse_override(assignment: str) -> tuple[list[str], Any]:
    """`a.b=c` as its path and its value, the value read as YAML."""
    name, equals, text = assignment.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {assignment!r}: write it as section.key=value")
    try:
        return path, yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--set {assignment!r}: the value is not YAML: {error}") from error


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One content over another, key by key within sections."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    nested: dict[str, Any] = value
    return nested


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _keys_of(model: type[BaseModel]) -> tuple[str, ...]:
    """What a section may be given: its fields, and what it reads into them (`INPUT_KEYS`), such as alpha."""
    return (*model.model_fields, *getattr(model, "INPUT_KEYS", ()))


def _known_keys(model: type[BaseModel], path: Sequence[str | int]) -> dict[str, str]:
    """Keys that are allowed at `path`, each with its dotted name."""
    models = [model]
    for key in path:
        fields = [m.model_fields[key] for m in models if isinstance(key, str) and key in m.model_fields]
        if fields:
            models = [m for field in fields for m in _models_in(field.annotation)]
    prefix = ".".join(str(key) for key in path)
    return {name: f"{prefix}.{name}" if prefix else name for m in models for name in _keys_of(m)}


def _all_keys(model: type[BaseModel], prefix: str = "") -> dict[str, list[str]]:
    """Every key of the tree below a model: name -> dotted names."""
    found: dict[str, list[str]] = {}
    for name in _keys_of(model):
        dotted = f"{prefix}.{name}" if prefix else name
        found.setdefault(name, []).append(dotted)
        if name not in model.model_fields:
            continue
        for inner in _models_in(model.model_fields[name].annotation):
            for key, places in _all_keys(inner, dotted).items():
                found.setdefault(key, []).extend(places)
    return found


def _likeliest(places: Sequence[str], path: Sequence[str | int]) -> str:
    """Of the places of one key: in the section where it was looked for, else the least deep."""

    def unlikeliness(place: str) -> tuple[int, int]:
        alike = (one == other for one, other in zip(place.split("."), map(str, path), strict=False))
        return -sum(itertools.takewhile(bool, alike)), place.count(".")

    return min(places, key=unlikeliness)


def _nearest(model: type[BaseModel], path: Sequence[str | int]) -> str:
    """The known key that an unknown one was most likely meant to be: in its section first, then anywhere."""
    wrong = str(path[-1])
    here = _known_keys(model, path[:-1])
    elsewhere = _all_keys(model)
    near = nearest(wrong, here)
    num_wrong = num_edits(wrong, near[0]) if near else len(wrong)
    # One letter off is a slip; a whole key of another section stands in the wrong place.
    if num_wrong > 1 and wrong in elsewhere:
        return _likeliest(elsewhere[wrong], path)
    if num_wrong <= max(1, len(wrong) // 2):
        return here[near[0]]
    close = difflib.get_close_matches(wrong, elsewhere, n=1, cutoff=0.6) or difflib.get_close_matches(
        wrong, here, n=1, cutoff=0.0
    )
    return here.get(close[0]) or _likeliest(elsewhere[close[0]], path) if close else "none: this section takes no keys"


def _describe(model: type[BaseModel], error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        path = problem["loc"]
        name = ".".join(str(key) for key in path)
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {name!r}; the nearest known one is {_nearest(model, path)!r}")
            continue
        value = _shown(problem["input"], problem["type"])
        given = problem["input"]
        is_misread = problem["type"] == "string_type" and isinstance(given, int | float | date)
        remedy = f"""; YAML reads text so only in quotes: '"{given}"'""" if is_misread else ""
        lines += [f"{name or 'configuration'}{value}: {words}{remedy}" for _, words in causes([problem])]
    return lines


def _shown(value: object, problem: str) -> str:
    """A long section whose settings contradict each other would bury the words that name them."""
    text = repr(value)
    if len(text) <= _MAX_VALUE_CHARS:
        return f" is {text}"
    return "" if problem == "value_error" and isinstance(value, Mapping) else f" is {text[:_MAX_VALUE_CHARS]}…"


def check(model: type[Model], content: Mapping[str, Any], origin: str) -> Model:
    """The content as a checked model; `origin` names it in errors."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = _describe(model, error)
        raise ConfigError("\n  ".join([f"{origin}: {len(lines)} wrong setting(s)", *lines])) from error


def load_config(model: type[Model], paths: Iterable[Path] = (), overrides: Iterable[str] = ()) -> Model:
    """The configuration that files give, later ones over earlier, then overrides over all."""
    content: dict[str, Any] = {}
    origins = []
    for path in paths:
        content = merge(content, read_yaml(path))
        origins.append(str(path))
    given = list(overrides)
    for assignment in given:
        content = merge(content, _nested(*parse_override(assignment)))
    origins += [f"--set {assignment}" for assignment in given] if len(given) < 3 else [f"{len(given)} times --set"]
    return check(model, content, " + ".join(origins) or "defaults")


def dump_config(config: BaseModel) -> str:
    """A resolved configuration as YAML that loads to the same value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
