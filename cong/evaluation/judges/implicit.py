"""A judge that is a pair of networks: how much likelier the aligned one finds an answer than the one it came from."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing

from cong.config.engine import EngineConfig
from cong.config.evaluation import ImplicitJudge
from cong.config.models import ModelsConfig, NetworkConfig
from cong.engine import LocalEngine, Rate, Rated, open_engine
from cong.errors import ConfigError, EvaluationError, RequestError
from cong.evaluation.answers import Answer
from cong.evaluation.judging import Measurement, Reading, TokenReading
from cong.models import (
    NetworkSet,
    encode_completion,
    fingerprint_adapter,
    fingerprint_tokenizer,
    fingerprint_weights,
    open_artefact,
    token_texts,
)
from cong.schemas import Score, content_key, log_ratio


class ImplicitReward:
    """log p_aligned - log p_base, per token or over the whole answer, through the engine's scoring."""

    def __init__(
        self,
        name: str,
        settings: ImplicitJudge,
        models: ModelsConfig,
        engine: EngineConfig,
        shown_prompts: frozenset[str] = frozenset(),
    ) -> None:
        self.name = name
        self.sums_tokens = True
        self.reward_ends = (-math.inf, math.inf)
        self.form = settings.form
        self._engine_config = engine
        self._shown_prompts = shown_prompts
        """Ids of prompts whose answers are read token by token."""
        pair = pair_of(name, settings, models)
        self.about = f"log p({pair.aligned.source}) - log p({pair.base.source}), {self.form}, {pair.dtype}"
        self._pair = pair
        self.fingerprint = _fingerprint(pair)

    def measure(self, answers: Sequence[Answer]) -> Iterator[Reading]:
        """Sums of the log-ratio, as the engine finishes them."""
        with closing(open_engine(self._pair, self._engine_config)) as engine:
            for answer, score in score_answers(engine, answers):
                aligned, base = score.logprobs["aligned"], score.logprobs["base"]
                tokens: tuple[TokenReading, ...] = ()
                if answer.prompt.prompt_id in self._shown_prompts:
                    texts = token_texts(engine.networks.tokenizer, score.completion_token_ids)
                    tokens = tuple(TokenReading(*each) for each in zip(texts, aligned, base, strict=True))
                yield Reading(answer, log_ratio(aligned, base), len(aligned), tokens=tokens)

    def is_enough(self, answer: Answer, measurement: Measurement) -> bool:
        """Whether the tokens are there where they are shown."""
        is_shown = answer.prompt.prompt_id in self._shown_prompts
        return not is_shown or len(measurement.tokens) == measurement.num_tokens

    def reward(self, measurement: Measurement) -> float:
        """The sum, or the mean per token; an answer without tokens has neither evidence for it nor against it: 0."""
        if self.form == "sum":
            return measurement.value
        return measurement.value / measurement.num_tokens if measurement.num_tokens else 0.0


def pair_of(name: str, settings: ImplicitJudge, models: ModelsConfig) -> ModelsConfig:
    """The pair as a deployment of its own; what the judge does not name is that of the run."""
    aligned = settings.aligned if settings.aligned.source else models.aligned
    base = settings.base if settings.base.source else models.base
    for role, network in (("aligned", aligned), ("base", base)):
        if not network.source:
            raise ConfigError(
                f"judge {name!r} needs a pair: set evaluation.judges.{name}.{role}.source or models.{role}.source"
            )
    return models.model_copy(update={"strong": NetworkConfig(), "aligned": aligned, "base": base})


def completion_ids(answer: Answer, networks: NetworkSet) -> tuple[int, ...]:
    """An answer as tokens of the networks: as drawn where the tokenizer is theirs, else its text and an end."""
    tokenizer = networks.tokenizer
    if answer.token_ids and answer.tokenizer_fingerprint == tokenizer.fingerprint:
        return answer.token_ids
    ids = encode_completion(tokenizer, answer.text)
    if tokenizer.eos_id is not None and not answer.is_truncated:
        ids.append(tokenizer.eos_id)
    return tuple(ids)


def score_answers(engine: LocalEngine, answers: Sequence[Answer]) -> Iterator[tuple[Answer, Score]]:
    """Log-probabilities of answers under the engine's networks, as they are finished."""
    waiting = deque(enumerate(answers))
    running: dict[str, Answer] = {}
    roles = [identity.role for identity in engine.identities]
    while waiting or running:
        while waiting and len(running) < engine.max_running:
            number, answer = waiting.popleft()
            ids = completion_ids(answer, engine.networks)
            if not ids:
                yield (
                    answer,
                    Score(
                        prompt_id=answer.prompt.prompt_id,
                        completion_token_ids=(),
                        logprobs=dict.fromkeys(roles, ()),
                    ),
                )
                continue
            try:
                engine.score(Rate(f"rate-{number}", answer.prompt, ids))
            except RequestError as error:
                raise EvaluationError(f"{answer.where} cannot be scored: {error}") from error
            running[f"rate-{number}"] = answer
        for event in engine.events() if running else ():
            if isinstance(event, Rated):
                yield running.pop(event.request_id), event.score


def _fingerprint(pair: ModelsConfig) -> str:
    template = None if pair.chat_template is None else pair.chat_template.read_text(encoding="utf-8")
    parts: list[str | None] = ["implicit", pair.dtype]
    for network in (pair.aligned, pair.base):
        folder = open_artefact(network.source, revision=network.revision, root=pair.root).folder
        parts += [fingerprint_weights(folder), fingerprint_tokenizer(folder, template)]
        if network.adapter is not None:
            adapter = open_artefact(network.adapter, root=pair.root).folder
            parts += [fingerprint_adapter(adapter), fingerprint_tokenizer(adapter, template)]
    return content_key(parts)
