"""Prompts from files: one per line, as JSON or as plain text. Knows no tokenizer and no network."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from cong.errors import ConfigError
from cong.schemas import Prompt

_FIELDS = ("prompt", "text", "messages", "token_ids")


def read_prompts(path: Path) -> Iterator[Prompt]:
    """Prompts of a file: `.jsonl` with prompt (or text), messages or token_ids, and prompt_id; else a text per line.

    Empty lines are left out; other fields of a JSON line are ignored.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read prompts from {path}: {error}; give a UTF-8 file") from error
    is_json = path.suffix in (".jsonl", ".json", ".ndjson")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse(line, f"{path}:{number}") if is_json else Prompt(text=line)


def _parse(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}; one JSON object per line is needed") from error
    if not isinstance(row, dict) or not any(name in row for name in _FIELDS):
        raise ConfigError(f"{where} has none of the fields {', '.join(_FIELDS)}")
    fields = {name: row[name] for name in ("messages", "token_ids", "prompt_id") if row.get(name) is not None}
    text = row.get("prompt", row.get("text"))
    if isinstance(text, list):  # the conversational form of a prompt column
        fields["messages"] = text
    elif text is not None:
        fields["text"] = text
    try:
        return Prompt.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'prompt'}: {p['msg']}" for p in error.errors())
        raise ConfigError(f"{where} is no prompt: {problems}") from error
