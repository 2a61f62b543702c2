"""Answers to held-out prompts, whoever gave them, joined to the prompts by id; knows no network and no judge."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cong.config.evaluation import EvaluationConfig
from cong.errors import ConfigError, EvaluationError
from cong.prompts import read_prompts
from cong.schemas import Prompt, SampleRecord, content_key
from cong.wording import causes

GIVEN = "given"
"""What the answers of a file are called where those of a network are named by their temperature."""
_TEXT_FIELDS = ("answer", "completion", "response", "output", "completion_text")
_PROMPT_FIELDS = ("prompt_id", "prompt", "messages", "instruction")


@dataclass(frozen=True)
class Answer:
    """One answer to one prompt."""

    prompt: Prompt
    text: str
    sample_index: int = 0
    token_ids: tuple[int, ...] = ()
    """As they were drawn, the end of sequence included; empty = only the text is known."""
    tokenizer_fingerprint: str = ""
    """Whose ids they are; empty = only the text is known."""
    is_truncated: bool = False
    """A limit of length ended it, so it has no end of sequence."""

    @cached_property
    def key(self) -> str:
        """Identity of what is judged: the same answer to the same prompt is judged once."""
        prompt = self.prompt.model_dump(mode="json")
        return "j-" + content_key([prompt, self.text, self.token_ids, self.tokenizer_fingerprint, self.is_truncated])

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"prompt {self.prompt.prompt_id!r}, sample {self.sample_index}"


@dataclass(frozen=True)
class AnswerSet:
    """The answers of one candidate under one decoding."""

    candidate: str
    decoding: str
    """Such as T=1, greedy, or given."""
    answers: tuple[Answer, ...]
    """In the order of the prompts, then of the sample index."""
    missing: tuple[str, ...] = ()
    """Ids of prompts without an answer."""
    unknown: tuple[str, ...] = ()
    """Prompt ids of answers to no held-out prompt; they are left out."""

    @property
    def label(self) -> str:
        """How tables name it."""
        return f"{self.candidate}, {self.decoding}"

    @cached_property
    def by_prompt(self) -> dict[str, tuple[Answer, ...]]:
        """Answers by prompt id."""
        grouped: dict[str, list[Answer]] = {}
        for answer in self.answers:
            grouped.setdefault(answer.prompt.prompt_id, []).append(answer)
        return {prompt_id: tuple(answers) for prompt_id, answers in grouped.items()}


def decoding_name(temperature: float) -> str:
    """Name of a temperature."""
    return f"T={temperature:g}" if temperature else "greedy"


def held_out_prompts(settings: EvaluationConfig) -> list[Prompt]:
    """The prompts of an evaluation, each under an id of its own."""
    if settings.prompts is None:
        raise ConfigError("evaluation.prompts is not set; give a file of held-out prompts")
    prompts = list(read_prompts(settings.prompts))
    if not prompts:
        raise ConfigError(f"{settings.prompts} holds no prompts")
    if settings.num_prompts > len(prompts):
        raise ConfigError(
            f"evaluation.num_prompts is {settings.num_prompts}, and {settings.prompts} has {len(prompts)}; ask for less"
        )
    prompts = prompts[: settings.num_prompts or None]
    require_unique(prompts, str(settings.prompts))
    return prompts


def require_unique(prompts: Sequence[Prompt], origin: str) -> None:
    """Refuse prompts that could not be told apart in a comparison."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.prompt_id in seen:
            raise ConfigError(f"{origin}: prompt {prompt.prompt_id!r} is there twice; keep one, or give another id")
        seen.add(prompt.prompt_id)


