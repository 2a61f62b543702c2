"""Colours of pages and plots, by role, for light and dark pages.

The series colours are those of Okabe and Ito (2008), told apart under the common forms of colour blindness; yellow is
left out because it vanishes on white. Plots are drawn in the light colours; inside a page each becomes a CSS variable.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """One role's colour on a light and on a dark page; light values are unique, they identify the role in an SVG."""

    light: str
    dark: str


COLOURS = {
    "paper": Colour("#ffffff", "#15181c"),
    "raised": Colour("#f6f7f9", "#1d2126"),
    "ink": Colour("#1b1f24", "#e6e8eb"),
    "muted": Colour("#5b6470", "#9ba5b1"),
    "rule": Colour("#d9dde2", "#353b43"),
    "grid": Colour("#e9ecef", "#272c33"),
    "link": Colour("#0b62a8", "#6cb6f0"),
    "good": Colour("#1a7f4b", "#4fc587"),
    "bad": Colour("#b3261e", "#f28b82"),
    "series-1": Colour("#0072b2", "#4ba6e0"),
    "series-2": Colour("#d55e00", "#f08a3c"),
    "series-3": Colour("#009e73", "#2fc79b"),
    "series-4": Colour("#cc79a7", "#e29bc4"),
    "series-5": Colour("#56b4e9", "#9ad4f7"),
    "series-6": Colour("#e69f00", "#f5bf4f"),
    "series-7": Colour("#6f4e9c", "#b79ae0"),
    "series-8": Colour("#7a7f87", "#b5bbc4"),
}

SERIES = tuple(colour.light for role, colour in COLOURS.items() if role.startswith("series-"))


def css_variables(*, is_dark: bool) -> str:
    """The declarations `--role: colour;` of one page theme."""
    return " ".join(f"--{role}: {colour.dark if is_dark else colour.light};" for role, colour in COLOURS.items())
