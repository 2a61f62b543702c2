"""Texts as samples of another network's tokens: given answers, or what networks with other tokens have said.

A given text was drawn from nothing: its tokens have probability one. Knows no engine.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cong.config import RunConfig
from cong.errors import ConfigError, RequestError
from cong.models import Tokenizer, encode_completion, encode_prompt, load_tokenizer, render_chat
from cong.pipeline.attempt import Attempt
from cong.pipeline.given import chat_template_of
from cong.pipeline.ordering import Place
from cong.pipeline.stopping import Stop, StoppedEarly
from cong.schemas import FinishReason, Prompt, SampleKind, SampleRecord, SamplingParameters, content_key
from cong.stream import StreamReader, open_store

_PLAIN = SamplingParameters.plain()


@dataclass(frozen=True)
class Text:
    """What was answered to a prompt."""

    prompt: Prompt
    text: str
    sample_index: int
    finish_reason: FinishReason = "stop"
    kind: SampleKind = "plain"
    parameters: SamplingParameters = _PLAIN


def import_texts(config: RunConfig, source: str, stop: Stop, label: str) -> None:
    """Write every text as a sample of the strong model's tokens."""
    models = config.models
    tokenizer = load_tokenizer(
        models.strong.source, revision=models.strong.revision, chat_template=chat_template_of(models)
    )
    texts = list(_of_stream(source) if Path(source).is_dir() else _of_file(Path(source)))
    if not texts:
        raise ConfigError(f"{source} holds no answers")
    places: list[Place] = [(text.prompt.prompt_id, text.sample_index) for text in texts]
    with Attempt(config, places, label) as attempt:
        missing = set(attempt.missing)
        for place, text in zip(places, texts, strict=True):
            if place not in missing:
                continue
            try:
                attempt.take(record_of(text, tokenizer))
            except RequestError as error:
                attempt.give_up([place], type(error).__name__, str(error))
            if stop.is_set:
                raise StoppedEarly
        attempt.complete()


def record_of(text: Text, tokenizer: Tokenizer) -> SampleRecord:
    """A text as a sample; one that ended by itself has the end of the sequence behind it."""
    prompt = text.prompt
    if prompt.messages:
        asked = tuple(render_chat(tokenizer, prompt.messages))
    elif prompt.text is not None:
        asked = tuple(encode_prompt(tokenizer, prompt.text))
    else:
        raise ConfigError(
            f"prompt {prompt.prompt_id!r} is token ids, which another tokenizer cannot read; give its text"
        )
    end = () if tokenizer.eos_id is None or text.finish_reason != "stop" else (tokenizer.eos_id,)
    said = (*encode_completion(tokenizer, text.text), *end)
    return SampleRecord(
        key="i-" + content_key([tokenizer.fingerprint, asked, said, text.sample_index, prompt.prompt_id]),
        kind=text.kind,
        prompt=prompt,
        prompt_token_ids=asked,
        completion_text=text.text,
        completion_token_ids=said,
        logprobs={},
        mixture_logprobs=(0.0,) * len(said),
        head_sizes=(1,) * len(said),
        finish_reason=text.finish_reason,
        parameters=text.parameters,
        sample_index=text.sample_index,
        networks=(),
        tokenizer_fingerprint=tokenizer.fingerprint,
        writer="pipeline",
    )


def _of_stream(location: str) -> Iterator[Text]:
    for record in StreamReader(open_store(location)).records():
        yield Text(
            record.prompt,
            record.completion_text,
            record.sample_index,
            record.finish_reason,
            record.kind,
            record.parameters,
        )


def _of_file(path: Path) -> Iterator[Text]:
    counts: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            asked = row["messages"] if "messages" in row else row["prompt"]
            named = {"prompt_id": row["prompt_id"]} if row.get("prompt_id") else {}
            prompt = Prompt.model_validate({"messages" if isinstance(asked, list) else "text": asked, **named})
            answer = row["answer"]
            if not isinstance(answer, str):
                raise TypeError(f"answer is a {type(answer).__name__}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{path}:{number} is no answer ({error!r}); each line needs prompt (or messages) and answer"
            ) from error
        index = counts.get(prompt.prompt_id, 0)
        counts[prompt.prompt_id] = index + 1
        yield Text(prompt, answer, index)
