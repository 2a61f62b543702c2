"""A few samples of the weak pair side by side, for the terminal: tokens coloured by log(aligned / base)."""

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cong.config.lab import LabConfig
from cong.lab.answers import ask
from cong.lab.bases import get_base
from cong.lab.cache import Cache
from cong.lab.stages import align, contrastive_parameters, held_out_prompts, plain_parameters
from cong.lab.views import side_by_side
from cong.lab.world import ideal_response
from cong.report import Response, Samples


def sample_pair(config: LabConfig, cache: Cache, num_prompts: int) -> Samples:
    """Samples of base, aligned and contrast for the first test prompts."""
    base = get_base(config, "weak", cache)
    aligned = align(base, config, "aligning the weak model by DPO").network
    prompts = held_out_prompts(config)[:num_prompts]
    rules = {
        "base": ([base], plain_parameters(config)),
        "aligned": ([aligned], plain_parameters(config)),
        "contrastive": ([aligned, base], contrastive_parameters(config)),
    }
    answers = {name: ask(pair, prompts, rule, "evaluation", config.seed) for name, (pair, rule) in rules.items()}
    return side_by_side(answers, num_prompts, aligned, base)


def _coloured(response: Response, full_colour_nats: float) -> Text:
    text = Text()
    for token in response.tokens:
        strength = 0.0 if token.ratio is None else max(-1.0, min(1.0, token.ratio / full_colour_nats))
        rest = round(200 * (1.0 - abs(strength)))
        colour = f"rgb({rest},200,{rest})" if strength >= 0 else f"rgb(230,{rest},{rest})"
        text.append(token.text, Style(color=colour, bold=abs(strength) > 0.5))
    return text


def to_rich_samples(samples: Samples) -> Group:
    """The samples as a table for a terminal, with what its colours mean."""
    table = Table(title="samples of the weak pair, each with its gold reward", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("prompt", no_wrap=True)
    table.add_column("ideal", no_wrap=True)
    for response in samples.comparisons[0].responses:
        table.add_column(response.label, min_width=len(response.label), overflow="fold")
    for comparison in samples.comparisons:
        cells = [Text(comparison.prompt), Text(ideal_response(comparison.prompt))]
        for response in comparison.responses:
            reward = Text("" if response.reward is None else f"{response.reward:.2f}\u00a0", "dim")
            cells.append(reward.append_text(_coloured(response, samples.full_colour_nats)))
        table.add_row(*cells)
    legend = Text.assemble(
        ("green", "rgb(0,200,0)"),
        " = the aligned model prefers the token, ",
        ("red", "rgb(230,0,0)"),
        " = the base model does",
    )
    return Group(table, legend)
