"""A whole evaluation: gather answers, judge, compare, leave a record and a report; continues one that was killed."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cong.config import RunConfig, dump_config
from cong.config.models import ModelsConfig
from cong.errors import ConfigError
from cong.evaluation.answers import AnswerSet, held_out_prompts
from cong.evaluation.judges.opening import open_judges
from cong.evaluation.judging import Judged, judge_answers
from cong.evaluation.misfit import token_misfit
from cong.evaluation.page import evaluation_page
from cong.evaluation.results import EvaluationResult, MisfitResult
from cong.evaluation.sampling import gather, network_of
from cong.evaluation.summary import Sets, summarise
from cong.files import write_file
from cong.models import join_networks, load_networks
from cong.report import write_html, write_markdown
from cong.schemas import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What was found, and everything it was found from."""

    result: EvaluationResult
    prompts: tuple[Prompt, ...]
    sets: tuple[AnswerSet, ...]
    judged: tuple[Judged, ...]
    """In the order of the judges."""


def evaluate(config: RunConfig) -> Evaluation:
    """Evaluate what a configuration names; what an earlier run left in the output folder is not made again."""
    settings, folder = config.evaluation, config.output_dir
    if not settings.candidates:
        raise ConfigError("evaluation.candidates is empty; name at least one")
    prompts = held_out_prompts(settings)
    shown = frozenset(prompt.prompt_id for prompt in prompts[: settings.num_shown_prompts])
    judges = open_judges(settings, config.models, config.engine, shown)
    sets = gather(prompts, settings, config.models, config.engine, config.stream, folder / "answers")
    _name_gaps(sets)
    judged = [judge_answers(judge, sets, folder / "judgements") for judge in judges]
    result = summarise(sets, judged, settings, _misfits(config, sets), len(prompts))
    return Evaluation(result, tuple(prompts), tuple(sets), tuple(judged))


def _name_gaps(sets: Sequence[AnswerSet]) -> None:
    for one in sets:
        if one.missing:
            logger.warning("%s: no answer to %d prompts (%s)", one.label, len(one.missing), ", ".join(one.missing[:5]))
        if one.unknown:
            logger.warning(
                "%s: %d prompt ids are not among the held-out prompts (%s); their answers are left out",
                one.label,
                len(one.unknown),
                ", ".join(one.unknown[:5]),
            )


def _misfits(config: RunConfig, sets: Sequence[AnswerSet]) -> list[MisfitResult]:
    """Of the student to the weak model, on the answers of each."""
    settings = config.evaluation
    if settings.misfit is None:
        return []
    student, weak = settings.misfit.student, settings.misfit.weak
    pair = [
        load_networks(_as_role(network_of(settings.candidates[name], config.models), role)).networks[0]
        for name, role in ((student, "strong"), (weak, "aligned"))
    ]
    networks = join_networks(pair)
    grouped = Sets(sets, settings)
    answered = [grouped.of(name, grouped.decodings[0]) for name in (student, weak)]
    return [token_misfit(networks, one, student, weak) for one in answered]


def _as_role(models: ModelsConfig, role: str) -> ModelsConfig:
    """The only network of a deployment in another role: a set of networks has each role once."""
    return models.model_copy(update={"strong": type(models.strong)(), role: models.strong})


def write_evaluation(evaluation: Evaluation, config: RunConfig) -> dict[str, Path]:
    """Leave the configuration, the record, every judged answer and the report in the output folder."""
    folder = config.output_dir
    files = {
        "config": folder / "config.yaml",
        "result": folder / "evaluation.json",
        "answers": folder / "judged.jsonl",
        "report": folder / "report.html",
        "page": folder / "report.md",
    }
    write_file(files["config"], dump_config(config).encode())
    write_file(files["result"], (evaluation.result.model_dump_json(indent=1) + "\n").encode())
    write_file(files["answers"], _judged_lines(evaluation).encode())
    page = evaluation_page(evaluation.result, evaluation.sets, evaluation.judged, config)
    write_html(page, files["report"])
    write_markdown(page, files["page"])
    return files


def _judged_lines(evaluation: Evaluation) -> str:
    lines = []
    for one in evaluation.sets:
        for answer in one.answers:
            row = {
                "prompt_id": answer.prompt.prompt_id,
                "candidate": one.candidate,
                "decoding": one.decoding,
                "sample_index": answer.sample_index,
                "answer": answer.text,
                "is_truncated": answer.is_truncated,
                "rewards": {judged.judge.name: judged.reward(answer) for judged in evaluation.judged},
            }
            lines.append(json.dumps(row, ensure_ascii=True) + "\n")
    return "".join(lines)
