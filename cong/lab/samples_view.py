"""A few samples of the weak pair side by side."""

from cong.config.lab import LabConfig
from cong.lab.answers import ask
from cong.lab.bases import get_base
from cong.lab.cache import Cache
from cong.lab.stages import align, contrastive_parameters, held_out_prompts, plain_parameters
from cong.lab.views import side_by_side
from cong.lab.world import ideal_response
from cong.report import Comparison, Response, Samples, Token


def sample_pair(config: LabConfig, cache: Cache, num_prompts: int) -> Samples:
    """The ideal answers to the first test prompts, and samples of base, aligned and contrast."""
    base = get_base(config, "weak", cache)
    aligned = align(base, config, "aligning the weak model by DPO").network
    prompts = held_out_prompts(config)[:num_prompts]
    rules = {
        "base": ([base], plain_parameters(config)),
        "aligned": ([aligned], plain_parameters(config)),
        "contrastive": ([aligned, base], contrastive_parameters(config)),
    }
    answers = {name: ask(pair, prompts, rule, "evaluation", config.seed) for name, (pair, rule) in rules.items()}
    drawn = side_by_side(answers, num_prompts, aligned, base)
    comparisons = [Comparison(one.prompt, [_ideal(one.prompt), *one.responses]) for one in drawn.comparisons]
    return Samples(comparisons, drawn.networks)


def _ideal(prompt: str) -> Response:
    return Response("ideal", [Token(ideal_response(prompt))])
