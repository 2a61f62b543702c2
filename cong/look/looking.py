"""A few prompts answered by the base model, the aligned model and their contrast, in one batch."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from cong.config import RunConfig
from cong.config.loading import check
from cong.config.models import ModelsConfig, NetworkConfig
from cong.engine import open_engine
from cong.errors import ConfigError
from cong.look.steps import Step, read_steps
from cong.models import detokenize, load_networks, roles_of
from cong.schemas import Prompt, SampleRecord, SampleRequest, SamplingParameters
from cong.telemetry import progress, track

_PAIR = ("aligned", "base")
_NUM_FAVOURITES = 4


@dataclass(frozen=True)
class Answer:
    """One answer, token by token."""

    label: str
    record: SampleRecord
    texts: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    """What could have been drawn; of contrastive answers only, and where it was asked for."""


@dataclass(frozen=True)
class Look:
    """The answers to one prompt: base, aligned, then every contrast."""

    prompt: Prompt
    answers: tuple[Answer, ...]


def look(config: RunConfig, prompts: Sequence[Prompt], alphas: Sequence[float] = (), *, has_steps: bool) -> list[Look]:
    """Answer each prompt once in every way; without alphas, the contrast is that of `sampling`."""
    pair = _pair_of(config.models)
    ways = decodings(config.sampling, alphas)
    drawn = _draw(config.model_copy(update={"models": pair}), prompts, ways)
    networks = load_networks(pair)
    looks = []
    for prompt, answers in track(list(zip(prompts, drawn, strict=True)), "reading tokens", unit="prompts"):
        read = [
            Answer(
                label,
                record,
                tuple(
                    detokenize(networks.tokenizer, [token_id], with_special_tokens=True)
                    for token_id in record.completion_token_ids
                ),
                tuple(read_steps(networks, record, _NUM_FAVOURITES))
                if has_steps and record.kind == "contrastive"
                else (),
            )
            for label, record in answers.items()
        ]
        looks.append(Look(prompt, tuple(read)))
    return looks


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
    if roles_of(pair) != _PAIR:
        raise ConfigError("a look needs a pair; set models.aligned.source and models.base.source")
    return pair


def _draw(
    config: RunConfig, prompts: Sequence[Prompt], ways: Mapping[str, SamplingParameters]
) -> list[dict[str, SampleRecord]]:
    """Each prompt's answers by their names."""
    with closing(open_engine(config.models, config.engine, writer="cong-look")) as engine:
        keys: list[dict[str, str]] = []
        requests: dict[str, SampleRequest] = {}
        for prompt in prompts:
            asked = {way: SampleRequest(prompt=prompt, parameters=parameters) for way, parameters in ways.items()}
            keys.append({way: engine.keys(request)[0] for way, request in asked.items()})
            requests |= {keys[-1][way]: request for way, request in asked.items()}
        records: dict[str, SampleRecord] = {}
        with progress("sampling", len(requests), unit="answers") as bar:
            for record in engine.generate(requests.values()):
                records[record.key] = record
                bar.advance(tokens=engine.stats().num_drawn_tokens)
    return [{way: records[key] for way, key in of_prompt.items()} for of_prompt in keys]
