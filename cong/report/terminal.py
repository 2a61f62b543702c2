"""Samples for a terminal: a line an answer, its tokens coloured by the log-ratio."""

from rich import box
from rich.color import Color, blend_rgb
from rich.color_triplet import ColorTriplet
from rich.console import Group
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from cong.report.page import Response, Samples
from cong.report.rendering import visible
from cong.report.theme import COLOURS

_GREY = ColorTriplet(140, 140, 140)
"""Of a token on which both networks agree; seen on light and dark."""


def samples_to_rich(samples: Samples) -> Group:
    """The samples below their prompts, and what the colours mean."""
    responses = [response for comparison in samples.comparisons for response in comparison.responses]
    has_rewards = any(response.reward is not None for response in responses)
    shown = RichTable(box=box.SIMPLE_HEAD)
    shown.add_column("answer of", no_wrap=True)
    if has_rewards:
        shown.add_column(samples.reward_label, justify="right", no_wrap=True)
    shown.add_column("log-ratio", justify="right", no_wrap=True)
    shown.add_column("text", overflow="fold")
    for comparison in samples.comparisons:
        shown.add_section()
        nothing = [""] * (len(shown.columns) - 2)
        shown.add_row(Text("prompt", "dim"), *nothing, Text(visible(comparison.prompt), "dim"))
        for response in comparison.responses:
            rewards = [_number(response.reward, ".2f")] if has_rewards else []
            ratio = _number(response.mean_ratio, "+.2f")
            shown.add_row(response.label, *rewards, ratio, _coloured(response, samples.full_colour_nats))
    return Group(shown, _legend(*samples.networks)) if len(samples.networks) == 2 else Group(shown)


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else f"{value:{spec}}"


def _coloured(response: Response, full_colour_nats: float) -> Text:
    text = Text()
    for token in response.tokens:
        style = Style()
        if token.ratio is not None:
            strength = max(-1.0, min(1.0, token.ratio / full_colour_nats))
            style = Style(color=_colour(strength), bold=abs(strength) > 0.5)
        text.append(visible(token.text), style)
    return text


def _colour(strength: float) -> Color:
    """From grey to the full colour of whom the token speaks for; those of a page."""
    full = Color.parse(COLOURS["series-1" if strength >= 0 else "series-2"].dark).get_truecolor()
    return Color.from_triplet(blend_rgb(_GREY, full, abs(strength)))


def _legend(one: str, other: str) -> Text:
    return Text.assemble(
        "log-ratio per token, nats: ",
        ("blue", Style(color=_colour(1.0))),
        f" where {one} finds the token likelier, ",
        ("orange", Style(color=_colour(-1.0))),
        f" where {other} does",
    )
