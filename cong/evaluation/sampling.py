"""Answers of a network: drawn through the engine into a store that keeps them, and only those that are missing."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from cong import engine as engines
from cong.config.engine import EngineConfig
from cong.config.evaluation import CandidateConfig, EvaluationConfig
from cong.config.models import ModelsConfig
from cong.config.stream import StreamConfig
from cong.engine import LocalEngine
from cong.errors import EvaluationError, RequestError
from cong.evaluation.answers import AnswerSet, answer_of, answer_set, decoding_name, read_answers
from cong.evaluation.storage import SampleStore, open_samples, require_place
from cong.schemas import Prompt, SampleRecord, SampleRequest
from cong.telemetry import progress


def requests_of(prompts: Sequence[Prompt], settings: EvaluationConfig, temperature: float) -> list[SampleRequest]:
    """What a network is asked at a temperature; greedy answers are all equal, so one is drawn."""
    parameters = settings.sampling.model_copy(update={"temperature": temperature})
    num_samples = settings.num_samples if temperature > 0.0 else 1
    return [SampleRequest(prompt=prompt, parameters=parameters, num_samples=num_samples) for prompt in prompts]


def network_of(candidate: CandidateConfig, models: ModelsConfig) -> ModelsConfig:
    """The candidate as the only network of a deployment: it takes the strong model's place."""
    strong = candidate.model_dump(exclude={"answers"})
    return ModelsConfig.model_validate({**models.model_dump(exclude={"aligned", "base"}), "strong": strong})


def open_engine(candidate: CandidateConfig, models: ModelsConfig, engine: EngineConfig) -> LocalEngine:
    """An engine that holds the candidate's network alone."""
    return engines.open_engine(network_of(candidate, models), engine, writer="cong-evaluate")


def sample(
    engine: LocalEngine, requests: Sequence[SampleRequest], store: SampleStore, label: str
) -> dict[str, dict[int, SampleRecord]]:
    """Samples of the requests by prompt id and sample index; what the store holds is not drawn again."""
    keys: dict[str, tuple[str, ...]] = {}
    for request in requests:
        prompt_id, max_tokens = request.prompt.prompt_id, request.parameters.max_tokens
        try:
            num_prompt_tokens = len(engine.encode(request.prompt))
        except RequestError as error:
            raise EvaluationError(f"{label}: prompt {prompt_id!r} cannot be asked: {error}") from error
        if num_prompt_tokens + max_tokens > engine.max_tokens:
            raise EvaluationError(
                f"{label}: prompt {prompt_id!r} has {num_prompt_tokens} tokens, sampling.max_tokens is {max_tokens}, "
                f"together they may be {engine.max_tokens}; shorten one of them"
            )
        keys[prompt_id] = engine.keys(request)
    wanted = {key for keys_of_prompt in keys.values() for key in keys_of_prompt}
    records = store.known(wanted)
    num_known = len(records)
    with progress(f"answers of {label}", len(wanted), start=num_known, unit="answers") as bar:
        for record in engine.generate(_distinct(requests, keys), records.keys()):
            store.write(record)
            records[record.key] = record
            bar.advance(tokens=engine.stats().num_drawn_tokens)
    return {prompt_id: {i: records[key] for i, key in enumerate(of_prompt)} for prompt_id, of_prompt in keys.items()}


def _distinct(requests: Sequence[SampleRequest], keys: dict[str, tuple[str, ...]]) -> list[SampleRequest]:
    """Prompts of the same tokens under two ids have the same samples, and they are drawn once."""
    first = {keys[request.prompt.prompt_id]: request for request in reversed(requests)}
    return [request for request in requests if first[keys[request.prompt.prompt_id]] is request]


def sampled_sets(
    name: str,
    candidate: CandidateConfig,
    prompts: Sequence[Prompt],
    settings: EvaluationConfig,
    models: ModelsConfig,
    engine_config: EngineConfig,
    stream: StreamConfig,
    folder: Path,
) -> list[AnswerSet]:
    """The candidate's answers at every temperature."""
    sets = []
    with (
        open_samples(folder / f"{name}.jsonl", settings.answers_stream, stream) as store,
        closing(open_engine(candidate, models, engine_config)) as engine,
    ):
        for temperature in settings.temperatures:
            decoding = decoding_name(temperature)
            records = sample(engine, requests_of(prompts, settings, temperature), store, f"{name}, {decoding}")
            answers = [
                answer_of(record.model_copy(update={"sample_index": index}), prompt)
                for prompt in prompts
                for index, record in records[prompt.prompt_id].items()
            ]
            sets.append(answer_set(name, decoding, prompts, answers))
    return sets


def gather(
    prompts: Sequence[Prompt],
    settings: EvaluationConfig,
    models: ModelsConfig,
    engine: EngineConfig,
    stream: StreamConfig,
    folder: Path,
) -> list[AnswerSet]:
    """Every candidate's answers, one network in memory at a time; files are read before anything is sampled."""
    sets: dict[str, list[AnswerSet]] = {
        name: [read_answers(name, candidate.answers, prompts)]
        for name, candidate in settings.candidates.items()
        if candidate.answers is not None
    }
    # Now, and not after hours of sampling into a stream that lies elsewhere.
    require_place(folder)
    for name, candidate in settings.candidates.items():
        if candidate.answers is None:
            sets[name] = sampled_sets(name, candidate, prompts, settings, models, engine, stream, folder)
    return [one for name in settings.candidates for one in sets[name]]
