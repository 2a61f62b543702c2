"""What a judge is, and judging: every answer is measured once, and what is known is kept under the judge's fingerprint.

Knows no particular judge.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from cong.errors import EvaluationError
from cong.evaluation.answers import Answer, AnswerSet
from cong.evaluation.storage import Keyed, KeyedLines
from cong.schemas import Prompt
from cong.telemetry import progress


class TokenReading(NamedTuple):
    """One token of an answer as a pair of networks sees it."""

    text: str
    aligned: float
    """Log-probability."""
    base: float
    """Log-probability."""


class Reading(NamedTuple):
    """What a judge says of one answer."""

    answer: Answer
    value: float
    num_tokens: int | None = None
    """Tokens of the answer as the judge read it; None = it reads no tokens."""
    num_cut: int = 0
    """Tokens that it could not read for lack of room."""
    tokens: tuple[TokenReading, ...] = ()
    """Token by token, for answers that are shown."""


class Measurement(Keyed):
    """A reading as it is kept."""

    value: float
    num_tokens: int | None = None
    num_cut: int = 0
    tokens: tuple[TokenReading, ...] = ()


class Judge(Protocol):
    """Whoever gives answers a reward."""

    @property
    def name(self) -> str:
        """How tables name it."""
        ...

    @property
    def about(self) -> str:
        """What it is, for people."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names everything that its measurements depend on."""
        ...

    @property
    def sums_tokens(self) -> bool:
        """Whether a measurement's value is a sum over the answer's tokens."""
        ...

    @property
    def reward_ends(self) -> tuple[float, float]:
        """The least and the largest reward that it may give; infinite where there is none."""
        ...

    def measure(self, answers: Sequence[Answer]) -> Iterator[Reading]:
        """Readings of the answers in any order; loads what it needs, and lets it go at the end."""
        ...

    def is_enough(self, answer: Answer, measurement: Measurement) -> bool:
        """Whether a measurement that was kept says all that is asked now."""
        ...

    def reward(self, measurement: Measurement) -> float:
        """The reward that a measurement means."""
        ...


@dataclass(frozen=True)
class Judged:
    """All answers under one judge."""

    judge: Judge
    measurements: Mapping[str, Measurement]
    """By the answer's key."""

    def reward(self, answer: Answer) -> float:
        """Reward of an answer."""
        return self.judge.reward(self.measurements[answer.key])

    def rewards(self, answers: AnswerSet) -> dict[str, list[float]]:
        """Rewards by prompt id, in the order of the samples."""
        return {prompt: [self.reward(answer) for answer in group] for prompt, group in answers.by_prompt.items()}


def judge_answers(judge: Judge, sets: Sequence[AnswerSet], folder: Path | None = None) -> Judged:
    """Measure what is not known yet; with a folder, what is known outlives this process."""
    answers = {answer.key: answer for one in sets for answer in one.answers}
    if folder is None:
        return Judged(judge, _measure(judge, answers, {}, None))
    store = KeyedLines(folder / f"{judge.fingerprint}.jsonl", Measurement)
    try:
        return Judged(judge, _measure(judge, answers, store.known(answers.keys()), store))
    finally:
        store.close()


def _measure(
    judge: Judge, answers: dict[str, Answer], known: dict[str, Measurement], store: KeyedLines[Measurement] | None
) -> dict[str, Measurement]:
    measurements = {key: kept for key, kept in known.items() if judge.is_enough(answers[key], kept)}
    missing = [answer for key, answer in answers.items() if key not in measurements]
    with progress(f"judging by {judge.name}", len(answers), start=len(measurements), unit="answers") as bar:
        for reading in judge.measure(missing) if missing else ():
            if not math.isfinite(reading.value):
                raise EvaluationError(
                    f"judge {judge.name!r} says {reading.value} of {reading.answer.where}; a reward must be a finite "
                    "number: correct the judge, or remove the answer"
                )
            measurement = Measurement(
                key=reading.answer.key,
                value=reading.value,
                num_tokens=reading.num_tokens,
                num_cut=reading.num_cut,
                tokens=reading.tokens,
            )
            if store is not None:
                store.write(measurement)
            measurements[measurement.key] = measurement
            bar.advance()
    unjudged = [answer.where for key, answer in answers.items() if key not in measurements]
    if unjudged:
        raise EvaluationError(f"judge {judge.name!r} says nothing of {unjudged[0]} and {len(unjudged) - 1} others")
    return measurements


def prompt_text(answer: Answer) -> str:
    """What a judge of texts takes for the prompt: the text, or of a chat the last thing the user said."""
    prompt: Prompt = answer.prompt
    if prompt.text is not None:
        return prompt.text
    said = [message.content for message in prompt.messages if message.role == "user"]
    if not said:
        raise EvaluationError(f"{answer.where}: the prompt has no text; a judge of texts cannot read token ids")
    return said[-1]
