"""Answers of a weak pair at several strengths of contrast, judged: what the contrast does before any training."""

from collections.abc import Sequence

from cong.config import RunConfig
from cong.engine import Engine
from cong.errors import ConfigError
from cong.evaluation.answers import AnswerSet, answer_of, answer_set, decoding_name, held_out_prompts
from cong.evaluation.judges.opening import open_judges
from cong.evaluation.judging import judge_answers
from cong.evaluation.results import SetResult
from cong.evaluation.sampling import sample
from cong.evaluation.storage import open_samples
from cong.evaluation.summary import set_result
from cong.models import load_networks
from cong.schemas import Prompt, Record, SampleRequest, alpha_weights


class SweepPoint(Record):
    """What came of one strength of contrast."""

    alpha: float
    found: SetResult
    mean_num_tokens: float
    """Of an answer, its end included."""


def sweep(config: RunConfig, alphas: Sequence[float]) -> list[SweepPoint]:
    """Every strength on every held-out prompt, decoded otherwise as `sampling` says; continues what was killed."""
    if not alphas:
        raise ConfigError("there are no alphas to look at; give at least one")
    prompts = held_out_prompts(config.evaluation)
    pair = config.models.model_copy(update={"strong": type(config.models.strong)()})
    judges = open_judges(config.evaluation, config.models, config.engine, frozenset())
    sets = []
    folder = config.output_dir
    with open_samples(folder / "answers" / "pair.jsonl", config.evaluation.answers_stream, config.stream) as store:
        engine = Engine(load_networks(pair), config.engine, writer="cong-evaluate")
        for alpha in alphas:
            parameters = config.sampling.model_copy(update={"weights": alpha_weights(alpha)})
            requests = [SampleRequest(prompt=prompt, parameters=parameters) for prompt in prompts]
            records = sample(engine, requests, store, f"the pair, alpha={alpha:g}")
            answers = [answer_of(records[prompt.prompt_id][0], prompt) for prompt in prompts]
            sets.append(answer_set(f"alpha={alpha:g}", decoding_name(parameters.temperature), prompts, answers))
        del engine
    judged = [judge_answers(judge, sets, folder / "judgements") for judge in judges]
    return [
        SweepPoint(alpha=alpha, found=set_result(one, judged), mean_num_tokens=_mean_num_tokens(one, prompts))
        for alpha, one in zip(alphas, sets, strict=True)
    ]


def _mean_num_tokens(one: AnswerSet, prompts: Sequence[Prompt]) -> float:
    return sum(len(answer.token_ids) for answer in one.answers) / len(prompts)