def answer_of(record: SampleRecord, prompt: Prompt) -> Answer:
    """A sample as an answer to a prompt."""
    if record.finish_reason not in ("stop", "length"):
        raise EvaluationError(
            f"prompt {prompt.prompt_id!r}: sample {record.sample_index} ended by {record.finish_reason!r} and is no "
            "whole answer; remove it and sample again"
        )
    return Answer(
        prompt=prompt,
        text=record.completion_text,
        sample_index=record.sample_index,
        token_ids=record.completion_token_ids,
        tokenizer_fingerprint=record.tokenizer_fingerprint,
        is_truncated=record.finish_reason == "length",
    )


def answer_set(
    candidate: str, decoding: str, prompts: Sequence[Prompt], answers: Iterable[Answer], unknown: Iterable[str] = ()
) -> AnswerSet:
    """Answers in the order of the prompts, with the ids of those that have none."""
    places = {prompt.prompt_id: place for place, prompt in enumerate(prompts)}
    ordered = sorted(answers, key=lambda answer: (places[answer.prompt.prompt_id], answer.sample_index))
    answered = {answer.prompt.prompt_id for answer in ordered}
    missing = tuple(prompt_id for prompt_id in places if prompt_id not in answered)
    if not ordered:
        raise EvaluationError(f"{candidate}: there is no answer to any of the {len(prompts)} prompts; check their ids")
    return AnswerSet(candidate, decoding, tuple(ordered), missing, tuple(dict.fromkeys(unknown)))


def read_answers(candidate: str, path: Path, prompts: Sequence[Prompt]) -> AnswerSet:
    """The answers of a JSON-lines file, joined to the prompts by id; several to one prompt count as its samples."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    answers: list[Answer] = []
    unknown: list[str] = []
    counts: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut texts at U+2028 too
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read answers from {path}: {error}; give a UTF-8 file of JSON lines") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt_id, answer = _parse(line, f"{path}:{number}")
        if prompt_id not in by_id:
            unknown.append(prompt_id)
            continue
        index = counts.get(prompt_id, 0)
        counts[prompt_id] = index + 1
        if isinstance(answer, SampleRecord):
            whole = answer_of(answer.model_copy(update={"sample_index": index}), by_id[prompt_id])
        else:
            whole = Answer(by_id[prompt_id], answer, index)
        answers.append(whole)
    return answer_set(candidate, GIVEN, prompts, answers, unknown)


def _parse(line: str, where: str) -> tuple[str, str | SampleRecord]:
    """Prompt id and text of one line; a line that `cong sample` wrote is taken with its tokens."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}; one JSON object per line is needed") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where} holds a JSON {type(row).__name__}; one object per line is needed")
    try:
        if "completion_token_ids" in row:
            record = SampleRecord.model_validate(row)
            return record.prompt.prompt_id, record
        return _prompt_id(row, where), _text(row, where)
    except ValidationError as error:
        problems = "; ".join(f"{name}: {words}" for name, words in causes(error.errors()))
        raise ConfigError(f"{where} is no answer: {problems}") from error


def _prompt_id(row: dict[str, Any], where: str) -> str:
    if row.get("prompt_id") is not None:
        return str(row["prompt_id"])
    asked = row.get("messages", row.get("prompt", row.get("instruction")))
    if asked is None:
        raise ConfigError(f"{where} has none of {', '.join(_PROMPT_FIELDS)}: it cannot be joined to a prompt")
    return Prompt.model_validate({"messages" if isinstance(asked, list) else "text": asked}).prompt_id


def _text(row: dict[str, Any], where: str) -> str:
    found = [name for name in _TEXT_FIELDS if row.get(name) is not None]
    if len(found) != 1:
        raise ConfigError(f"{where} has {' and '.join(found) or 'no answer'}; give one of {', '.join(_TEXT_FIELDS)}")
    text = row[found[0]]
    if isinstance(text, list) and len(text) == 1 and isinstance(text[0], dict):  # one message, as chats store it
        text = text[0].get("content")
    if not isinstance(text, str):
        raise ConfigError(f"{where}: {found[0]} holds a {type(text).__name__}; a text is needed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: {found[0]} holds half of a surrogate pair; write whole characters") from error
    return text
