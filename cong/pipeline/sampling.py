"""Samples of every prompt through the engine of this process, into a stream, in the order of the prompts.

Killed and run again it makes what is missing; what an earlier stream of the same stage holds is taken from there.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from cong.config import RunConfig
from cong.engine import LocalEngine, open_engine
from cong.errors import RequestError
from cong.pipeline.attempt import Attempt
from cong.pipeline.given import PromptSet, read_prompt_set
from cong.pipeline.ordering import Place, place_of
from cong.pipeline.stopping import Stop, StoppedEarly
from cong.pipeline.task import STREAM
from cong.schemas import Prompt, SampleRecord, SampleRequest
from cong.stream import StreamReader, open_store
from cong.stream.identity import read_identity

logger = logging.getLogger(__name__)


def sample_here(config: RunConfig, stop: Stop, label: str) -> None:
    """Draw what is missing; raises `StoppedEarly` where it is asked to stop before the end."""
    prompt_set = read_prompt_set(config)
    num_samples = config.sampling_job.num_samples
    with Attempt(config, places_of(prompt_set, num_samples), label) as attempt:
        for row in prompt_set.bad_rows:
            attempt.bad_row(row.where, row.problem)
        if attempt.missing:
            _draw(config, prompt_set, attempt, stop)
        attempt.complete()


def places_of(prompt_set: PromptSet, num_samples: int) -> list[Place]:
    """Everything that is wanted, in order."""
    return [(prompt.prompt_id, index) for prompt in prompt_set.prompts for index in range(num_samples)]


def _draw(config: RunConfig, prompt_set: PromptSet, attempt: Attempt, stop: Stop) -> None:
    with closing(open_engine(config.models, config.engine, writer="pipeline")) as engine:
        _draw_with(engine, config, prompt_set, attempt, stop)


def _draw_with(engine: LocalEngine, config: RunConfig, prompt_set: PromptSet, attempt: Attempt, stop: Stop) -> None:
    wanted = set(attempt.missing)
    requests = list(_requests(engine, config, prompt_set.prompts, attempt, wanted))
    places: dict[str, Place] = {}
    for request in requests:
        for index, key in enumerate(engine.keys(request)):
            place = (request.prompt.prompt_id, index)
            if place in wanted and places.setdefault(key, place) != place:
                reason = f"the prompt has the same tokens as {places[key][0]!r}, and would get the same sample"
                attempt.give_up([place], "Repeated", reason)
    known = {key for request in requests for key in engine.keys(request)} - places.keys()
    inherited = Inherited(config.output_dir, places)
    if inherited.keys:
        logger.info("%d samples are taken from earlier streams of this stage", len(inherited.keys))
    inherited.supply(attempt)
    for record in engine.generate(requests, known | inherited.keys):
        attempt.take(record)
        inherited.supply(attempt)
        attempt.phases = engine.stats().seconds
        if stop.is_set:
            raise StoppedEarly
    assert attempt.awaited is None, f"the engine has not answered {attempt.awaited}"


def _requests(
    engine: LocalEngine, config: RunConfig, prompts: Sequence[Prompt], attempt: Attempt, wanted: set[Place]
) -> Iterator[SampleRequest]:
    """What can be served of what is missing; the rest is given up, with its reason."""
    num_samples, max_tokens = config.sampling_job.num_samples, config.sampling.max_tokens
    for prompt in prompts:
        missing = [place for index in range(num_samples) if (place := (prompt.prompt_id, index)) in wanted]
        if not missing:
            continue
        try:
            num_tokens = len(engine.encode(prompt))
        except RequestError as error:
            attempt.give_up(missing, type(error).__name__, str(error))
            continue
        if num_tokens + max_tokens > engine.max_tokens:
            reason = (
                f"the prompt has {num_tokens} tokens and max_tokens is {max_tokens}; together they may be "
                f"{engine.max_tokens}: shorten the prompt, or lower max_tokens"
            )
            attempt.give_up(missing, "PromptTooLong", reason)
            continue
        yield SampleRequest(prompt=prompt, parameters=config.sampling, num_samples=num_samples)


class Inherited:
    """Wanted samples that earlier streams of the stage hold: read one after another, when their turn comes."""

    def __init__(self, folder: Path, places: dict[str, Place]) -> None:
        self._places = places
        others = [other for other in sorted(folder.parent.iterdir()) if other != folder and other.name[0] != "."]
        self._readers = [location for other in others for location in _of(other)]
        self.keys = frozenset(self._found())
        self._due = {places[key] for key in self.keys}
        self._records = self._in_turn()
        self._ahead: dict[Place, SampleRecord] = {}

    def _found(self) -> Iterator[str]:
        for location in self._readers:
            for table, _ in StreamReader(open_store(location)).tables(4096, ("key", "finish_reason")):
                names = (table.column(name).to_pylist() for name in ("key", "finish_reason"))
                yield from (k for k, r in zip(*names, strict=True) if k in self._places and r in ("stop", "length"))

    def _in_turn(self) -> Iterator[SampleRecord]:
        for location in self._readers:
            for record in StreamReader(open_store(location)).records():
                if record.key in self.keys:
                    prompt_id, index = self._places[record.key]
                    prompt = record.prompt.model_copy(update={"prompt_id": prompt_id})
                    yield record.model_copy(update={"prompt": prompt, "sample_index": index})

    def supply(self, attempt: Attempt) -> None:
        """Give what is due now, and nothing before its turn."""
        while (place := attempt.awaited) in self._due:
            while place not in self._ahead and (record := next(self._records, None)) is not None:
                self._ahead.setdefault(place_of(record), record)
            assert place is not None, "the end is never due"
            self._due.discard(place)
            attempt.take(self._ahead.pop(place), is_inherited=True)


def _of(folder: Path) -> list[str]:
    location = str(folder / STREAM)
    return [location] if (folder / STREAM).is_dir() and read_identity(open_store(location)) is not None else []
