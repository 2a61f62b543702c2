"""What a report page holds, as data: sections of prose, tables, figures, and samples coloured token by token.

All text is plain text: nothing in it is read as HTML or Markdown. How it looks is decided in `rendering`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cong.report.plots import Plot
from cong.report.tables import Table


@dataclass(frozen=True)
class Prose:
    """Paragraphs, separated by blank lines; `code` between backticks is set as code."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A plot with its caption; the caption is also what a screen reader says."""

    plot: Plot
    caption: str


@dataclass(frozen=True)
class Details:
    """Preformatted text behind a heading that unfolds it: a raw configuration, a log."""

    title: str
    text: str


@dataclass(frozen=True)
class Token:
    """One token of a response; what was not measured is empty or None."""

    text: str
    # Log-probability under each network of the samples block, in its order.
    logprobs: Sequence[float] = ()
    # Log-ratio that gives the colour, in nats.
    ratio: float | None = None

    @classmethod
    def of_pair(cls, text: str, one: float, other: float) -> "Token":
        """With its log-probabilities under two networks, coloured by who finds it likelier."""
        return cls(text, (one, other), one - other)


@dataclass(frozen=True)
class Response:
    """A response of one model or decoding, with its gold reward where there is one."""

    label: str
    tokens: Sequence[Token]
    reward: float | None = None

    @property
    def mean_ratio(self) -> float | None:
        """Log-ratio per token, over the tokens that have one."""
        ratios = [token.ratio for token in self.tokens if token.ratio is not None]
        return sum(ratios) / len(ratios) if ratios else None


@dataclass(frozen=True)
class Comparison:
    """Responses to one prompt, side by side."""

    prompt: str
    responses: Sequence[Response]


@dataclass(frozen=True)
class Samples:
    """Responses whose tokens are coloured by a log-ratio between networks."""

    comparisons: Sequence[Comparison]
    # Names of the networks; of a pair, a positive log-ratio is in favour of the first.
    networks: Sequence[str]
    # Log-ratio, in nats, that gets the full colour.
    full_colour_nats: float = 3.0
    reward_label: str = "gold reward"

    def __post_init__(self) -> None:
        assert self.full_colour_nats > 0, f"full_colour_nats is {self.full_colour_nats}, must be positive"
        for comparison in self.comparisons:
            for response in comparison.responses:
                for token in response.tokens:
                    assert len(token.logprobs) in (0, len(self.networks)), (
                        f"{response.label}: {len(token.logprobs)} log-probabilities for {len(self.networks)} networks"
                    )


Block = Prose | Table | Figure | Details | Samples


@dataclass(frozen=True)
class Section:
    """A titled part of the page, named in the table of contents."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report: what came out, what was run and from what, and the evidence."""

    title: str
    # Paragraphs, as in Prose.
    summary: str
    sections: Sequence[Section]
    # What was run and from what: versions, seeds, conditions.
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    # Few headline numbers, shown large.
    headlines: Mapping[str, str] = field(default_factory=dict)
