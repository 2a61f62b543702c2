"""What a pipeline's report is made of, read from what its stages have left."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cong.config import dump_config
from cong.evaluation import EvaluationResult, SweepPoint
from cong.models import load_tokenizer, token_texts
from cong.pipeline.attempt import FAILURES, read_lines
from cong.pipeline.board import Board, Standing
from cong.pipeline.costs import Cost, cost_of
from cong.pipeline.stage import Product
from cong.pipeline.task import STREAM
from cong.pipeline.work import SIDE_BY_SIDE, SWEEP
from cong.report import Comparison, Response, Samples, Token
from cong.stream import StreamReader, open_store
from cong.train.software import environment

_MAX_SHOWN = 6
"""Samples of a stage that are shown."""


@dataclass(frozen=True)
class Trained:
    """How one stage's training went."""

    name: str
    about: str
    metrics: Sequence[Mapping[str, Any]]
    """One line per optimiser step."""


@dataclass(frozen=True)
class Drawn:
    """What the samples of one stage are like."""

    name: str
    about: str
    num_records: int
    num_cut: int
    """Ended by the limit of length."""
    lengths: Sequence[int]
    """Tokens."""
    rewards: Sequence[float]
    """Implicit reward per token, where a pair has drawn them."""
    first: Mapping[str, tuple[str, Response]]
    """The first of them: prompt id -> prompt and sample, token by token."""


@dataclass(frozen=True)
class Judged:
    """What an evaluation has left."""

    result: EvaluationResult
    answers: Sequence[Mapping[str, Any]]
    """Every answer with its reward by each judge."""
    samples: Sequence[Samples]


@dataclass(frozen=True)
class Swept:
    """The weak pair at several strengths of contrast."""

    points: Sequence[SweepPoint]
    alpha: float | None
    """Of the samples that were trained on; None = they were not drawn by one."""


@dataclass(frozen=True)
class Material:
    """Everything that the page is made of."""

    methods: Sequence[str]
    stages: Sequence[tuple[Standing, Cost]]
    given: Mapping[str, Product]
    trained: Sequence[Trained]
    drawn: Sequence[Drawn]
    failures: Sequence[tuple[str, Mapping[str, Any]]]
    judged: Judged | None
    swept: Swept | None
    configuration: str
    software: Mapping[str, str]


def read_material(board: Board) -> Material:
    """What stages that are all done have left."""
    standings = [board.look(stage) for stage in board.stages if stage.kind != "report"]
    judged = next((_judged(each) for each in standings if each.stage.kind == "evaluate"), None)
    return Material(
        methods=board.config.pipeline.methods,
        stages=[(standing, cost_of(standing)) for standing in standings],
        given={name: board.given[name] for name in sorted(board.given.names)},
        trained=[_trained(each) for each in standings if each.stage.kind == "train"],
        drawn=[_drawn(each, board) for each in standings if each.stage.kind == "sample"],
        failures=list(_failures(standings)),
        judged=judged,
        swept=next((_swept(each, board) for each in standings if each.stage.kind == "sweep"), None),
        configuration=dump_config(board.config),
        software=environment(),
    )


def _folder(standing: Standing) -> Path:
    assert standing.folder is not None, f"{standing.stage.name} is not done"
    return standing.folder


def _trained(standing: Standing) -> Trained:
    return Trained(standing.stage.name, standing.stage.about, read_lines(_folder(standing) / "metrics.jsonl"))


def _drawn(standing: Standing, board: Board) -> Drawn:
    lengths: list[int] = []
    rewards: list[float] = []
    num_cut = num_records = 0
    columns = ("num_tokens", "implicit_reward_mean", "finish_reason")
    for table, _ in StreamReader(open_store(str(_folder(standing) / STREAM))).tables(4096, columns):
        num_records += table.num_rows
        num_cut += sum(reason == "length" for reason in table.column("finish_reason").to_pylist())
        lengths += table.column("num_tokens").to_pylist()
        rewards += [one for one in table.column("implicit_reward_mean").to_pylist() if one is not None]
    first = dict(_first_samples(standing, board))
    return Drawn(standing.stage.name, standing.stage.about, num_records, num_cut, lengths, rewards, first)


def _first_samples(standing: Standing, board: Board) -> Iterator[tuple[str, tuple[str, Response]]]:
    """The stage's samples of the first prompts, token by token, with the log-ratio where a pair has drawn them."""
    products = board.products(standing.stage)
    network = (products.get("strong") or products["aligned"]).network
    assert network is not None, f"{standing.stage.name} samples from networks"
    tokenizer = load_tokenizer(network.source, revision=network.revision)
    records = StreamReader(open_store(str(_folder(standing) / STREAM))).records()
    for record in itertools.islice(records, _MAX_SHOWN):
        texts = token_texts(tokenizer, record.completion_token_ids)
        pair = [record.logprobs[role] for role in ("aligned", "base") if role in record.logprobs]
        if len(pair) == 2:
            tokens = [Token.of_pair(*each) for each in zip(texts, *pair, strict=True)]
        else:
            tokens = [Token(text) for text in texts]
        response = Response(standing.stage.name, tokens, record.implicit_reward_mean)
        yield record.prompt.prompt_id, (record.prompt.shown, response)


def _failures(standings: list[Standing]) -> Iterator[tuple[str, dict[str, Any]]]:
    for standing in standings:
        for line in read_lines(_folder(standing) / FAILURES):
            yield standing.stage.name, line


def _judged(standing: Standing) -> Judged:
    folder = _folder(standing)
    result = EvaluationResult.model_validate_json((folder / "evaluation.json").read_bytes())
    shown = json.loads((folder / SIDE_BY_SIDE).read_text(encoding="utf-8"))
    return Judged(result, read_lines(folder / "judged.jsonl"), [_samples(each) for each in shown])


def _swept(standing: Standing, board: Board) -> Swept:
    points = json.loads((_folder(standing) / SWEEP).read_text(encoding="utf-8"))
    alpha = board.config.sampling.alpha
    return Swept([SweepPoint.model_validate(point) for point in points], None if alpha is None else round(alpha, 12))


def _samples(content: dict[str, Any]) -> Samples:
    comparisons = [
        Comparison(
            each["prompt"],
            [
                Response(one["label"], [Token(**token) for token in one["tokens"]], one["reward"])
                for one in each["responses"]
            ],
        )
        for each in content["comparisons"]
    ]
    rest = {name: value for name, value in content.items() if name != "comparisons"}
    return Samples(comparisons, **rest)
