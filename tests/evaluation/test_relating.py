"""Judges against each other: what their correlation's interval is over."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from cong.evaluation import Answer, AnswerSet, Judged, Measurement, Reading, answer_set
from cong.evaluation.relating import correlate
from cong.schemas import Prompt


class Told:
    """A judge whose measurements are given."""

    about = fingerprint = "told"
    sums_tokens = False
    reward_ends = (-math.inf, math.inf)

    def __init__(self, name: str) -> None:
        self.name = name

    def measure(self, answers: Sequence[Answer]) -> Iterator[Reading]:
        raise AssertionError("everything is told")

    def is_enough(self, answer: Answer, measurement: Measurement) -> bool:
        return True

    def reward(self, measurement: Measurement) -> float:
        return measurement.value


def told(name: str, answers: AnswerSet, rewards: Sequence[float]) -> Judged:
    keys = [answer.key for answer in answers.answers]
    return Judged(Told(name), {key: Measurement(key=key, value=one) for key, one in zip(keys, rewards, strict=True)})


def answers_to(num_prompts: int, num_samples: int) -> AnswerSet:
    prompts = [Prompt(text=str(number)) for number in range(num_prompts)]
    answers = [Answer(prompt, f"answer {index}", index) for prompt in prompts for index in range(num_samples)]
    return answer_set("x", "T=1", prompts, answers)


def test_several_answers_to_a_prompt_are_no_more_prompts() -> None:
    """Judges that have nothing in common, each with an opinion of the prompt that all eight answers to it share.

    Fewer than 87 covers in 100 draws have probability 0.001 where the interval covers with 0.95; resampling answers,
    about 60 are covered.
    """
    answers, rng = answers_to(40, 8), np.random.default_rng(3)
    num_covered = 0
    for _ in range(100):
        ours, theirs = (
            (rng.normal(0.0, 1.0, (40, 1)) + rng.normal(0.0, 0.5, (40, 8))).ravel().tolist() for _ in range(2)
        )
        found = correlate(told("a", answers, ours), told("b", answers, theirs), "x", [answers], num_resamples=200)
        assert found.pearson is not None
        assert found.pearson.low is not None
        assert found.pearson.high is not None
        num_covered += found.pearson.low <= 0.0 <= found.pearson.high
    assert num_covered >= 87


def test_many_answers_to_few_prompts_bound_no_correlation() -> None:
    answers, rng = answers_to(5, 20), np.random.default_rng(1)
    ours, theirs = (told(name, answers, rng.normal(size=100).tolist()) for name in "ab")
    found = correlate(ours, theirs, "x", [answers]).pearson
    assert found is not None
    assert (found.low, found.high) == (None, None)
