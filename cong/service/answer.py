"""One request for samples while it is answered: tokens as they come, samples once they are as durable as asked.

An answer holds seats and must be closed; closing it early cancels what is left. Knows no HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Protocol, Self

from cong.engine import Rated, SampleFinished, TokenDrawn
from cong.schemas import SampleRecord
from cong.service.idempotency import Finished
from cong.service.pace import Pace
from cong.service.switchboard import Item, Ticket
from cong.service.vocabulary import Vocabulary
from cong.wire import SampleEvent, StoredSample, TokenEvent, Usage

Batch = list[TokenEvent | SampleEvent]
"""What has happened since the last one; tokens of a sample stand before the sample."""

COMPLETE = ("stop", "length")
"""Finish reasons of samples that may be stored.

A sample's key stands for its question. If one that was cut short were stored, everybody who asks the question later
would get the stub, and training would learn from it.
"""


class Answer(Protocol):
    """Samples on their way to one caller; used with `async with`, then iterated once."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompts, each counted once."""
        ...

    def __aiter__(self) -> AsyncIterator[Batch]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ReplayedAnswer:
    """An answer that was made before."""

    def __init__(self, finished: Finished, num_prompt_tokens: int, vocabulary: Vocabulary | None) -> None:
        """With a vocabulary the samples' tokens are told too, as they were the first time."""
        self._finished = finished
        self._vocabulary = vocabulary
        self.num_prompt_tokens = num_prompt_tokens

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    async def __aiter__(self) -> AsyncIterator[Batch]:
        for number, sample in self._finished.samples:
            yield retold(number, sample, self._vocabulary)


class LiveAnswer:
    """An answer that is being made."""

    def __init__(
        self,
        ticket: Ticket,
        num_samples: int,
        num_prompt_tokens: int,
        known: Iterable[tuple[int, StoredSample]],
        *,
        vocabulary: Vocabulary | None,
        pace: Pace,
        store: Callable[[int, SampleRecord], None] | None,
        on_finished: Callable[[SampleRecord], None],
        on_close: Callable[["LiveAnswer"], None],
    ) -> None:
        """`store` takes a sample and puts it on the ticket once it is stored; None = nothing is kept."""
        self._ticket = ticket
        self._known = tuple(known)
        self._vocabulary = vocabulary
        self._pace = pace
        self._store = store
        self._on_finished = on_finished
        self._on_close = on_close
        self._shown: dict[tuple[int, int], int] = {}
        self._is_closed = False
        self.num_prompt_tokens = num_prompt_tokens
        self.num_left = num_samples
        """Samples that have not been answered."""
        self.samples: list[tuple[int, StoredSample]] = []
        """Those that have been answered."""

    async def __aenter__(self) -> Self:
        self._pace.num_streams += self._has_tokens
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._pace.num_streams -= self._has_tokens
            self._on_close(self)

    async def __aiter__(self) -> AsyncIterator[Batch]:
        for number, sample in self._known:
            self._take(number, sample)
            yield retold(number, sample, self._vocabulary)
        loop, not_before_s = asyncio.get_running_loop(), 0.0
        while self.num_left:
            batch = self._translate(await self._ticket.take(not_before_s))
            if batch:
                yield batch
                not_before_s = loop.time() + self._pace.gap_s

    @property
    def _has_tokens(self) -> bool:
        return self._vocabulary is not None

    def _take(self, number: int, sample: StoredSample) -> SampleEvent:
        self.num_left -= 1
        self.samples.append((number, sample))
        return SampleEvent(prompt_index=number, sample=sample)

    def _translate(self, items: list[Item]) -> Batch:
        batch: Batch = []
        for number, event in items:
            if isinstance(event, TokenDrawn):
                place = (number, event.sample_index)
                self._shown[place] = self._shown.get(place, 0) + len(event.text)
                batch.append(_token_event(number, event, event.text))
            elif isinstance(event, SampleFinished):
                self._on_finished(event.record)
                self._complete_text(batch, number, event.record)
                if self._store is not None and event.record.finish_reason in COMPLETE:
                    self._store(number, event.record)
                else:
                    batch.append(self._take(number, StoredSample(record=event.record)))
            elif isinstance(event, StoredSample):
                batch.append(self._take(number, event))
            else:
                assert not isinstance(event, Rated), "a request for samples gets no scores"
        return batch

    def _complete_text(self, batch: Batch, number: int, record: SampleRecord) -> None:
        """Text that was held back because it might have become a stop string goes with the last token."""
        shown = self._shown.pop((number, record.sample_index), None)
        if shown is None or shown >= len(record.completion_text) or not batch:
            return
        last = batch[-1]
        if isinstance(last, TokenEvent) and (last.prompt_index, last.sample_index) == (number, record.sample_index):
            batch[-1] = last.model_copy(update={"text": last.text + record.completion_text[shown:]})


def retold(number: int, sample: StoredSample, vocabulary: Vocabulary | None) -> Batch:
    """A finished sample as if it were made now."""
    tokens: Batch = [] if vocabulary is None else [*vocabulary.replay(number, sample.record)]
    return [*tokens, SampleEvent(prompt_index=number, sample=sample)]


def usage_of(num_prompt_tokens: int, samples: Iterable[StoredSample]) -> Usage:
    """Tokens read and written."""
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=sum(len(sample.record.completion_token_ids) for sample in samples),
    )


def _token_event(number: int, event: TokenDrawn, text: str) -> TokenEvent:
    # Built without checks: these come from the engine, and there are many.
    return TokenEvent.model_construct(
        event="token",
        prompt_index=number,
        sample_index=event.sample_index,
        text=text,
        token_id=event.token.token_id,
        mixture_logprob=event.token.mixture_logprob,
    )
