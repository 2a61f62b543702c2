"""A few prompts answered by the base model, the aligned model and their contrast, in one batch."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from cong.config import RunConfig
from cong.config.loading import check
from cong.config.models import ModelsConfig, NetworkConfig
from cong.engine import open_engine
from cong.errors import ConfigError
from cong.look.steps import Step, read_steps
from cong.models import NetworkSet, load_networks, roles_of, token_texts
from cong.schemas import Prompt, Role, SampleRecord, SampleRequest, SamplingParameters
from cong.telemetry import progress, track

PAIR: tuple[Role, ...] = ("aligned", "base")
"""In the order of their weights, and of everything that is shown."""
_NUM_FAVOURITES = 4


@dataclass(frozen=True)
class Answer:
    """One answer, token by token."""

    label: str
    record: SampleRecord
    texts: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    """What could have been drawn; of the contrasts' answers only, and where it was asked for."""


@dataclass(frozen=True)
class Look:
    """The answers to one prompt: base, aligned, then every contrast."""

    prompt: Prompt
    answers: tuple[Answer, ...]


def look(config: RunConfig, prompts: Sequence[Prompt], alphas: Sequence[float] = (), *, has_steps: bool) -> list[Look]:
    """Answer each prompt once in every way; without alphas, the contrast is that of `sampling`."""
    pair = _pair_of(config.models)
    looks = _draw(config.model_copy(update={"models": pair}), prompts, decodings(config.sampling, alphas))
    return _with_steps(looks, load_networks(pair)) if has_steps else looks


def decodings(sampling: SamplingParameters, alphas: Sequence[float]) -> dict[str, SamplingParameters]:
    """Every way to answer, by its name: each network alone, from all its tokens, then the contrasts."""
    alone = {"base": (0.0, 1.0), "aligned": (1.0, 0.0)}
    ways = {
        name: sampling.model_copy(update={"weights": weights, "head_lambda": 0.0}) for name, weights in alone.items()
    }
    for alpha in alphas or (sampling.alpha,):
        if alpha is None:
            ways[f"weights={sampling.weights}"] = sampling
            continue
        given = {**sampling.model_dump(exclude={"weights"}), "alpha": alpha}
        ways[f"alpha={alpha:g}"] = check(SamplingParameters, given, f"alpha {alpha:g}")
    return ways


def _pair_of(models: ModelsConfig) -> ModelsConfig:
    pair = models.model_copy(update={"strong": NetworkConfig()})
    if roles_of(pair) != PAIR:
        raise ConfigError("a look needs a pair; set models.aligned.source and models.base.source")
    return pair


def _draw(config: RunConfig, prompts: Sequence[Prompt], ways: Mapping[str, SamplingParameters]) -> list[Look]:
    with closing(open_engine(config.models, config.engine, writer="cong-look")) as engine:
        keys: list[dict[str, str]] = []
        requests: dict[str, SampleRequest] = {}
        for prompt in prompts:
            asked = {way: SampleRequest(prompt=prompt, parameters=parameters) for way, parameters in ways.items()}
            keys.append({way: engine.keys(request)[0] for way, request in asked.items()})
            requests |= {keys[-1][way]: request for way, request in asked.items()}
        drawn: dict[str, tuple[SampleRecord, tuple[str, ...]]] = {}
        with progress("sampling", len(requests), unit="answers") as bar:
            for record in engine.generate(requests.values()):
                texts = token_texts(engine.networks.tokenizer, record.completion_token_ids)
                drawn[record.key] = record, tuple(texts)
                bar.advance(tokens=engine.stats().num_drawn_tokens)
    return [
        Look(prompt, tuple(Answer(way, *drawn[key]) for way, key in of_prompt.items()))
        for prompt, of_prompt in zip(prompts, keys, strict=True)
    ]


def _with_steps(looks: Sequence[Look], networks: NetworkSet) -> list[Look]:
    def read(answer: Answer) -> Answer:
        if answer.label in PAIR:
            return answer
        return replace(answer, steps=tuple(read_steps(networks, answer.record, _NUM_FAVOURITES)))

    shown = track(looks, "reading tokens", unit="prompts")
    return [replace(each, answers=tuple(read(answer) for answer in each.answers)) for each in shown]
