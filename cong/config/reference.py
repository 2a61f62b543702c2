"""Every setting with its type, its bounds, its default and what it means, as Markdown made from the types themselves.

The meaning is the text below a field in the source; knows no program that reads a setting.
"""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from cong.config.settings import RunConfig

_KIND = "kind"
_SAID = {"integer": "whole number", "number": "number", "string": "text", "boolean": "yes or no", "null": "null"}


@dataclass(frozen=True)
class Setting:
    """One key of a file."""

    name: str
    """Dotted; NAME stands for a name of the user's."""
    kind: str
    default: str
    meaning: str


def settings_of(model: type[BaseModel], prefix: str = "", default: BaseModel | None = None) -> Iterator[Setting]:
    """The settings below a section, in the order of the source; `default`: what the section holds if it is left out."""
    for key, field in model.model_fields.items():
        name = f"{prefix}.{key}" if prefix else key
        meaning = _texts(model).get(key, "")
        value = getattr(default, key) if default is not None else _default_of(field)
        inner = _model_in(field.annotation)
        members = _members_in(field.annotation)
        if inner is not None:
            about = meaning or inspect.cleandoc(inner.__doc__ or "")
            if value is None:
                yield Setting(name, "section, or null", "null", about)
                value = inner() if not any(each.is_required() for each in inner.model_fields.values()) else None
            else:
                yield Setting(name, "section", "", about)
            yield from settings_of(inner, name, value)
        elif members:
            yield Setting(name, "sections by name", _shown(value), meaning)
            for member in members:
                chosen = f"NAME ({_KIND} {_kind_of(member)})" if len(members) > 1 else "NAME"
                yield from settings_of(member, f"{name}.{chosen}")
        elif default is None and field.is_required():
            yield Setting(name, _type_text(field), "", f"Needed. {meaning}".strip())
        else:
            yield Setting(name, _type_text(field), _shown(value), meaning)


def reference() -> str:
    """The page."""
    lines = [
        "# Every setting",
        "",
        "Made from the types by `cong config reference`; a test compares this page with them. How files, `--set` and",
        "`--dry-run` go together is told in [Configuration](configuration.md). A value that breaks a bound, and a key",
        "that is not here, is refused before anything runs. NAME stands for a name of your own.",
        "",
        "## Of the whole run",
        "",
        *_table(_top()),
    ]
    # The lab's recipe is long, and nobody changes it who has models of their own.
    for section, field in sorted(RunConfig.model_fields.items(), key=lambda each: each[0] == "lab"):
        inner = _model_in(field.annotation)
        if inner is None:
            continue
        about = _texts(RunConfig).get(section) or inspect.cleandoc(inner.__doc__ or "")
        default = _default_of(field)
        assert isinstance(default, BaseModel), f"{section} has no default"
        lines += ["", f"## `{section}`", "", _markdown(about), "", *_table(settings_of(inner, section, default))]
    return "\n".join(lines) + "\n"


def _top() -> Iterator[Setting]:
    for key, field in RunConfig.model_fields.items():
        if _model_in(field.annotation) is None:
            yield Setting(key, _type_text(field), _shown(_default_of(field)), _texts(RunConfig).get(key, ""))


def _table(settings: Iterator[Setting]) -> Iterator[str]:
    yield "| setting | type | default | meaning |"
    yield "|---|---|---|---|"
    for each in settings:
        default = f"`{each.default}`" if each.default else ""
        yield f"| `{each.name}` | {_markdown(each.kind)} | {default} | {_markdown(each.meaning)} |"


def _markdown(text: str) -> str:
    text = re.sub(r"\bNone\b", "null", text)  # as files write it
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


# Of a field.


@cache
def _texts(model: type[BaseModel]) -> dict[str, str]:
    """What the source says of each field, right below it; a class's own words before those of its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        tree = ast.parse(inspect.getsource(inspect.getmodule(base) or base))
        (node,) = [each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == base.__name__]
        for field, text in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = inspect.cleandoc(text.value.value)
    return found


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the type itself."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [part for each in get_args(annotation) for part in _parts(each)]
    return [annotation]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, by itself or beside null."""
    parts = [part for part in _parts(annotation) if part is not NoneType]
    (first,) = parts if len(parts) == 1 else (None,)
    return first if isinstance(first, type) and issubclass(first, BaseModel) else None


def _members_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field holds under names of the user's."""
    if get_origin(annotation) is not dict:
        return []
    return [each for each in _parts(get_args(annotation)[1]) if isinstance(each, type) and issubclass(each, BaseModel)]


def _kind_of(member: type[BaseModel]) -> str:
    return str(get_args(member.model_fields[_KIND].annotation)[0])


def _default_of(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return json.dumps(value.model_dump(mode="json"))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, dict) and any(isinstance(each, BaseModel) for each in value.values()):
        value = {key: each.model_dump(mode="json") for key, each in value.items()}
    return json.dumps(value)


def _type_text(field: FieldInfo) -> str:
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return _schema_text(TypeAdapter(annotation).json_schema())


def _schema_text(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_schema_text, schema["anyOf"])))
    if "const" in schema:
        return _quoted(schema["const"])
    if "enum" in schema:
        return ", ".join(map(_quoted, schema["enum"]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_schema_text(schema['items'])}" if "items" in schema else "list"
    if kind == "object":
        return "mapping"
    if kind == "string" and schema.get("format") == "path":
        return "path"
    return _SAID.get(str(kind), "any") + _bounds_text(schema)


def _quoted(value: object) -> str:
    return f"`{value}`" if value != "" else "empty"


def _bounds_text(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f", {_bound(low)} to {_bound(high)}"
    words = [
        f"{word} {_bound(bound)}"
        for word, bound in (("at least", low), ("above", above), ("at most", high), ("below", below))
        if bound is not None
    ]
    return f", {', '.join(words)}" if words else ""


def _bound(value: float) -> str:
    for power in (31, 63):
        if value == 2**power:
            return f"2^{power}"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"
