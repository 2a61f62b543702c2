"""Answers as OpenAI's streams: server-sent chunks, then `[DONE]`, or an error where an answer ends early."""

import json
from typing import Any

from cong.service import Batch, Vocabulary
from cong.service import openai_replies as replies
from cong.wire import EVENT_STREAM, TokenEvent, Usage
from serve.http.errors import Problem


class _Chunks:
    """What completions and chats share."""

    media_type = EVENT_STREAM
    alive = b": alive\n\n"
    _object = ""

    def __init__(
        self,
        head: replies.Head,
        num_choices: int,
        wants_usage: bool,
        num_top: int | None,
        vocabulary: Vocabulary,
        request_id: str,
    ) -> None:
        """`num_choices` is that of each prompt; `num_top` None = without log-probs."""
        self._num_choices = num_choices
        self._wants_usage = wants_usage
        self._num_top = num_top
        self._vocabulary = vocabulary
        self._request_id = request_id
        self._num_shown: dict[int, int] = {}
        """Characters of each choice that have been sent."""
        fields = {"id": head.id, "object": self._object, "created": head.created, "model": head.model}
        self._before = f"data: {json.dumps(fields)[:-1]}, "

    def begin(self) -> bytes:
        """Nothing, unless a kind of stream begins with something."""
        return b""

    def batch(self, batch: Batch) -> bytes:
        """A chunk for every token that has text or log-probs, and one for every end of a sample.

        The last one has the text that no token brought: where a sample is cut short, what might have begun a stop.
        """
        chunks = []
        for event in batch:
            if event.event == "sample":
                record = event.sample.record
                index = event.prompt_index * self._num_choices + record.sample_index
                rest = record.completion_text[self._num_shown.get(index, 0) :]
                chunks.append(self._chunk([self._last(index, rest, replies.finish_of(record))]))
            elif event.text or self._num_top is not None:
                index = event.prompt_index * self._num_choices + event.sample_index
                self._num_shown[index] = self._num_shown.get(index, 0) + len(event.text)
                chunks.append(self._chunk([self._token(index, event)]))
        return "".join(chunks).encode()

    def end(self, num_samples: int, usage: Usage, problem: Problem | None) -> bytes:
        """Token counts where they are asked for, and the mark of a whole answer; an error is not followed by it."""
        if problem is not None:
            body = problem.body(self._request_id).model_dump(mode="json")
            return f"data: {json.dumps({'error': body})}\n\n".encode()
        counts = self._chunk([], replies.openai_usage(usage).model_dump()) if self._wants_usage else ""
        return f"{counts}data: [DONE]\n\n".encode()

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        rest = f'"choices": {json.dumps(choices)}'
        if self._wants_usage:
            rest += f', "usage": {json.dumps(usage)}'
        return f"{self._before}{rest}}}\n\n"

    def _token(self, index: int, event: TokenEvent) -> dict[str, Any]:
        raise NotImplementedError

    def _last(self, index: int, rest: str, reason: replies.OpenAIFinish) -> dict[str, Any]:
        raise NotImplementedError


class CompletionEncoder(_Chunks):
    """The stream of `/v1/completions`."""

    _object = "text_completion"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._offsets: dict[int, int] = {}

    def _token(self, index: int, event: TokenEvent) -> dict[str, Any]:
        start = self._offsets.get(index, 0)
        self._offsets[index] = start + len(self._vocabulary.show(event.token_id))
        return replies.completion_chunk(index, event, self._num_top, self._vocabulary, start)

    def _last(self, index: int, rest: str, reason: replies.OpenAIFinish) -> dict[str, Any]:
        return {"index": index, "text": rest, "logprobs": None, "finish_reason": reason}


class ChatEncoder(_Chunks):
    """The stream of `/v1/chat/completions`."""

    _object = "chat.completion.chunk"

    def begin(self) -> bytes:
        """Who speaks, for every answer."""
        first = [
            {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            for index in range(self._num_choices)
        ]
        return "".join(self._chunk([choice]) for choice in first).encode()

    def _token(self, index: int, event: TokenEvent) -> dict[str, Any]:
        return replies.chat_chunk(index, event, self._num_top, self._vocabulary)

    def _last(self, index: int, rest: str, reason: replies.OpenAIFinish) -> dict[str, Any]:
        delta = {"content": rest} if rest else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
