"""What every engine does around its steps: requests are checked and opened, deadlines kept, samples told as records.

Knows sequences, networks' facts and time; not how a token is computed, and no queue.
"""

import heapq
import itertools
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cong.engine.protocol import Event, Generate, Rate, Rated, SampleFinished, TokenDrawn, TokenRecord
from cong.engine.records import record_of, score_of
from cong.engine.sequence import Sequence
from cong.engine.text import TextStream
from cong.errors import InvalidRequest, PromptTooLong
from cong.models import NetworkSet, detokenize, prompt_token_ids
from cong.schemas import FinishReason, Prompt, SampleRequest, SamplingParameters, sample_keys

log = logging.getLogger(__name__)


@dataclass
class _Open:
    """A request of which something is unfinished."""

    request: Generate | Rate
    ends_at: float
    """On the engine's clock; infinite without a deadline."""
    unfinished: dict[int, Sequence]
    """By sample index."""


class Desk:
    """The open requests of one engine, and the events that wait to be taken."""

    def __init__(
        self,
        networks: NetworkSet,
        max_tokens: int,
        software: dict[str, str],
        writer: str,
        clock: Callable[[], float],
    ) -> None:
        self.networks = networks
        self.max_tokens = max_tokens
        """Prompt and completion tokens of the longest sequence that can be served."""
        self._software = software
        self._writer = writer
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._num_submitted = 0
        self._outbox: list[Event] = []
        self.num_finished = 0
        """Samples and scores that have been told of."""

    @property
    def has_open(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._open)

    @property
    def has_news(self) -> bool:
        """Whether an event waits to be taken."""
        return bool(self._outbox)

    def take_events(self) -> list[Event]:
        """Everything that happened since it was last asked."""
        outbox, self._outbox = self._outbox, []
        return outbox

    def open_samples(self, request: Generate) -> list[Sequence]:
        """The sequences of a request for samples; refuses what can never be served."""
        self._require_new(request.request_id)
        parameters = request.parameters
        if not request.sample_indices or min(request.sample_indices) < 0:
            raise InvalidRequest("sample_indices", f"are {request.sample_indices}; give at least one, and none below 0")
        self._require_usable(parameters)
        prompt_token_ids = self._prompt_token_ids(request)
        self._require_room(len(prompt_token_ids), parameters.max_tokens, "max_tokens")
        ends = frozenset() if parameters.ignore_eos else self.networks.eos_ids
        needs_text = request.streams or bool(parameters.stop)
        indices = tuple(dict.fromkeys(request.sample_indices))
        keys = self._keys(prompt_token_ids, parameters, indices)
        return self._admit(
            request,
            [
                Sequence(
                    request_id=request.request_id,
                    sample_index=sample_index,
                    prompt_token_ids=prompt_token_ids,
                    parameters=parameters,
                    stop_token_ids=ends.union(parameters.stop_token_ids),
                    arrival=self._num_submitted + number,
                    submitted_at=self._clock(),
                    key=key,
                    text=TextStream(self._detokenize, parameters.stop) if needs_text else None,
                )
                for number, (sample_index, key) in enumerate(zip(indices, keys, strict=True))
            ],
        )

    def open_score(self, request: Rate) -> Sequence:
        """The sequence of a request for a score; refuses what can never be served."""
        self._require_new(request.request_id)
        targets = request.completion_token_ids
        if not targets:
            raise InvalidRequest("completion_token_ids", "is empty; give at least one token to score")
        self._require_ids(targets, "completion_token_ids")
        prompt_token_ids = self._prompt_token_ids(request)
        self._require_room(len(prompt_token_ids), len(targets), "completion_token_ids")
        sequence = Sequence(
            request_id=request.request_id,
            sample_index=0,
            prompt_token_ids=prompt_token_ids,
            parameters=SamplingParameters(),
            stop_token_ids=frozenset(),
            arrival=self._num_submitted,
            submitted_at=self._clock(),
            targets=targets,
        )
        return self._admit(request, [sequence])[0]

    def take_token(self, sequence: Sequence, token: TokenRecord, now: float) -> None:
        """A token was drawn: tell it where it is wanted, and the sample if it was the last one."""
        if not token.is_finite:
            self._break_off(sequence, token, now)
            return
        if sequence.first_token_at is None:
            sequence.first_token_at = now
        piece = sequence.append(token)
        if sequence.text is not None:
            request = self._open[sequence.request_id].request
            if isinstance(request, Generate) and request.streams:
                self._outbox.append(TokenDrawn(sequence.request_id, sequence.sample_index, piece, token))
        if sequence.is_finished:
            self.finish(sequence, now)

    def take_scores(self, sequence: Sequence, first: int, tokens: list[TokenRecord], now: float) -> None:
        """Targets from the `first` on were scored, perhaps once more: keep them, and tell the score if it is whole."""
        finite = [*itertools.takewhile(lambda token: token.is_finite, tokens)]
        sequence.records[first : first + len(tokens)] = finite
        if len(finite) < len(tokens):
            self._break_off(sequence, tokens[len(finite)], now)
        elif len(sequence.records) == len(sequence.targets):
            sequence.finish_reason = "stop"
            self.finish(sequence, now)

    def _break_off(self, sequence: Sequence, token: TokenRecord, now: float) -> None:
        """End a sequence before a token that no record can hold; the others are unaffected."""
        names = [f"{identity.role} ({identity.name})" for identity in self.networks.identities]
        wrong = [name for name, value in zip(names, token.logprobs, strict=True) if not math.isfinite(value)]
        problem = (
            f"token {len(sequence.records)} of the completion has no finite log-probability under "
            f"{' and '.join(wrong) or ' mixed with '.join(names)}: its logits are not numbers, or rule the token out; "
            "look for damaged weights and rows of untrained tokens, or choose a models.dtype of a wider range"
        )
        log.error("a request ends in error: %s", problem, extra={"request_id": sequence.request_id})
        sequence.finish_reason = "error"
        self.finish(sequence, now, problem)

    def finish(self, sequence: Sequence, now: float, problem: str = "") -> None:
        """Tell of a sequence that has a reason to be finished."""
        opened = self._open[sequence.request_id]
        del opened.unfinished[sequence.sample_index]
        if not opened.unfinished:
            del self._open[sequence.request_id]
        self.num_finished += 1
        if isinstance(opened.request, Rate):
            score = score_of(sequence, opened.request, self.networks)
            self._outbox.append(Rated(sequence.request_id, score, problem))
            return
        record = record_of(sequence, opened.request.prompt, self.networks, self._software, self._writer, now)
        self._outbox.append(SampleFinished(sequence.request_id, sequence.sample_index, record, problem))

    def end(self, request_id: str, reason: FinishReason) -> list[Sequence]:
        """Finish what is left of a request, and return it; unknown and finished ones are left alone."""
        opened = self._open.get(request_id)
        ended = [] if opened is None else [*opened.unfinished.values()]
        for sequence in ended:
            sequence.finish_reason = reason
            self.finish(sequence, self._clock())
        return ended

    def expire(self) -> list[Sequence]:
        """Finish what has passed its deadline, and return it."""
        ended: list[Sequence] = []
        while self._deadlines and self._deadlines[0][0] <= self._clock():
            ends_at, request_id = heapq.heappop(self._deadlines)
            opened = self._open.get(request_id)
            if opened is not None and opened.ends_at == ends_at:  # and no later one of this id
                ended += self.end(request_id, "deadline")
        return ended

    def keys(self, request: SampleRequest) -> tuple[str, ...]:
        """The keys of the request's samples, in order of their index, whether they are made yet or not."""
        prompt_token_ids = self.encode(request.prompt)
        return self._keys(prompt_token_ids, request.parameters, range(request.num_samples))

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt in any of its forms."""
        ids = prompt_token_ids(self.networks.tokenizer, prompt)
        if prompt.token_ids:
            self._require_ids(ids, "prompt.token_ids")
        if not ids:
            raise InvalidRequest("prompt.text", "has no tokens, and the tokenizer puts none in front; give some text")
        return ids

    def _keys(
        self, prompt_token_ids: tuple[int, ...], parameters: SamplingParameters, indices: Iterable[int]
    ) -> tuple[str, ...]:
        networks = self.networks
        return sample_keys(networks.identities, networks.text_fingerprint, prompt_token_ids, parameters, indices)

    def _prompt_token_ids(self, request: Generate | Rate) -> tuple[int, ...]:
        if not request.prompt_token_ids:
            return self.encode(request.prompt)
        self._require_ids(request.prompt_token_ids, "prompt_token_ids")
        return request.prompt_token_ids

    def _admit(self, request: Generate | Rate, sequences: list[Sequence]) -> list[Sequence]:
        self._num_submitted += len(sequences)
        ends_at = math.inf if request.deadline_s is None else self._clock() + request.deadline_s
        self._open[request.request_id] = _Open(request, ends_at, {s.sample_index: s for s in sequences})
        if ends_at < math.inf:
            heapq.heappush(self._deadlines, (ends_at, request.request_id))
        return sequences

    def _detokenize(self, token_ids: Iterable[int]) -> str:
        return detokenize(self.networks.tokenizer, tuple(token_ids))

    def _require_new(self, request_id: str) -> None:
        if request_id in self._open:
            raise InvalidRequest("request_id", f"{request_id!r} is in use; give every unfinished request its own")

    def _require_usable(self, parameters: SamplingParameters) -> None:
        num_networks = len(self.networks.identities)
        if len(parameters.weights) != num_networks:
            roles = ", ".join(identity.role for identity in self.networks.identities)
            raise InvalidRequest(
                "weights",
                f"has {len(parameters.weights)} entries, and this engine holds {num_networks} network(s) ({roles}); "
                "give one weight for each",
            )
        self._require_ids(parameters.exempt_token_ids, "exempt_token_ids")
        self._require_ids(parameters.stop_token_ids, "stop_token_ids")

    def _require_ids(self, token_ids: Iterable[int], name: str) -> None:
        vocab_size = self.networks.shared_vocab_size
        wrong = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(name, f"holds {wrong}, and the tokenizer has ids 0 to {vocab_size - 1}")

    def _require_room(self, num_prompt: int, num_more: int, name: str) -> None:
        if num_prompt + num_more > self.max_tokens:
            raise PromptTooLong(
                f"the prompt has {num_prompt} tokens and {name} asks for {num_more} more; together they may be "
                f"{self.max_tokens} (the networks' context and the memory for keys and values); shorten one of them"
            )
