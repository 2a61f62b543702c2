"""How fast steps went, and what a run's metrics tell of those that are done. Knows no files."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

WAITING_SHARE = 0.2
"""From this share of the time on, waiting for data is called the bottleneck."""
EVALUATION = "eval/"
"""Names of an evaluation's numbers begin so."""


@dataclass(frozen=True)
class Pace:
    """Tokens and time of some steps, evaluation and saving left out."""

    num_tokens: int = 0
    wait_s: float = 0.0
    compute_s: float = 0.0
    peak_s: float = 0.0
    """What the matrix products would take at the devices' peak; 0 where that is not known."""

    def __add__(self, other: "Pace") -> "Pace":
        return Pace(
            self.num_tokens + other.num_tokens,
            self.wait_s + other.wait_s,
            self.compute_s + other.compute_s,
            self.peak_s + other.peak_s,
        )

    @property
    def tokens_per_s(self) -> float:
        """Waiting included."""
        return self._per_second(self.num_tokens)

    @property
    def arithmetic_share(self) -> float:
        """Share of what the devices could have computed in the time."""
        return self._per_second(self.peak_s)

    @property
    def bottleneck(self) -> str:
        """What is waited for most: data or computing."""
        return "data" if self._per_second(self.wait_s) > WAITING_SHARE else "compute"

    def _per_second(self, amount: float) -> float:
        seconds = self.wait_s + self.compute_s
        return amount / seconds if seconds else 0.0


@dataclass(frozen=True)
class Told:
    """What a run's metrics say of it up to where it goes on."""

    pace: Pace = Pace()
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Of the last step, and of the last evaluation."""
    judged_step: int | None = None
    """Of the last evaluation."""

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]], first_step: int) -> Self:
        """From the lines of the steps before `first_step`."""
        pace, numbers, judged_step = Pace(), dict[str, float](), None
        for line in lines:
            step = int(line["step"])
            values = {name: math.nan if value is None else value for name, value in line.items() if name != "step"}
            if step < first_step:
                numbers |= values
                pace += _pace_of(values)
                judged_step = step if any(name.startswith(EVALUATION) for name in values) else judged_step
        return cls(pace, numbers, judged_step)

    def to_json(self) -> str:
        """For other ranks."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What another rank knows."""
        content = json.loads(text)
        return cls(Pace(**content["pace"]), content["numbers"], content["judged_step"])


def _pace_of(values: Mapping[str, float]) -> Pace:
    """Of the steps that a line is about; an evaluation's is about none."""
    wait_s, compute_s = values.get("wait_s", 0.0), values.get("compute_s", 0.0)
    seconds = wait_s + compute_s
    num_tokens = round(values.get("tokens_per_s", 0.0) * seconds)
    return Pace(num_tokens, wait_s, compute_s, values.get("arithmetic_share", 0.0) * seconds)
