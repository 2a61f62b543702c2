"""Samples of many requests from an engine that nobody else uses, as they finish.

Knows an engine by its protocol alone.
"""

from collections.abc import Collection, Iterable, Iterator

from cong.engine.protocol import Generate, LocalEngine, SampleFinished
from cong.errors import ModelError
from cong.schemas import SampleRecord, SampleRequest


def generate(
    engine: LocalEngine, requests: Iterable[SampleRequest], known_keys: Collection[str]
) -> Iterator[SampleRecord]:
    """Samples in any order, but for those whose key is known.

    No request is taken while as many samples wait as a step computes. The first sample that cannot be drawn ends it;
    however it ends, by a Ctrl-C or where no more samples are taken, nothing is left in the engine.
    """
    wanted = _wanted(engine, requests, known_keys)
    is_drained = False
    num_left: dict[str, int] = {}
    """Samples of the requests that are not through."""
    try:
        while not is_drained or engine.has_work:
            while not is_drained and engine.stats().num_waiting < engine.max_running:
                request = next(wanted, None)
                if request is None:
                    is_drained = True
                else:
                    engine.submit(request)
                    num_left[request.request_id] = len(request.sample_indices)
            for event in engine.events():
                if isinstance(event, SampleFinished):
                    num_left[event.request_id] -= 1
                    if num_left[event.request_id] == 0:
                        del num_left[event.request_id]
                    if event.problem:
                        name, index = event.record.prompt.prompt_id, event.sample_index
                        raise ModelError(f"prompt {name!r}, sample {index}: {event.problem}")
                    yield event.record
    except BaseException:
        for request_id in num_left:
            engine.cancel(request_id)
        engine.events()
        raise


def _wanted(engine: LocalEngine, requests: Iterable[SampleRequest], known_keys: Collection[str]) -> Iterator[Generate]:
    """What is asked of the engine: the samples that are not known."""
    for number, request in enumerate(requests):
        indices = tuple(index for index, key in enumerate(engine.keys(request)) if key not in known_keys)
        if indices:
            yield Generate(f"generate-{number}", request.prompt, request.parameters, indices)
